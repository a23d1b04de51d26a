"""The scheduler as real processes: shared limits, what is said to whom, a dead scheduler. Faults: tests/faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest

from engine import desk as desk_module
from engine import guards, rendezvous
from engine.desk import Desk, find_statistics, open_desk, stop_scheduler
from engine.errors import CannotRunError
from engine.model import Lane, TokenKind, UserId
from engine.ports import Ask, Return
from engine.processes import Watched, is_alive, start_time

BORROWER = textwrap.dedent(
    """
    import json, subprocess, sys
    from pathlib import Path
    from engine.desk import open_desk
    from engine.model import Lane, TokenKind, UserId
    from engine.ports import Ask
    from engine.processes import start_time

    desk = open_desk(data_dir=Path(sys.argv[1]), max_total_workers=2, max_workers_per_user=2, cpu_limit=4,
                     memory_limit_bytes=10**9)
    worker = subprocess.Popen(["sleep", "600"], start_new_session=True)
    desk.note_worker(worker.pid, start_time(worker.pid))
    asks = [Ask(ask_id=str(n), user=UserId("bob"), lane=Lane.BULK, kind=TokenKind.CPU, cost_seconds=1.0)
            for n in range(2)]
    held = list(desk.exchange(asks=asks, patience_seconds=0.05).grants)
    while len(held) < 2:
        held += desk.exchange(patience_seconds=0.05).grants
    print(json.dumps([worker.pid, start_time(worker.pid)]), flush=True)
    sys.stdin.read()
    """
)


#: What a coordinator without anything says of itself.
INTRODUCTION = {
    "asks": [],
    "leases": [],
    "claims": [],
    "limits": {"max_total_workers": 2, "max_workers_per_user": 2, "cpu_limit": 4, "memory_limit_bytes": 10**9},
    "backlog": {},
    "told": {},
    "visit": 1,
}


def an_ask(name: str, user: str = "ann", lane: Lane = Lane.BULK) -> Ask:
    return Ask(ask_id=name, user=UserId(user), lane=lane, kind=TokenKind.CPU, cost_seconds=1.0)


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory whose scheduler is ended after the test."""
    place = tmp_path / "data"
    yield place
    with suppress(CannotRunError):
        stop_scheduler(place)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """What the test opens is closed before its scheduler is stopped."""
    with ExitStack() as stack:
        yield stack


def a_desk(stack: ExitStack, data_dir: Path, *, total: int = 2) -> Desk:
    return stack.enter_context(
        open_desk(
            data_dir=data_dir,
            max_total_workers=total,
            max_workers_per_user=2,
            cpu_limit=4,
            memory_limit_bytes=10**9,
        )
    )


def a_borrower(stack: ExitStack, data_dir: Path) -> tuple[subprocess.Popen[str], int, float]:
    """A process that holds two leases and has one worker process; (process, worker's id, worker's start)."""
    process = subprocess.Popen(
        [sys.executable, "-c", BORROWER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None

    def end() -> None:
        process.kill()
        process.communicate()

    stack.callback(end)
    pid, started = json.loads(process.stdout.readline())
    stack.callback(lambda: is_alive(pid, started) and os.killpg(pid, signal.SIGKILL))
    return process, pid, started


def until(what: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait for what other processes do; fails when it does not come about."""
    end = monotonic() + seconds
    pause = subprocess.Popen(["sleep", str(seconds + 5)])
    try:
        while not what():
            assert monotonic() < end, "it did not come about in time"
            with suppress(subprocess.TimeoutExpired):
                pause.wait(0.02)
    finally:
        pause.kill()
        pause.wait()


def scheduler_of(desk: Desk) -> tuple[int, float]:
    return desk._scheduler


def kill_scheduler(desk: Desk) -> tuple[int, float]:
    """SIGKILL the scheduler that this desk talks to, and wait until it is gone."""
    pid, started = scheduler_of(desk)
    watched = Watched(pid, started)
    os.kill(pid, signal.SIGKILL)
    assert watched.wait_end(5.0)
    watched.close()
    return pid, started


def test_two_clients_share_the_limits(data_dir: Path, opened: ExitStack) -> None:
    """What one process holds is missing for the other, and comes to it when it is returned."""
    a_borrower(opened, data_dir)
    desk = a_desk(opened, data_dir)
    answer = desk.exchange(asks=[an_ask("1")])
    assert answer.grants == ()
    assert answer.waits == {"ann": "total_cap"}
    stats = desk.statistics()
    assert (stats.active_workers, stats.user_workers, stats.waiting, stats.sessions) == (2, {"bob": 2}, {"ann": 1}, 2)
    found = find_statistics(data_dir)
    assert found is not None
    assert replace(found, grants_per_second=0.0) == replace(stats, grants_per_second=0.0)


def test_return_and_the_next_ask_are_one_call(data_dir: Path, opened: ExitStack) -> None:
    """Leases go out, come back once, and a late or invented return changes nothing."""
    desk = a_desk(opened, data_dir)
    (first, second) = desk.exchange(asks=[an_ask("1"), an_ask("2"), an_ask("3")]).grants
    back = Return(lease_id=first.lease_id, cost_seconds=0.1)
    (third,) = desk.exchange(returns=[back]).grants
    assert third.ask_id == "3"
    assert desk.exchange(asks=[an_ask("4")], returns=[back]).grants == ()
    assert desk.exchange(withdraw=["4", "unknown"]).waits == {}
    assert desk.statistics().active_workers == 2
    assert second.lease_id != third.lease_id


def test_a_killed_scheduler_is_replaced_and_knows_what_is_out(data_dir: Path, opened: ExitStack) -> None:
    """After kill -9 of the scheduler both clients come back with their leases, and no token is lent twice."""
    borrower, worker, started = a_borrower(opened, data_dir)
    desk = a_desk(opened, data_dir)
    assert desk.exchange(asks=[an_ask("1")]).grants == ()
    dead = kill_scheduler(desk)
    for _ in range(5):
        assert desk.exchange(patience_seconds=0.05).grants == ()
    assert scheduler_of(desk) != dead
    until(lambda: desk.statistics().active_workers == 2)
    assert is_alive(worker, started)
    assert desk.exchange().grants == ()
    borrower.kill()
    borrower.wait()
    until(lambda: bool(desk.exchange(patience_seconds=0.05).grants))
    assert desk.statistics().user_workers == {"ann": 1}


def test_leases_survive_the_scheduler_and_end_once(data_dir: Path, opened: ExitStack) -> None:
    """A lease of the old scheduler is returned to the new one, and the ask that stood is granted for it."""
    desk = a_desk(opened, data_dir)
    (one, _) = desk.exchange(asks=[an_ask("1"), an_ask("2"), an_ask("3")]).grants
    kill_scheduler(desk)
    assert desk.exchange().grants == ()
    assert desk.statistics().active_workers == 2
    answer = desk.exchange(returns=[Return(lease_id=one.lease_id, cost_seconds=1.0)], patience_seconds=0.05)
    assert [grant.ask_id for grant in answer.grants] == ["3"]


def test_scheduler_and_client_killed_together_leave_no_worker(data_dir: Path, opened: ExitStack) -> None:
    """The next scheduler ends the workers of clients that died with the last one, before it grants anything."""
    borrower, worker, started = a_borrower(opened, data_dir)
    with open_desk(
        data_dir=data_dir, max_total_workers=2, max_workers_per_user=2, cpu_limit=4, memory_limit_bytes=10**9
    ) as other:
        scheduler = scheduler_of(other)
    borrower.send_signal(signal.SIGSTOP)
    os.kill(scheduler[0], signal.SIGKILL)
    borrower.kill()
    borrower.wait()
    assert is_alive(worker, started)
    desk = a_desk(opened, data_dir)
    assert len(desk.exchange(asks=[an_ask("1"), an_ask("2")], patience_seconds=0.05).grants) == 2
    assert not is_alive(worker, started)


def test_a_client_that_does_not_come_back_keeps_what_it_holds(data_dir: Path, opened: ExitStack) -> None:
    """A stopped client of a killed scheduler is waited for, told as `recovering`; then others go on with the rest.

    Of four tokens one is kept for interactive work.
    """
    borrower, worker, started = a_borrower(opened, data_dir)
    desk = a_desk(opened, data_dir, total=4)
    desk.exchange(asks=[an_ask("1"), an_ask("2")])
    borrower.send_signal(signal.SIGSTOP)
    kill_scheduler(desk)
    answer = desk.exchange()
    assert answer.waits == {"ann": "recovering"}
    # Its limit of two in all is not known as long as it is away, its two tokens are.
    granted = []
    until(lambda: bool(granted.extend(desk.exchange(patience_seconds=0.05).grants) or granted), 20.0)
    assert len(granted) == 1
    assert desk.exchange().waits == {"ann": "total_cap"}
    assert desk.statistics().user_workers == {"bob": 2, "ann": 1}
    assert is_alive(worker, started)
    borrower.send_signal(signal.SIGCONT)
    until(lambda: desk.statistics().max_total_workers == 2)
    assert desk.statistics().user_workers == {"bob": 2, "ann": 1}
    borrower.kill()
    borrower.wait()
    until(lambda: bool(desk.exchange(patience_seconds=0.05).grants))
    assert not is_alive(worker, started)


def test_nobody_connects_with_a_key_that_is_not_whole(data_dir: Path, opened: ExitStack) -> None:
    """A short key beside a living scheduler is an error at once, not a connection that freezes."""
    a_desk(opened, data_dir)
    whole = (data_dir / "run" / "key").read_bytes()
    opened.callback((data_dir / "run" / "key").write_bytes, whole)
    (data_dir / "run" / "key").write_bytes(b"short")
    with pytest.raises(CannotRunError, match="holds 5 bytes instead of 32"):
        find_statistics(data_dir)
    (data_dir / "run" / "key").write_bytes(b"\0" * rendezvous.KEY_BYTES)
    assert find_statistics(data_dir) is None


def test_it_ends_by_itself_when_idle(data_dir: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without sessions the process ends after its idle time and leaves no socket."""
    monkeypatch.setattr(desk_module, "IDLE_SECONDS", 0.3)
    with ExitStack() as stack:
        desk = a_desk(stack, data_dir)
        pid, started = scheduler_of(desk)
        for _ in range(20):
            desk.exchange(asks=[an_ask("1")], withdraw=["1"], patience_seconds=0.05)
        assert is_alive(pid, started)
    until(lambda: not is_alive(pid, started))
    assert not (data_dir / "run" / "socket").exists()
    assert find_statistics(data_dir) is None
    assert stop_scheduler(data_dir) is False


def test_a_scheduler_of_a_removed_folder_leaves_its_successors_socket(
    data_dir: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data directory is removed and made anew while a scheduler is there: that one ends and removes nothing."""
    monkeypatch.setattr(desk_module, "IDLE_SECONDS", 0.5)
    with ExitStack() as stack:
        first = scheduler_of(a_desk(stack, data_dir))
    shutil.rmtree(data_dir)
    desk = a_desk(opened, data_dir)
    assert scheduler_of(desk) != first
    until(lambda: not is_alive(*first))
    assert find_statistics(data_dir) is not None


def test_promotion_reaches_other_sessions(data_dir: Path, opened: ExitStack) -> None:
    """Who waits for a user moves that user forward in the night's session, and the night is told."""
    night, day = a_desk(opened, data_dir, total=1), a_desk(opened, data_dir)
    (lease,) = night.exchange(asks=[an_ask("1", "bob"), an_ask("2", "bob"), an_ask("3", "ann")]).grants
    assert day.promote(UserId("nobody")) is False
    assert day.promote(UserId("bob")) is True
    answer = night.exchange(returns=[Return(lease_id=lease.lease_id, cost_seconds=9.0)])
    assert [grant.ask_id for grant in answer.grants] == ["2"]
    assert answer.promoted == {"bob"}
    assert day.exchange().promoted == frozenset()


def test_the_strictest_limits_hold(data_dir: Path, opened: ExitStack) -> None:
    """Whoever comes with lower limits lowers them for everybody, nothing is taken away, and they rise when it goes."""
    desk = a_desk(opened, data_dir, total=9)
    held = desk.exchange(asks=[an_ask("1"), an_ask("2"), an_ask("3", "bob")]).grants
    assert len(held) == 3
    with ExitStack() as stack:
        strict = a_desk(stack, data_dir, total=2)
        assert strict.limits.max_total_workers == 2
        assert desk.exchange(asks=[an_ask("4", "cy")]).waits == {"cy": "total_cap"}
        assert desk.limits.max_total_workers == 2
        assert desk.statistics().active_workers == 3
        back = [Return(lease_id=grant.lease_id, cost_seconds=1.0) for grant in held]
        assert desk.exchange(returns=back[:1]).grants == ()
        assert len(desk.exchange(returns=back[1:2]).grants) == 1
        assert desk.exchange(asks=[an_ask("5", "bob")]).grants == ()
    assert desk.wait_news(10.0)
    assert [grant.ask_id for grant in desk.exchange().grants] == ["5"]
    assert desk.limits.max_total_workers == 9


def test_the_bell_rings_for_who_is_granted_later(data_dir: Path, opened: ExitStack) -> None:
    """Nobody has to ask again and again: the bell rings when another process's return lets an ask start."""
    first, second = a_desk(opened, data_dir), a_desk(opened, data_dir)
    (one, _) = first.exchange(asks=[an_ask("1"), an_ask("2")]).grants
    assert second.exchange(asks=[an_ask("3", "bob")]).grants == ()
    assert second.wait_news(0.0) is False
    first.exchange(returns=[Return(lease_id=one.lease_id, cost_seconds=1.0)])
    assert second.wait_news(10.0)
    assert first.wait_news(0.0) is False
    assert [grant.ask_id for grant in second.exchange().grants] == ["3"]
    assert second.wait_news(0.0) is False


def test_what_is_told_of_users_is_seen_by_all(data_dir: Path, opened: ExitStack) -> None:
    """Statuses and backlogs stand in everybody's statistics, survive the scheduler, and go with who told them."""
    with ExitStack() as stack:
        teller = a_desk(stack, data_dir)
        teller.tell(UserId("ann"), {"status": "reading", "progress": 12.5, "message": None})
        teller.tell(UserId("bob"), {"status": "x"})
        teller.tell(UserId("bob"), {})
        teller.exchange(backlog={UserId("ann"): 2000, UserId("bob"): 3})
        teller.exchange(backlog={UserId("bob"): 0})
        for bad in ({"status": ["no"]}, {"status": float("nan")}, {"status": "x" * 3000}):
            with pytest.raises(ValueError, match="malformed status"):
                teller.tell(UserId("ann"), bad)
        other = a_desk(opened, data_dir)
        for _ in range(2):
            stats = other.statistics()
            assert stats.user_status == {"ann": {"status": "reading", "progress": 12.5, "message": None}}
            assert stats.backlog == {"ann": 2000}
            if _ == 0:
                kill_scheduler(other)
                until(lambda: other.statistics().sessions == 2)
    until(lambda: other.statistics().sessions == 1)
    assert (other.statistics().user_status, other.statistics().backlog) == ({}, {})


def test_a_foreign_runtime_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another account is never used."""
    rendezvous.make_runtime_dir(tmp_path)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(CannotRunError, match=f"belongs to account {owner}"):
        rendezvous.make_runtime_dir(tmp_path)


def test_a_long_data_path_meets_elsewhere(tmp_path: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a socket's path would be too long, the meeting place is a short private one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path)[:50] if len(str(tmp_path)) <= 50 else "")
    data_dir = tmp_path / ("long" * 40)
    place = rendezvous.find_runtime_dir(data_dir)
    opened.callback(lambda: subprocess.run(["rm", "-rf", str(place)], check=True))
    assert len(str(place / "socket")) <= 100
    opened.callback(stop_scheduler, data_dir)
    assert len(a_desk(opened, data_dir).exchange(asks=[an_ask("1")]).grants) == 1


def test_another_protocol_is_told_which_side_to_restart(
    data_dir: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two releases that do not understand each other say so at once."""
    a_desk(opened, data_dir)
    monkeypatch.setattr(rendezvous, "PROTOCOL", rendezvous.PROTOCOL + 1)
    with pytest.raises(CannotRunError, match="the scheduler is older and must be restarted"):
        a_desk(opened, data_dir)


def test_garbage_on_the_wire_changes_nothing(data_dir: Path, opened: ExitStack) -> None:
    """A malformed call is answered with an error; counters and connection stay as they were."""
    desk = a_desk(opened, data_dir)
    desk.exchange(asks=[an_ask("1")])
    before = desk.statistics()
    proxy = rendezvous.DeskProxy(data_dir / "run", timeout_seconds=5.0)
    opened.callback(proxy.close)
    session = desk._client_file.session
    for asks in ([("x",)], [("x", "ann", "bulk", "cpu", float("nan"), 0, 1.0)], 7):
        with pytest.raises((ValueError, TypeError)):
            proxy.call("exchange", session, asks, [], [], [], {}, True)
    with pytest.raises(ValueError, match="malformed"):
        proxy.call("exchange", session, [("x", "ann", "bulk", "cpu", 1.0, 0, 1.0)], [("e", -1.0)], [], [], {}, True)
    with pytest.raises(ValueError, match="malformed backlog"):
        proxy.call("exchange", session, [], [], [], [], {"ann": -1}, True)
    for claim in (("e", 1, 1.0, 5), ("e", 99, 1.0, -5), ("e", 99, None, 5), ("e", 99.0, 1.0, 5)):
        with pytest.raises(ValueError, match="malformed claim"):
            proxy.call("exchange", session, [], [], [], [claim], {}, True)
    assert proxy.call("exchange", "1-2-3", [], [], [], [], {}, True) is None
    assert "refused" in proxy.call("greet", rendezvous.PROTOCOL, "1-2-3", INTRODUCTION)
    for spoilt in ("asks", "leases", "claims", "limits", "backlog", "told", "visit"):
        assert "refused" in proxy.call("greet", rendezvous.PROTOCOL, session, {**INTRODUCTION, spoilt: None})
    # What is measured differs at every look.
    measured = {"grants_per_second": 0.0, "memory_used_bytes": 0, "memory_taken_bytes": 0}
    assert replace(desk.statistics(), **measured) == replace(before, **measured)


def test_a_session_is_only_for_its_own_process(data_dir: Path, opened: ExitStack) -> None:
    """A process cannot introduce itself under another process's name."""
    a_desk(opened, data_dir)
    proxy = rendezvous.DeskProxy(data_dir / "run", timeout_seconds=5.0)
    opened.callback(proxy.close)
    other = f"{os.getppid()}-{start_time(os.getppid()):.0f}-00000000"
    assert "is calling" in proxy.call("greet", rendezvous.PROTOCOL, other, INTRODUCTION)["refused"]


def test_bulk_work_gives_way_to_the_load_of_others(data_dir: Path, opened: ExitStack) -> None:
    """While other programs keep every core busy, fewer bulk tokens are lent, one at least; what is out stays out."""
    for _ in range(2 * guards.cpu_limit()):
        burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        opened.callback(burner.wait)
        opened.callback(burner.kill)
    desk = opened.enter_context(
        open_desk(
            data_dir=data_dir, max_total_workers=20, max_workers_per_user=20, cpu_limit=2, memory_limit_bytes=10**9
        )
    )
    held = desk.exchange(asks=[an_ask("1"), an_ask("2")]).grants
    assert len(held) == 2
    until(lambda: desk.statistics().scaled_by == "load", 120.0)
    stats = desk.statistics()
    assert (stats.cpu_limit, stats.cpu_target, stats.active_workers) == (2, 1, 2)
    assert desk.exchange(asks=[an_ask("3")], returns=[Return(lease_id=held[0].lease_id, cost_seconds=1.0)]).grants == ()
    assert len(desk.exchange(asks=[an_ask("4", "eve", Lane.INTERACTIVE)]).grants) == 1
    assert len(desk.exchange(returns=[Return(lease_id=held[1].lease_id, cost_seconds=1.0)]).grants) == 1


def test_what_is_asked_at_a_reconnection_is_granted_once(data_dir: Path, opened: ExitStack) -> None:
    """The greeting tells the ask; told once more after it, it would be granted twice, and one of the two be lost."""
    desk = a_desk(opened, data_dir)
    desk._hang_up()
    (grant,) = desk.exchange(asks=[an_ask("1")], patience_seconds=5.0).grants
    assert desk.statistics().active_workers == 1
    desk._hang_up()
    desk.exchange(returns=[Return(lease_id=grant.lease_id, cost_seconds=0.1)])
    assert desk.statistics().active_workers == 0


def test_a_call_that_was_given_up_is_not_served_after_the_next_greeting(data_dir: Path, opened: ExitStack) -> None:
    """A late exchange or greeting of a connection that its coordinator has left changes nothing."""
    desk = a_desk(opened, data_dir)
    left = desk._proxy
    assert left is not None
    desk._proxy = None
    assert len(desk.exchange(asks=[an_ask("1")], patience_seconds=5.0).grants) == 1
    session = desk._client_file.session
    assert left.call("exchange", session, [("2", "ann", "bulk", "cpu", 1.0, 0, 1.0)], [], [], [], {}, True) is None
    assert "has greeted anew" in left.call("greet", rendezvous.PROTOCOL, session, INTRODUCTION)["refused"]
    left.close()
    stats = desk.statistics()
    assert (stats.active_workers, stats.waiting) == (1, {})


def test_an_interrupted_call_leaves_no_answer_for_the_next(data_dir: Path, opened: ExitStack) -> None:
    """Ctrl-C between question and answer: the next call is answered with its own, and what was granted is not lost."""
    desk = a_desk(opened, data_dir)
    proxy = desk._proxy
    assert proxy is not None
    receive = proxy._connection.recv

    def interrupted() -> None:
        proxy._connection.recv = receive
        raise KeyboardInterrupt

    proxy._connection.recv = interrupted
    with pytest.raises(KeyboardInterrupt):
        desk.exchange(asks=[an_ask("1")])
    assert desk.statistics().sessions == 1
    assert len(desk.exchange(patience_seconds=5.0).grants) == 1
    assert desk.statistics().active_workers == 1


def test_what_a_larger_limit_kept_free_is_there_under_a_smaller_one(data_dir: Path) -> None:
    """From the first words on: whoever comes with little memory has not to wait for the next look at the machine."""
    limits = {"max_total_workers": 2, "max_workers_per_user": 2, "cpu_limit": 2}
    with open_desk(data_dir=data_dir, memory_limit_bytes=guards.machine_limit(), **limits) as large:
        large.exchange()
    with open_desk(data_dir=data_dir, memory_limit_bytes=300 << 20, **limits) as small:
        assert small.exchange().room_bytes > 100 << 20
