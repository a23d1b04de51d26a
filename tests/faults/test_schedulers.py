"""Schedulers that are killed, stopped, started by many, orphaned, crowded, starved, or find things left by the dead.

Each test runs under the observer. What the runtime folder may be is in test_runtime_folder.py.
"""

from __future__ import annotations

import resource
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from engine import desk as desk_module
from engine import rendezvous
from engine.errors import SchedulerUnreachable
from engine.ports import Return
from engine.processes import cpu_seconds
from engine.scheduler import ACCEPT_PAUSE_SECONDS, EXIT_LOST_ELECTION
from tests.faults.test_borrowers import SIZES, a_full_holder, all_can_be_borrowed, refused_for_long
from tests.faults.world import World, a_world, an_ask, lives, stop
from tests.mill import wait_until


@pytest.mark.parametrize("total", SIZES)
def test_killed_again_and_again_under_load(tmp_path: Path, total: int) -> None:
    """kill -9 of scheduler after scheduler while two borrowers work: all work is done, and never by too many."""
    with a_world(tmp_path, total=total, per_user=max(1, total - 1), cores=total) as world:
        borrowers = [world.borrower(name) for name in ("one", "two")]
        for borrower in borrowers:
            borrower.work("ann", count=10, milliseconds=15)
            borrower.work("ben", count=10, milliseconds=15)
        for goal in (6, 12, 18):
            wait_until(lambda goal=goal: len(world.done()) >= goal, f"{goal} units to be done")
            world.kill_scheduler()
        for borrower in borrowers:
            borrower.wait_for("done", 20)
            assert borrower.heard("killed") == []
        assert len(world.done()) == 40
        all_can_be_borrowed(world)


@pytest.mark.parametrize("total", [1, 3])
def test_a_stopped_scheduler(tmp_path: Path, total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP of the scheduler: who asks is told so after a time, and after SIGCONT all goes on within the limits."""
    monkeypatch.setattr(desk_module, "CALL_SECONDS", 0.3)
    monkeypatch.setattr(desk_module, "PATIENCE_SECONDS", 1.0)
    with a_world(tmp_path, total=total, per_user=total, cores=total) as world:
        worker, patient = (
            world.borrower(name, set={"CALL_SECONDS": seconds}) for name, seconds in (("worker", 0.3), ("patient", 30))
        )
        desk = world.desk()
        for borrower in (worker, patient):
            borrower.work("ann", count=10, milliseconds=20)
            borrower.wait_for("begun")
        scheduler = wait_until(world.scheduler_process, "the scheduler")
        stop(scheduler)
        with pytest.raises(SchedulerUnreachable, match="could not be reached"):
            desk.exchange(asks=[an_ask("1")])
        assert wait_until(world.scheduler_process, "the scheduler") == scheduler
        scheduler.resume()
        (grant,) = wait_until(lambda: desk.exchange(patience_seconds=0.05).grants, "a token for who gave up")
        desk.exchange(returns=[Return(lease_id=grant.lease_id, cost_seconds=0.1)])
        for borrower in (worker, patient):
            borrower.wait_for("done", 10)
        all_can_be_borrowed(world)


def test_a_grant_whose_answer_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped scheduler grants when it goes on, to a caller that has hung up: the greeting gives the token back."""
    monkeypatch.setattr(desk_module, "CALL_SECONDS", 0.3)
    monkeypatch.setattr(desk_module, "PATIENCE_SECONDS", 0.7)
    with a_world(tmp_path, total=1) as world:
        world.scheduler()
        desk = world.desk()
        scheduler = wait_until(world.scheduler_process, "the scheduler")
        stop(scheduler)
        with pytest.raises(SchedulerUnreachable):
            desk.exchange(asks=[an_ask("1")])
        scheduler.resume()
        wait_until(lambda: (stats := world.statistics()) is not None and stats.active_workers == 1, "a grant to nobody")
        (grant,) = wait_until(lambda: desk.exchange(patience_seconds=0.05).grants, "the same token")
        assert grant.ask_id == "1"
        assert world.statistics().active_workers == 1
        desk.exchange(returns=[Return(lease_id=grant.lease_id, cost_seconds=0.1)])
        all_can_be_borrowed(world)


def test_five_schedulers_started_at_once(tmp_path: Path) -> None:
    """Exactly one serves; the others say that they lost, and touch nothing of it."""
    with a_world(tmp_path) as world:
        candidates = [world.scheduler(wait=False) for _ in range(5)]
        wait_until(lambda: sum(one.poll() is not None for one in candidates) == 4, "the end of four of five")
        assert sorted(code for one in candidates if (code := one.poll()) is not None) == [EXIT_LOST_ELECTION] * 4
        (winner,) = (one for one in candidates if one.poll() is None)
        wait_until(world.statistics, "the one that serves")
        assert world.scheduler_process() == psutil.Process(winner.pid)
        borrower = world.borrower("one")
        borrower.work("ann", count=4)
        borrower.wait_for("done", 4)
        all_can_be_borrowed(world)


def test_five_coordinators_that_find_no_scheduler(tmp_path: Path) -> None:
    """All five start at once, one scheduler serves them all, and it is one for all of them."""
    with a_world(tmp_path, total=3) as world:
        borrowers = [world.borrower(f"b{number}", wait=False) for number in range(5)]
        for borrower in borrowers:
            borrower.work("ann", count=3)
            borrower.work("ben", count=3)
        for borrower in borrowers:
            borrower.wait_for("done", 6)
        assert world.statistics().sessions == 5
        assert sum("engine.scheduler" in process.cmdline() for process in world.processes()) == 1
        all_can_be_borrowed(world)


@pytest.mark.parametrize("killed", ["first", "all"])
def test_an_orphaned_scheduler_ends_by_itself(tmp_path: Path, killed: str) -> None:
    """The coordinator that started it is killed: it serves the others, and ends when nobody is left."""
    with a_world(tmp_path) as world:
        first = world.borrower("first", set={"IDLE_SECONDS": 0.5})
        scheduler = wait_until(world.scheduler_process, "the scheduler")
        second = world.borrower("second")
        first.work("ann", count=2, milliseconds=None)
        first.wait_for("begun", 2)
        first.kill()
        second.work("ben", count=2)
        second.wait_for("done", 2)
        assert lives(scheduler)
        if killed == "all":
            second.kill()
        else:
            second.leave()
        assert scheduler.wait(timeout=30) is None
        assert not (world.data_dir / "run" / "socket").exists()
        assert rendezvous.client_files(world.data_dir / "run") == []


# --- crowds, and too few descriptors ---


@contextmanager
def _crowd(address: Path, manner: str, size: int) -> Iterator[None]:
    """So many callers that do not show the key: they are silent, send garbage, or hang up at once."""
    with ExitStack() as stack:
        for number in range(size):
            caller = stack.enter_context(socket.socket(socket.AF_UNIX))
            rendezvous.set_timeouts(caller, 10.0)
            caller.connect(str(address))
            with suppress(BrokenPipeError, ConnectionResetError):
                if manner == "garbage":
                    caller.sendall(
                        [b"\0\0\0\x10", b"\xff" * 64, b"GET / HTTP/1.0\r\n\r\n", b"\x7f\xff\xff\xff"][number % 4]
                    )
            if manner == "gone":
                caller.close()
        yield


@pytest.mark.parametrize("manner", ["silent", "garbage", "gone"])
def test_five_hundred_half_open_connections(tmp_path: Path, manner: str) -> None:
    """A crowd that never shows the key disturbs nobody who works, and keeps no newcomer out, however patient it is."""
    with a_world(tmp_path) as world:
        # Patience is not what lets the newcomer in.
        world.scheduler(how={"set": {"HANDSHAKE_SECONDS": 3600.0}})
        good = world.borrower("good")
        good.work("ann", count=10, milliseconds=5)
        good.wait_for("begun")
        with _crowd(world.data_dir / "run" / "socket", manner, 500):
            good.work("ben", count=30, milliseconds=5)
            good.wait_for("done", 40)
            newcomer = world.borrower("newcomer")
            newcomer.work("ann", count=2)
            newcomer.wait_for("done", 2)
        all_can_be_borrowed(world)


@pytest.mark.parametrize("words", [b"", b"\0\0\0\x10", b"\xff\xff\xff\xff"])
def test_a_caller_that_does_not_show_the_key_in_time(tmp_path: Path, words: bytes) -> None:
    """Silent, in the middle of a message, or announcing one without end: it is hung up on."""
    with a_world(tmp_path) as world:
        world.scheduler(how={"set": {"HANDSHAKE_SECONDS": 0.2}})
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(30.0)
            caller.connect(str(world.data_dir / "run" / "socket"))
            caller.sendall(words)
            with suppress(ConnectionResetError):
                while caller.recv(4096):
                    pass


def _own_descriptors(process: psutil.Process) -> int:
    """How many descriptors a scheduler has before anybody comes. With that as its limit it can open nothing more,
    whoever hangs up meanwhile."""
    found = []
    # Several looks, because what is open for a moment only does not count.
    for _ in range(20):
        used = {int(path.name) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
        found.append(next(number for number in range(len(used) + 1) if number not in used))
    return min(found)


@contextmanager
def _at_most(descriptors: int, process: psutil.Process) -> Iterator[None]:
    """The process may have descriptors below that number only, for a while."""
    before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (descriptors, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)


def _log_of(world: World) -> str:
    return (world.place / "scheduler.err").read_text()


def test_out_of_descriptors_without_load(tmp_path: Path) -> None:
    """A scheduler that cannot accept anybody does not spin, serves those it has, and recovers."""
    with a_world(tmp_path) as world:
        world.scheduler()
        scheduler = wait_until(world.scheduler_process, "the scheduler")
        own = _own_descriptors(scheduler)
        good = world.borrower("good")
        with _at_most(own, scheduler):
            caller = socket.socket(socket.AF_UNIX)
            caller.connect(str(world.data_dir / "run" / "socket"))
            wait_until(
                lambda: "no caller can be accepted" in _log_of(world) or not lives(scheduler), "a caller refused"
            )
            assert lives(scheduler), _log_of(world)
            used, began = cpu_seconds(scheduler.pid), time.monotonic()
            refused = _log_of(world).count("no caller can be accepted")
            wait_until(
                lambda: _log_of(world).count("no caller can be accepted") >= refused + 10 or not lives(scheduler),
                "ten more failures to accept",
            )
            assert lives(scheduler), _log_of(world)
            used, took = cpu_seconds(scheduler.pid) - used, time.monotonic() - began
            # Ten pauses lie between ten failures; one that spins makes thousands in that time, at full load.
            assert took >= 8 * ACCEPT_PAUSE_SECONDS
            assert used <= took / 2
            good.work("ann", count=4)
            good.wait_for("done", 4)
            caller.close()
        newcomer = world.borrower("newcomer")
        newcomer.work("ben", count=2)
        newcomer.wait_for("done", 2)
        assert world.scheduler_process() == scheduler
        all_can_be_borrowed(world)


def test_a_holder_dies_while_there_are_no_descriptors(tmp_path: Path) -> None:
    """Its workers are ended and its tokens come back as soon as the scheduler can look again."""
    with a_world(tmp_path, total=2) as world:
        world.scheduler()
        scheduler = wait_until(world.scheduler_process, "the scheduler")
        own = _own_descriptors(scheduler)
        holder, _ = a_full_holder(world)
        waiter = world.borrower("waiter")
        desk = world.desk()
        with _at_most(own, scheduler):
            holder.kill()
            waiter.work("ben", count=2)
            # Several rounds of the scheduler's watcher.
            refused_for_long(desk)
            assert lives(scheduler), _log_of(world)
        waiter.wait_for("done", 2, seconds=20.0)
        assert world.scheduler_process() == scheduler
        all_can_be_borrowed(world)


def test_a_newcomer_while_there_are_no_descriptors(tmp_path: Path) -> None:
    """Who comes while the scheduler can open nothing waits, and is served when it can."""
    with a_world(tmp_path, total=2) as world:
        world.scheduler()
        scheduler = wait_until(world.scheduler_process, "the scheduler")
        own = _own_descriptors(scheduler)
        # With none to spare nobody is accepted; with some it is the greeting that lacks one.
        for spare in range(8):
            with _at_most(own + spare, scheduler):
                newcomer = world.borrower(f"newcomer{spare}", wait=False)
                # Long enough for its first greeting, whatever becomes of that.
                with suppress(AssertionError):
                    wait_until(lambda one=newcomer: one.heard("here") or one.ended, "an answer", seconds=0.5)
            newcomer.work("ben")
            newcomer.wait_for("done")
            newcomer.leave()
        all_can_be_borrowed(world)


def test_a_caller_that_no_descriptor_is_left_for(tmp_path: Path) -> None:
    """Accepted with the last one, it is hung up on at once, not left to wait for its time-out."""
    with a_world(tmp_path) as world:
        world.scheduler()
        scheduler = wait_until(world.scheduler_process, "the scheduler")
        # The accepter already has the number of the next connection; there is none for anything else.
        with _at_most(_own_descriptors(scheduler), scheduler), socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(30.0)
            caller.connect(str(world.data_dir / "run" / "socket"))
            with suppress(ConnectionResetError):
                assert caller.recv(1) == b""
        assert "a caller hung up: [Errno 24]" in _log_of(world)
        all_can_be_borrowed(world)


# --- messages that come too late, or from others ---


def test_a_message_of_an_abandoned_connection_changes_nothing(tmp_path: Path) -> None:
    """What a coordinator sent before it gave up on a connection may be read after it has greeted anew: too late.

    Otherwise an ask that has long been served would be granted again, to nobody.
    """
    with a_world(tmp_path, total=2) as world:
        desk = world.desk()
        row = ("1", "zoe", "bulk", "cpu", 1.0, 0, 1.0)
        abandoned, desk._proxy = desk._proxy, None
        assert abandoned is not None
        assert desk.exchange().grants == ()
        with suppress(Exception):
            abandoned.call("exchange", desk._client_file.session, [row], [], [], [], {}, False)
        abandoned.close()
        assert world.statistics().active_workers == 0
        assert world.statistics().waiting == {}


def test_nobody_returns_for_others(tmp_path: Path) -> None:
    """A process with the key, but another one, cannot return another's lease, speak for it, or make it leave."""
    with a_world(tmp_path, total=2) as world:
        holder, _ = a_full_holder(world)
        (session,) = (path.stem for path in rendezvous.client_files(world.data_dir / "run"))
        stranger = rendezvous.DeskProxy(world.data_dir / "run", timeout_seconds=5.0)
        leases = [(entry["lease"], 0.0) for entry in holder.heard("begun")]
        with suppress(ValueError):
            stranger.call("exchange", session, [], leases, [], [], {}, False)
        assert world.statistics().user_workers == {"ann": 2}
        with suppress(ValueError):
            stranger.call("leave", session)
        with suppress(ValueError):
            assert stranger.call("tell", session, "ann", {"status": "lent"}) is False
        stranger.close()
        assert world.statistics().user_status == {}
        assert world.statistics().user_workers == {"ann": 2}


def test_a_client_that_comes_back_late_begins_nothing_too_much(tmp_path: Path) -> None:
    """Stopped between a grant and the unit's begin, overdue at the next scheduler, then continued: within the limits.

    Whether it keeps its tokens, or others have them and it must not begin, is the scheduler's to choose.
    """
    with a_world(tmp_path, total=2) as world:
        world.scheduler()
        late = world.borrower("late", stop_before_unit=True)
        late.work("ann", count=2, milliseconds=300)
        late.wait_for("stopping")
        process = psutil.Process(late.pid)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the stop of the late one")
        world.kill_scheduler()
        world.scheduler(how={"set": {"RECOVERY_SECONDS": 0.5}})
        others = world.borrower("others")
        others.work("ben", count=2, milliseconds=None)

        def is_decided() -> bool:
            stats = world.statistics()
            return len(others.heard("begun")) == 2 or (stats is not None and "total_cap" in stats.reasons)

        wait_until(is_decided, "the end of the recovery")
        if not late.ended:
            late.signal(signal.SIGCONT)
        wait_until(
            lambda: late.ended or world.running("ann") or world.statistics().waiting.get("ann"),
            "what the late one does",
        )
        others.wait_for("begun", 2)
        others.tell("end", count=2)
        others.wait_for("done", 2)
        if not late.ended:
            late.wait_for("done", 2)


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_grant_whose_scheduler_ends_before_it_is_used(tmp_path: Path, killed: str) -> None:
    """Killed between its answer and the use of the lease: the next one may not know of it, so it is not used."""
    with a_world(tmp_path, total=1) as world:
        desk = world.desk()
        noted = desk._client_file.note_leases

        def and_its_scheduler_ends(begun: Mapping[str, Sequence[str | float]], ended: Iterable[str]) -> None:
            desk._client_file.note_leases = noted  # type: ignore[method-assign]
            if killed == "after":
                noted(begun, ended)
            world.kill_scheduler()
            if killed == "before":
                noted(begun, ended)

        desk._client_file.note_leases = and_its_scheduler_ends  # type: ignore[method-assign]
        assert desk.exchange(asks=[an_ask("1")]).grants == ()
        (grant,) = wait_until(lambda: desk.exchange(patience_seconds=0.05).grants, "the token of the next scheduler")
        assert grant.ask_id == "1"
        assert world.statistics().active_workers == 1
        desk.exchange(returns=[Return(lease_id=grant.lease_id, cost_seconds=0.1)])
        all_can_be_borrowed(world)
