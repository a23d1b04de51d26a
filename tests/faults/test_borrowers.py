"""Coordinators that are killed, stopped, forked or lie: nothing is lent twice, and no token is lost.

Each test runs under the observer, and at its end every token can be borrowed.
"""

from __future__ import annotations

import shutil
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from engine.desk import Desk, open_desk
from engine.errors import CannotRunError
from engine.ports import Return
from tests.faults.world import World, a_world, an_ask, borrow_all, client_files, lives, stop
from tests.mill import Mill, killed_at_the_end, wait_until

SIZES = [1, 2, 3, 8]


def bulk_share(total: int) -> int:
    """How many of all tokens bulk work may have: from three up one is kept for interactive work."""
    return total - 1 if total >= 3 else total


def a_full_holder(world: World, name: str = "holder") -> tuple[object, int]:
    """A borrower whose units hold all of bulk's tokens until they are told to end."""
    holder = world.borrower(name)
    share = bulk_share(world.limits["total"])
    holder.work("ann", count=share, milliseconds=None)
    holder.wait_for("begun", share)
    return holder, share


def refused_for_long(desk: Desk) -> None:
    """A hundred milliseconds and more of asking in vain: twenty questions, each with the desk's patience."""
    for _ in range(20):
        assert desk.exchange(patience_seconds=0.05).grants == ()


def all_can_be_borrowed(world: World) -> None:
    """No token is lost: when everybody has left, a newcomer is lent all there are."""
    for borrower in world.borrowers:
        if not borrower.ended:
            borrower.leave()
    world.close_desks()
    desk = world.desk()
    borrow_all(desk, desk.limits)
    stats = desk.statistics()
    assert stats.active_workers == world.limits["total"]
    assert stats.waiting == {}
    assert len(client_files(world)) == 1


@pytest.mark.parametrize("total", SIZES)
def test_a_killed_holder(tmp_path: Path, total: int) -> None:
    """kill -9 of who holds everything: its units end first, then those who waited begin."""
    with a_world(tmp_path, total=total, per_user=total, cores=total) as world:
        holder, share = a_full_holder(world)
        waiter = world.borrower("waiter")
        waiter.work("ben", count=2 * share)
        wait_until(lambda: world.statistics().waiting.get("ben"), "asks that stand")
        assert waiter.heard("begun") == []
        holder.kill()
        waiter.wait_for("done", 2 * share)
        assert world.running("ann") == 0
        all_can_be_borrowed(world)


@pytest.mark.parametrize("total", SIZES)
def test_a_killed_waiter(tmp_path: Path, total: int) -> None:
    """kill -9 of who waits: its asks are gone, and what becomes free goes to others."""
    with a_world(tmp_path, total=total, per_user=total, cores=total) as world:
        holder, share = a_full_holder(world)
        waiter = world.borrower("waiter")
        waiter.work("ben", count=share)
        wait_until(lambda: world.statistics().waiting.get("ben"), "asks that stand")
        waiter.kill()
        wait_until(lambda: world.statistics().sessions == 1, "the end of the waiter's session")
        assert world.statistics().waiting == {}
        holder.tell("end", count=share)
        holder.wait_for("done", share)
        all_can_be_borrowed(world)


@pytest.mark.parametrize("total", [1, 3])
def test_a_waiter_that_is_killed_with_a_grant_in_its_tray(tmp_path: Path, total: int) -> None:
    """A token lent to a stopped waiter, which never hears of it and is killed, comes back."""
    with a_world(tmp_path, total=total, per_user=total, cores=total) as world:
        holder, share = a_full_holder(world)
        waiter = world.borrower("waiter")
        waiter.work("ben", count=share)
        wait_until(lambda: world.statistics().waiting.get("ben") == share, "asks that stand")
        stop(psutil.Process(waiter.pid))
        holder.tell("end", count=share)
        holder.wait_for("done", share)
        wait_until(lambda: world.statistics().user_workers.get("ben") == share, "grants for the stopped waiter")
        assert world.running() == 0
        waiter.kill()
        all_can_be_borrowed(world)


def test_grandchildren_end_before_the_tokens_return(tmp_path: Path) -> None:
    """What a killed coordinator's workers have started is gone before anybody else begins."""
    with a_world(tmp_path, total=2) as world:
        holder, _ = a_full_holder(world)
        units = [psutil.Process(entry["pid"]) for entry in holder.heard("begun")]
        family = units + [wait_until(unit.children, "a child of the unit")[0] for unit in units]
        desk = world.desk()
        assert desk.exchange(asks=[an_ask("1")]).grants == ()
        holder.kill()
        wait_until(lambda: desk.exchange(patience_seconds=0.05).grants, "a token")
        assert [process for process in family if lives(process)] == []
        all_can_be_borrowed(world)


def test_a_coordinator_killed_while_tesseract_reads(tmp_path: Path, corpus: Path) -> None:
    """kill -9 of a real run whose worker has a `tesseract` under it: that is gone before the tokens are lent again."""
    if shutil.which("tesseract") is None:
        pytest.skip("the tesseract program is not installed")
    home = tmp_path / "home"
    home.mkdir()
    scans = sorted(corpus.glob("ocr/**/*.pdf")) or sorted(corpus.glob("ocr/**/*.png"))
    for number, scan in enumerate(scans[:6]):
        shutil.copy(scan, home / f"{number}{scan.suffix}")
    settings = {"NIGHTMILL_OCR_BACKEND": "pytesseract", "MAX_TOTAL_WORKERS": "2", "MAX_WORKERS_PER_USER": "2"}
    mill = Mill(tmp_path, NIGHTMILL_EMBEDDER="fast", **settings)
    mill.run("users", "add", "ann", f"folder:{home}")

    def readers() -> list[psutil.Process]:
        found = []
        for process in mill.processes():
            with suppress(psutil.Error):
                found += [process] if process.name() == "tesseract" else []
        return found

    try:
        with killed_at_the_end(mill.start("init")) as run:
            wait_until(readers, "a tesseract")
            with open_desk(
                data_dir=mill.data_dir,
                max_total_workers=2,
                max_workers_per_user=2,
                cpu_limit=2,
                memory_limit_bytes=10**10,
                scaling=False,
            ) as desk:
                asks = [an_ask(str(number)) for number in range(desk.limits.max_total_workers)]
                granted = list(desk.exchange(asks=asks).grants)
                reading = wait_until(readers, "a tesseract")
                run.kill()
                run.wait()
                wait_until(
                    lambda: granted.extend(desk.exchange(patience_seconds=0.05).grants) or len(granted) == len(asks),
                    "every token",
                )
                assert readers() == []
                assert mill.workers() == []
                assert not any(lives(process) for process in reading)
    finally:
        with suppress(CannotRunError):
            mill.stop_scheduler()
    wait_until(lambda: not mill.processes(), "the end of every process")


@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_stopped_coordinator(tmp_path: Path, total: int) -> None:
    """SIGSTOP is no end: nothing is taken and nothing lent twice, even if its units end; SIGCONT: it goes on."""
    with a_world(tmp_path, total=total, per_user=total, cores=total) as world:
        stopped = world.borrower("stopped")
        share = bulk_share(total)
        stopped.work("ann", count=share, milliseconds=300)
        stopped.work("ann", count=share, milliseconds=20)
        stopped.wait_for("begun", share)
        stop(psutil.Process(stopped.pid))
        desk = world.desk()
        desk.exchange(asks=[an_ask("1")])
        wait_until(lambda: world.running("ann") == 0, "the end of the stopped coordinator's units")
        refused_for_long(desk)
        assert world.statistics().user_workers == {"ann": share}
        stopped.signal(signal.SIGCONT)
        (grant,) = wait_until(lambda: desk.exchange(patience_seconds=0.05).grants, "the token of who waited")
        desk.exchange(returns=[Return(lease_id=grant.lease_id, cost_seconds=0.1)])
        stopped.wait_for("done", 2 * share)
        all_can_be_borrowed(world)


@pytest.mark.parametrize("also", ["", "scheduler"])
def test_a_killed_holder_whose_child_keeps_the_socket(tmp_path: Path, also: str) -> None:
    """A forked child keeps the connection and the client file's lock open; the holder is dead all the same.

    Also when the scheduler is killed with it: the next one does not wait for a lock that nobody lives behind.
    """
    with a_world(tmp_path, total=2) as world:
        holder, _ = a_full_holder(world)
        holder.tell("fork")
        child = psutil.Process(holder.wait_for("forked")[0]["pid"])
        if also:
            process = wait_until(world.scheduler_process, "the scheduler")
            stop(process)
            holder.kill()
            process.kill()
            process.wait()
        else:
            holder.kill()
        desk = world.desk()
        borrow_all(desk, desk.limits, seconds=8.0)
        assert world.running() == 0
        assert lives(child)
        child.kill()
        wait_until(lambda: child not in world.processes(), "the end of the child")
        all_can_be_borrowed(world)


def test_double_forged_and_late_returns(tmp_path: Path) -> None:
    """Leases that are returned twice, by others, after a restart, or that never were: the counts stay true."""
    with a_world(tmp_path, total=2) as world:
        holder = world.borrower("holder")
        holder.work("ann", count=1, milliseconds=None)
        (theirs,) = (entry["lease"] for entry in holder.wait_for("begun"))
        desk = world.desk()
        (ours,) = desk.exchange(asks=[an_ask("1"), an_ask("2"), an_ask("3")]).grants
        forged = [theirs, "", "0-0", ours.lease_id + "0", theirs.split("-")[0] + "-99", "\0", "x" * 10_000]
        assert desk.exchange(returns=[Return(lease_id=name, cost_seconds=1e9) for name in forged]).grants == ()
        assert world.statistics().user_workers == {"ann": 1, "zoe": 1}
        back = Return(lease_id=ours.lease_id, cost_seconds=0.1)
        (second,) = desk.exchange(returns=[back, back]).grants
        assert desk.exchange(returns=[back]).grants == ()
        world.kill_scheduler()
        assert desk.exchange(returns=[back, *(Return(lease_id=name, cost_seconds=1.0) for name in forged)]).grants == ()
        wait_until(lambda: world.statistics().user_workers == {"ann": 1, "zoe": 1}, "the counts of before")
        assert desk.exchange(patience_seconds=0.05).grants == ()
        assert world.running("ann") == 1
        (third,) = desk.exchange(returns=[Return(lease_id=second.lease_id, cost_seconds=0.1)]).grants
        assert third.ask_id == "3"
        all_can_be_borrowed(world)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (4, 2), (8, 3)])
def test_caps_lowered_while_leases_are_out(tmp_path: Path, before: int, after: int) -> None:
    """A coordinator with lower limits lowers them: what runs may run on, and nothing begins until it is below."""
    with a_world(tmp_path, total=before, per_user=before, cores=before) as world:
        share = bulk_share(before)
        holder = world.borrower("holder")
        holder.work("ann", count=share, milliseconds=None)
        holder.wait_for("begun", share)
        strict = world.borrower("strict", limits={"total": after, "per_user": after, "cores": before})
        wait_until(lambda: world.statistics().max_total_workers == after, "the lower limits")
        world.observe(total=after, per_user=after)
        holder.work("ben", count=share, milliseconds=5)
        wait_until(lambda: world.statistics().waiting.get("ben"), "asks that stand")
        for left in range(share - 1, -1, -1):
            holder.tell("end", count=1)
            holder.wait_for("done", share - left)
            if left >= bulk_share(after):
                assert world.statistics().user_workers == {"ann": left}
        holder.wait_for("done", 2 * share)
        strict.leave()
        wait_until(lambda: world.statistics().max_total_workers == before, "the limits of before")
        world.observe()
        all_can_be_borrowed(world)
