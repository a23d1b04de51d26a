"""Memory that runs out under a real group of the kernel: who is stopped, who waits, and that the kernel ends nobody.

The scheduler and the units are in the group; the coordinator is this process. A unit is a process that takes as much
memory as it is told.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine import guards, rendezvous
from engine.desk import Desk
from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.ports import Answer, Ask, Claim, DeskStats, Return
from engine.processes import Watched, kill_group, start_time
from tests.faults.world import World, a_world
from tests.mill import wait_until

MIB = 1024**2
#: Of the group: memory is closed from 360 MiB on, and open again below 340; the hard mark is at 380. A unit that has
#: taken nothing has some 5 of them.
LIMIT, CLOSED, HARD = 400 * MIB, 365, 385
#: Takes as many MiB as each line says, for good.
EATER = (
    "import sys\nheld = []\nfor line in sys.stdin:\n    held.append(b'x' * (int(line) << 20))\n    print(flush=True)"
)


class Group:
    """A group of the kernel with a memory limit, v1 or v2."""

    def __init__(self, folder: Path, version: int) -> None:
        self.folder, self._version = folder, version

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def limit(self, limit_bytes: int) -> None:
        name = "memory.limit_in_bytes" if self._version == 1 else "memory.max"
        (self.folder / name).write_text(str(limit_bytes))

    def left_until(self, mib: int) -> int:
        """How many MiB there are until so many are in use."""
        used = guards._group_usage(self.folder, self._version)
        assert used is not None
        return mib - used // MIB

    def ended_by_kernel(self) -> int:
        """How many processes the kernel has ended because the group was full."""
        name = "memory.oom_control" if self._version == 1 else "memory.events"
        fields = dict(line.split() for line in (self.folder / name).read_text().splitlines())
        return int(fields.get("oom_kill", 0))


@contextmanager
def a_group(limit_bytes: int) -> Iterator[Group]:
    """A group beneath the root of the hierarchy. Skips the test where there can be none."""
    name = f"nightmill-test-{secrets.token_hex(4)}"
    for version, root, file in (
        (1, Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (2, Path("/sys/fs/cgroup"), "memory.max"),
    ):
        folder = root / name
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / file).write_text(str(limit_bytes))
        except OSError:
            folder.rmdir()
            continue
        try:
            yield Group(folder, version)
        finally:
            procs = folder / "cgroup.procs"
            wait_until(partial(_is_empty, procs), "the end of all in the group")
            folder.rmdir()
        return
    pytest.skip("no group with a memory limit may be made here: that takes root, and cgroup v1 or v2 with memory")


def _is_empty(procs: Path) -> bool:
    return not procs.read_text()


@dataclass
class Unit:
    """A process that takes memory; `lease` None: it is somebody else's."""

    process: subprocess.Popen[str]
    started: float
    lease: LeaseId | None

    def take(self, mib: int) -> None:
        """So many MiB more, and all of them in use."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{mib}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "\n", "it was ended while it took memory"

    def end(self) -> None:
        kill_group(self.process.pid, self.started)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class Coordinator:
    """A desk of this process, and the units that it has begun."""

    def __init__(self, world: World, group: Group | None) -> None:
        self.desk: Desk = world.desk()
        self._world, self._group = world, group
        self._names = 0
        self._granted: list[LeaseId] = []

    def say(self, **words: Any) -> Answer:
        """One exchange. What it grants is kept."""
        answer = self.desk.exchange(**words)
        self._granted += [grant.lease_id for grant in answer.grants]
        return answer

    def ask(self, mib: int) -> bool:
        """Ask for a unit that needs so much. False: it is not granted at once."""
        self._names += 1
        ask = Ask(
            ask_id=f"{self._names}",
            user=UserId(f"user{self._names}"),
            lane=Lane.BULK,
            kind=TokenKind.CPU,
            cost_seconds=1.0,
            memory_bytes=mib * MIB,
        )
        return bool(self.say(asks=[ask]).grants)

    def granted(self) -> LeaseId:
        """The lease of the one ask that stands, as soon as it is granted."""
        wait_until(lambda: self._granted or self.say(patience_seconds=0.1).grants, "a grant")
        return self._granted.pop()

    def begin(self, mib: int) -> Unit:
        """A unit that needs so much, started."""
        self.ask(mib)
        return self.start(self.granted(), mib)

    def start(self, lease: LeaseId, mib: int) -> Unit:
        """The unit of a lease, and who works on it."""
        unit = self._process(lease)
        self.desk.note_worker(unit.process.pid, unit.started)
        assert not self.claim(unit, mib)
        return unit

    def stranger(self) -> Unit:
        """A process in the group that is none of ours."""
        return self._process(None)

    def claim(self, unit: Unit, mib: int) -> frozenset[LeaseId]:
        """What was denied."""
        assert unit.lease is not None
        claim = Claim(lease_id=unit.lease, pid=unit.process.pid, started=unit.started, memory_bytes=mib * MIB)
        return self.say(claims=[claim]).denied

    def finish(self, unit: Unit) -> None:
        """End the unit, and give its lease back."""
        unit.end()
        self.desk.note_worker_gone(unit.process.pid)
        assert unit.lease is not None
        self.say(returns=[Return(lease_id=unit.lease, cost_seconds=1.0)])

    def stops(self) -> dict[LeaseId, str]:
        """The leases that are to be stopped, as soon as there are any. The bell has rung for it."""
        assert self.desk.wait_news(30.0)
        return wait_until(lambda: dict(self.say().stops), "a lease that is to be stopped")

    def sees(self, what: str, look: object) -> DeskStats:
        """The statistics, as soon as `look` (a function of them) is content."""
        assert callable(look)

        def content() -> DeskStats | None:
            now = self.desk.statistics()
            return now if look(now) else None

        return wait_until(content, f"{what}: {self.desk.statistics()}")

    def _process(self, lease: LeaseId | None) -> Unit:
        process = self._world.start("-S", "-E", "-c", EATER, pipes=True, start_new_session=True)
        if self._group is not None:
            self._group.add(process.pid)
        return Unit(process, start_time(process.pid), lease)


@contextmanager
def a_full_house(tmp_path: Path) -> Iterator[tuple[Coordinator, Group]]:
    """A scheduler in a group of LIMIT, which knows of it, and a coordinator. The kernel may end nobody in it."""
    with a_group(LIMIT) as group, a_world(tmp_path, total=8, per_user=8, cores=8) as world:
        group.add(world.scheduler().pid)
        coordinator = Coordinator(world, group)
        coordinator.sees("the group", lambda now: str(group.folder) in now.memory_source)
        yield coordinator, group
        assert group.ended_by_kernel() == 0


def test_who_takes_more_than_it_was_promised_is_stopped_and_nobody_else(tmp_path: Path) -> None:
    """Of two units the one beyond its promise, though the other is larger; and work goes on when it is gone."""
    with a_full_house(tmp_path) as (coordinator, group):
        large, swollen = coordinator.begin(180), coordinator.begin(60)
        large.take(150)
        coordinator.sees("what is used", lambda now: now.memory_used_bytes > 150 * MIB)
        assert coordinator.claim(swollen, 300) == {swollen.lease}, "there is no room for that"
        assert coordinator.claim(swollen, 90) == frozenset()
        swollen.take(group.left_until(CLOSED))
        assert coordinator.sees("closed memory", lambda now: now.memory_closed).memory_stopped == 0
        swollen.take(group.left_until(HARD))
        stops = coordinator.stops()
        assert list(stops) == [swollen.lease]
        assert "memory runs out" in stops[swollen.lease or LeaseId("")]
        assert list(coordinator.say().stops) == [swollen.lease], "it is said until the lease ends"
        coordinator.finish(swollen)
        assert coordinator.say().stops == {}
        after = coordinator.sees("open memory", lambda now: not now.memory_closed)
        assert after.memory_stopped == 1
        coordinator.finish(coordinator.begin(60))
        coordinator.finish(large)


def test_what_others_take_is_not_lent_and_who_is_not_stopped_is_ended(tmp_path: Path) -> None:
    """A stranger in the group makes units wait, one by one and then altogether. When it takes the rest, the unit that
    its coordinator does not stop is ended by the scheduler; the lease stays out until it is given back."""
    with a_full_house(tmp_path) as (coordinator, group):
        stranger, unit = coordinator.stranger(), coordinator.begin(60)
        stranger.take(180)
        coordinator.sees("what is taken", lambda now: now.memory_taken_bytes > 175 * MIB)
        assert not coordinator.ask(150)
        assert set((coordinator.say().waits or {}).values()) == {"memory"}
        unit.take(40)
        stranger.take(group.left_until(CLOSED))
        coordinator.sees("closed memory", lambda now: now.memory_closed)
        stranger.take(group.left_until(HARD))
        assert list(coordinator.stops()) == [unit.lease]
        watched = Watched(unit.process.pid, unit.started)
        assert watched.wait_end(30.0), "nobody ended the unit"
        watched.close()
        assert coordinator.desk.statistics().active_workers == 1
        stranger.end()
        coordinator.finish(unit)
        second = coordinator.start(coordinator.granted(), 150)
        coordinator.finish(second)


def test_a_limit_that_changes_is_in_force_at_once(tmp_path: Path) -> None:
    """All are told of it: what no unit can have any more none is promised, and what there is more is used."""
    with a_full_house(tmp_path) as (coordinator, group):
        coordinator.say()
        assert coordinator.desk.limits.memory_limit_bytes == LIMIT
        for mib in (300, 600):
            group.limit(mib * MIB)
            seen = coordinator.sees("the limit", lambda now, mib=mib: now.memory_limit_bytes == mib * MIB)
            assert seen.memory_source == f"cgroup v{1 if 'memory/' in seen.memory_source else 2} {group.folder}"
            coordinator.say()
            assert coordinator.desk.limits.memory_limit_bytes == mib * MIB
            unit = coordinator.begin(1000)
            assert coordinator.desk.statistics().memory_reserved_bytes == mib * MIB
            coordinator.finish(unit)


def test_what_was_promised_is_known_to_the_next_scheduler(tmp_path: Path) -> None:
    """A promise that has grown is told, with who works on it, and is listed for a scheduler that we do not come back
    to; a lease without a worker is promised what was asked."""
    with a_world(tmp_path, total=4, per_user=4) as world:
        world.scheduler()
        coordinator = Coordinator(world, None)
        unit = coordinator.begin(60)
        assert not coordinator.claim(unit, 200)
        (listed,) = rendezvous.read_leases(rendezvous.client_files(world.data_dir / "run")[0])
        assert (listed[0], listed[1][5]) == (unit.lease, 200 * MIB)
        before = coordinator.desk.statistics()
        unit.take(100)
        world.kill_scheduler()
        seen = coordinator.sees(
            "the same promise", lambda now: now.memory_taken_bytes < now.memory_used_bytes - 90 * MIB
        )
        assert seen.memory_reserved_bytes == before.memory_reserved_bytes == 200 * MIB
        coordinator.finish(unit)
        assert coordinator.desk.statistics().memory_reserved_bytes == 0
