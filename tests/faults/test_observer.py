"""The observer can fail: it sees each limit that a broken scheduler exceeds, and nothing where there is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.observer import Sight, judge
from tests.faults.world import World, a_world, stop
from tests.mill import wait_until

LIMITS = {"total": 2, "per_user": 1, "cores": 4}


@pytest.mark.parametrize(
    ("broken", "told", "users", "found"),
    [
        ({"total": 2}, {"total": 1, "per_user": 2, "cores": 4}, ["ann", "ben", "cleo"], "total: 2 of 1"),
        ({"per_user": 3}, {"total": 4, "per_user": 2, "cores": 4}, ["ann", "ann", "ann"], "user ann: 3 of 2"),
        ({"cores": 2}, {"total": 5, "per_user": 2, "cores": 1}, ["ann", "ben", "cleo"], "cpu bulk: 2 of 1"),
    ],
)
def test_a_scheduler_that_lends_one_too_many_is_caught(
    tmp_path: Path, broken: dict[str, int], told: dict[str, int], users: list[str], found: str
) -> None:
    """A scheduler whose limits are one higher than the observer's is found out by the processes that run."""
    world = World(tmp_path / "world", **told)
    try:
        world.limits = {**told, **broken}
        world.scheduler()
        borrower = world.borrower("one")
        for user in users:
            borrower.work(user, count=2, milliseconds=100)
        borrower.wait_for("done", len(users) * 2)
        sight = world.finish_observer()
        assert any(found in line for line in sight["violations"]), sight
    finally:
        world.kill_all()


def test_one_after_the_other_is_not_two_at_once(tmp_path: Path) -> None:
    """Hundreds of units of a millisecond, one token: the observer never takes an end and a beginning for two."""
    with a_world(tmp_path, total=1) as world:
        borrower = world.borrower("one")
        borrower.work("ann", count=150, milliseconds=1)
        borrower.work("ben", count=150, milliseconds=1)
        borrower.wait_for("done", 300)
        assert len(world.done()) == 300


def test_units_that_outlive_who_began_them_are_seen(tmp_path: Path) -> None:
    """A unit whose borrower was killed counts as long as it runs: seen by its lock, not by what anybody says."""
    with a_world(tmp_path) as world:
        holder, waiter = world.borrower("holder"), world.borrower("waiter")
        holder.work("ann", count=2, milliseconds=None)
        holder.wait_for("begun", 2)
        scheduler = wait_until(world.scheduler_process, "the scheduler")
        stop(scheduler)
        holder.kill()
        assert world.running("ann") == 2
        scheduler.resume()
        wait_until(lambda: world.running("ann") == 0, "the end of what the holder ran")
        waiter.work("ben")
        waiter.wait_for("done")


@pytest.mark.parametrize(
    ("running", "fresh", "expected"),
    [
        (["ann+bulk+cpu+1", "ben+bulk+cpu+2"], "all", []),
        (["ann+bulk+cpu+1", "ann+bulk+cpu+2"], "all", ["user ann: 2 of 1"]),
        (["ann+bulk+api+1", "ben+bulk+api+2", "cleo+interactive+api+3"], "all", ["total: 3 of 2"]),
        (["ann+bulk+cpu+1", "ben+bulk+cpu+2", "cleo+bulk+cpu+3"], "none", []),
    ],
)
def test_what_it_counts(running: list[str], fresh: str, expected: list[str]) -> None:
    """Users and all together are counted; what ran before the limits changed may run on."""
    sight = Sight()
    judge(set(running), set(running) if fresh == "all" else set(), LIMITS, sight)
    assert [line.split(": [")[0] for line in sight.violations] == expected
