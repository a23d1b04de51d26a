"""What the guards read, from made-up cgroup trees and from this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from engine import guards, processes
from engine.guarding import Guard, Looker, Sight, View
from engine.guards import LoadMeter
from engine.policy.book import Book
from engine.policy.pressure import Ceiling
from engine.policy.scaling import Load
from engine.policy.tokens import Limits
from engine.processes import CpuUse, private_bytes
from tests.mill import killed_at_the_end, wait_until

#: Keeps one core busy until it is killed.
BURN = "while True: pass"
#: The same through short-lived children that are waited for, as a worker that calls `tesseract` does.
BURN_BY_CHILDREN = """
import subprocess, sys, time
while True:
    subprocess.run([sys.executable, "-S", "-c", "import time\\nwhile time.process_time() < 0.3: pass"])
"""
GB = 1024**3


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cgroup mount, and a /proc/self/cgroup that names a v1 group and a v2 group in it."""
    mount = tmp_path / "cgroup"
    (mount / "memory" / "a" / "b").mkdir(parents=True)
    (mount / "cpu" / "a").mkdir(parents=True)
    (mount / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "self").write_text("4:memory:/a/b\n1:cpu:/a\n0::/outer/inner\n")
    monkeypatch.setattr(guards, "_MOUNT", mount)
    monkeypatch.setattr(guards, "_CGROUPS", tmp_path / "self")
    return mount


def test_the_setting_narrows_what_there_is(tree: Path) -> None:
    """More than a group or the machine has it cannot give."""
    assert guards.memory_limit(12345) == (12345, "NIGHTMILL_MEMORY_LIMIT")
    assert guards.memory_limit(2**50) == (guards.machine_limit(), "physical memory less a reserve")
    (tree / "outer" / "memory.max").write_text("5000\n")
    assert guards.memory_limit(12345) == (5000, f"cgroup v2 {tree / 'outer'}")


def test_without_any_limit_a_reserve_is_left(tree: Path) -> None:
    """On a machine without container limits the rest of it keeps a tenth, at least 256 MiB."""
    (tree / "memory" / "a" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tree / "outer" / "memory.max").write_text("max\n")
    limit, source = guards.memory_limit(None)
    assert source == "physical memory less a reserve"
    assert 0 < limit <= guards.psutil.virtual_memory().total - 256 * 1024**2


@pytest.mark.parametrize(
    ("file", "version"),
    [
        ("memory/a/memory.limit_in_bytes", 1),
        ("memory/a/b/memory.limit_in_bytes", 1),
        ("outer/memory.max", 2),
        ("outer/memory.high", 2),
    ],
)
def test_a_group_on_the_way_up_limits_us(tree: Path, file: str, version: int) -> None:
    """Own group or a parent, v1 or v2: its limit counts, and the answer names it."""
    (tree / file).write_text(f"{64 * 1024**2}\n")
    limit, source = guards.memory_limit(None)
    assert limit == 64 * 1024**2
    assert source == f"cgroup v{version} {(tree / file).parent}"


def test_the_smallest_limit_counts(tree: Path) -> None:
    """Of several limits the narrowest is taken, of one group or of two."""
    (tree / "outer" / "inner" / "memory.max").write_text("max\n")
    (tree / "outer" / "inner" / "memory.high").write_text(str(85 * 1024**2))
    assert guards.memory_limit(None) == (85 * 1024**2, f"cgroup v2 {tree / 'outer' / 'inner'}")
    (tree / "memory" / "a" / "memory.limit_in_bytes").write_text(str(90 * 1024**2))
    (tree / "outer" / "memory.max").write_text(str(80 * 1024**2))
    assert guards.memory_limit(None)[0] == 80 * 1024**2


def test_cache_that_can_be_dropped_is_not_used(tree: Path) -> None:
    """Usage is what remains without the file cache; available is what the limit leaves."""
    group = tree / "outer"
    (group / "memory.max").write_text("1000000")
    (group / "memory.current").write_text("900000")
    (group / "memory.stat").write_text("anon 1\ninactive_file 300000\nactive_file 100000\nslab_reclaimable 50000\n")
    assert guards.read_memory() == guards.Reading(used_bytes=450_000, available_bytes=550_000)


def test_every_ceiling_is_read(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit that was set, each limited group of our processes once, and the machine; limits are looked for again
    when other processes are here, and after a second."""
    monkeypatch.setattr(guards, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(guards, "_MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 6291456 kB\n")
    for pid, groups in ((7, "0::/outer/inner\n"), (8, "4:memory:/a/b\n0::/outer\n")):
        (tmp_path / "proc" / str(pid)).mkdir(parents=True)
        (tmp_path / "proc" / str(pid) / "cgroup").write_text(groups)
    outer, b = tree / "outer", tree / "memory" / "a" / "b"
    (outer / "memory.max").write_text(f"{3 * GB}\n")
    (outer / "memory.current").write_text("900")
    (outer / "memory.stat").write_text("active_file 200\n")
    meter = guards.MemoryMeter()
    machine = (8 * GB - 8 * GB // 10, 2 * GB, "physical memory less a reserve")
    ours, group = (2 * GB, 500, "NIGHTMILL_MEMORY_LIMIT"), (3 * GB, 700, f"cgroup v2 {outer}")

    def read(now: float, *pids: int, limit: int = 2 * GB) -> list[tuple[int, int, str]]:
        return [
            (one.limit_bytes, one.used_bytes, one.source)
            for one in meter.read(now, limit, held_bytes=500, leaders=pids)
        ]

    assert read(1.0, 7) == [ours, group, machine]
    (b / "memory.limit_in_bytes").write_text(str(GB))
    (b / "memory.usage_in_bytes").write_text("600")
    assert read(1.1, 7) == [ours, group, machine]
    narrow = (GB, 600, f"cgroup v1 {b}")
    assert read(1.2, 7, 8) == [ours, group, narrow, machine]
    assert read(1.3, 7, 8, limit=GB)[0] == (GB, 500, narrow[2]), "it is set by the group"
    (outer / "memory.max").write_text("max\n")
    (outer / "memory.current").write_text("1000")
    assert read(1.4, 7, 8)[1] == (3 * GB, 800, group[2])
    assert read(2.3, 7, 8) == [ours, narrow, machine]


def test_what_a_process_holds_is_its_own_and_its_helpers() -> None:
    """Not what it maps of files; of a zombie nothing is left."""
    held = "import sys, subprocess\nheld = b'x' * (20 << 20)\n"
    child = f"{held}\nprint(flush=True)\nsys.stdin.read()"
    parent = f"{held}\nsubprocess.run([sys.executable, '-S', '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with killed_at_the_end(process):
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        alone = processes.private_bytes(process.pid)
        assert 20 << 20 <= alone <= min(40 << 20, processes.resident_bytes(process.pid))
        assert 20 << 20 <= guards.held_bytes(process.pid) - alone <= 40 << 20
        process.stdin.close()
        process.stdin = None
        wait_until(lambda: not processes.is_alive(process.pid, processes.start_time(process.pid)), "a zombie")
        assert guards.held_bytes(process.pid) == 0
    with pytest.raises(ProcessLookupError):
        guards.held_bytes(process.pid)


def test_a_cpu_quota_cuts_the_cores(tree: Path) -> None:
    """Half a core's quota leaves one worker; no quota leaves what affinity allows."""
    free = guards.cpu_limit()
    assert free >= 1
    (tree / "outer" / "cpu.max").write_text("50000 100000\n")
    assert guards.cpu_limit() == 1
    (tree / "outer" / "cpu.max").write_text("max 100000\n")
    assert guards.cpu_limit() == free
    (tree / "cpu" / "a" / "cpu.cfs_quota_us").write_text("100000\n")
    (tree / "cpu" / "a" / "cpu.cfs_period_us").write_text("100000\n")
    assert guards.cpu_limit() == 1


def test_disk_room_is_read_of_a_path_that_is_not_there_yet(tmp_path: Path) -> None:
    """A folder still to be made has the room of the place where it will be."""
    free = guards.disk_free_bytes(tmp_path / "not" / "yet")
    assert free > 0


# --- what others keep busy ---


class Machine:
    """A made-up machine of two cores and the processes on it: what its /proc/stat and its process table say."""

    def __init__(self, stat: Path) -> None:
        self.stat = stat
        self.seconds = 100.0
        self.processes: dict[int, CpuUse] = {}
        self.run(0.0)

    def run(self, busy_seconds: float) -> None:
        """Processes, of whomever, have used so much more."""
        self.seconds += busy_seconds
        half = round(self.seconds * 50)
        core = f"{half} 0 0 1000 7 0 0 900000 0 0"
        self.stat.write_text(f"cpu  {2 * half} 0 0 2000 14 0 0 900000 0 0\ncpu0 {core}\ncpu1 {core}\nintr 5 1 2\n")

    def process(self, pid: int, seconds: float, *, parent: int = 1, started: float = 7.0) -> None:
        """A process has used so much in all, with the children that it has waited for."""
        self.processes[pid] = CpuUse(started=started, parent=parent, seconds=seconds)

    def cpu_use(self, pid: int) -> CpuUse:
        try:
            return self.processes[pid]
        except KeyError:
            raise ProcessLookupError from None


@pytest.fixture
def machine(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made_up = Machine(tmp_path / "stat")
    monkeypatch.setattr(guards, "_STAT", made_up.stat)
    monkeypatch.setattr(guards, "_PRESSURE", tmp_path / "pressure")
    monkeypatch.setattr(guards, "cpu_use", made_up.cpu_use)
    monkeypatch.setattr(guards.os, "sched_getaffinity", lambda _: {0, 1})
    return made_up


def cores_of(load: Load) -> tuple[int, float] | None:
    if load.cores is None or load.foreign_cores is None:
        return None
    return load.cores, round(load.foreign_cores, 3)


def test_the_first_look_knows_no_load_and_neither_does_one_too_soon(machine: Machine) -> None:
    """A load is a difference; and one over less than a second is mostly rounding."""
    meter = LoadMeter()
    assert cores_of(meter.look(10.0, [])) is None
    machine.run(0.5)
    assert cores_of(meter.look(10.9, [])) is None
    assert cores_of(meter.look(11.0, [])) == (2, 0.5)
    assert cores_of(meter.look(13.0, [])) == (2, 0.0)


def test_what_our_processes_use_is_not_others_load(machine: Machine) -> None:
    """Of 1.7 busy cores 0.9 and 0.5 are ours; the rest is not."""
    machine.process(50, 3.0)
    machine.process(51, 400.0)
    meter = LoadMeter()
    meter.look(0.0, [50, 51])
    machine.run(1.7)
    machine.process(50, 3.9)
    machine.process(51, 400.5)
    assert cores_of(meter.look(1.0, [50, 51])) == (2, 0.3)


def test_waiting_for_disks_and_for_the_hypervisor_is_no_load(machine: Machine) -> None:
    """Idle, iowait and steal are not counted; user, nice, system and both kinds of interrupts are."""
    meter = LoadMeter()
    machine.stat.write_text("cpu  1 2 3 4 5 6 7 8 9 9\ncpu0 1 2 3 4 5 6 7 8 9 9\ncpu1 0 0 0 0 0 0 0 0 0 0\n")
    meter.look(0.0, [])
    machine.stat.write_text("cpu  1 2 3 4 5 6 7 8 9 9\ncpu0 11 22 33 44 55 66 77 88 99 99\ncpu1 0 0 0 0 9 0 0 9 0 0\n")
    assert cores_of(meter.look(10.0, [])) == (2, round((10 + 20 + 30 + 60 + 70) / 100 / 10, 3))


def test_only_cores_that_we_may_run_on_count(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others do on cores that are forbidden to us takes nothing from us."""
    monkeypatch.setattr(guards.os, "sched_getaffinity", lambda _: {1})
    meter = LoadMeter()
    machine.stat.write_text("cpu 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0\n")
    meter.look(0.0, [])
    machine.stat.write_text("cpu 125 0 0 0 0 0 0\ncpu0 100 0 0 0 0 0 0\ncpu1 25 0 0 0 0 0 0\n")
    assert cores_of(meter.look(1.0, [])) == (1, 0.25)
    monkeypatch.setattr(guards.os, "sched_getaffinity", lambda _: {0, 1})
    assert cores_of(meter.look(2.0, [])) is None, "other cores than before: there is no difference to be had"


def test_a_made_up_table_of_a_container_counts_as_a_whole(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some containers number their cores anew; then the sum of the table is what there is."""
    monkeypatch.setattr(guards.os, "sched_getaffinity", lambda _: {6, 7})
    meter = LoadMeter()
    meter.look(0.0, [])
    machine.run(0.8)
    assert cores_of(meter.look(1.0, [])) == (2, 0.8)


def test_a_child_that_was_waited_for_is_not_counted_twice(machine: Machine) -> None:
    """The parent takes over its whole life, of which all but the end was counted while it ran."""
    machine.process(50, 10.0)
    machine.process(51, 200.0, parent=50)
    meter = LoadMeter()
    meter.look(0.0, [50, 51])
    machine.run(1.5)
    del machine.processes[51]
    machine.process(50, 10.0 + 0.1 + 200.9)
    assert cores_of(meter.look(1.0, [50])) == (2, 0.5)
    machine.run(1.0)
    machine.process(50, 211.0 + 0.2)
    assert cores_of(meter.look(2.0, [50])) == (2, 0.8)


def test_one_whose_parent_is_gone_too_takes_nothing_with_it(machine: Machine) -> None:
    """Killed with its coordinator: nobody took over its seconds, so that they are set off against nobody."""
    machine.process(50, 10.0)
    machine.process(51, 200.0, parent=50)
    machine.process(52, 5.0)
    meter = LoadMeter()
    meter.look(0.0, [50, 51, 52])
    del machine.processes[50], machine.processes[51]
    machine.run(1.0)
    machine.process(52, 5.25)
    assert cores_of(meter.look(1.0, [50, 51, 52])) == (2, 0.75)


def test_a_process_stays_ours_until_it_ends(machine: Machine) -> None:
    """Taken off the list before it is gone, as workers that are being retired are."""
    machine.process(50, 10.0)
    meter = LoadMeter()
    meter.look(0.0, [50])
    machine.run(1.0)
    machine.process(50, 11.0)
    assert cores_of(meter.look(1.0, [])) == (2, 0.0)
    machine.run(1.0)
    machine.process(50, 3.0, started=8.0)
    assert cores_of(meter.look(2.0, [])) == (2, 1.0), "a stranger with the same id is not ours"
    machine.run(1.0)
    machine.process(50, 4.0, started=8.0)
    assert cores_of(meter.look(3.0, [])) == (2, 1.0)


def test_one_that_is_new_brings_no_more_than_it_can_have_used_since(machine: Machine) -> None:
    """A coordinator that comes with an hour behind it does not hide an hour of others' load."""
    meter = LoadMeter()
    meter.look(0.0, [])
    machine.process(50, 3600.0)
    machine.process(51, 0.25)
    machine.run(2.0)
    assert cores_of(meter.look(1.0, [50, 51])) == (2, 0.75)
    machine.run(2.0)
    machine.process(50, 3600.5)
    assert cores_of(meter.look(2.0, [50, 51])) == (2, 1.5)


def test_what_became_ours_late_is_set_against_later_looks(machine: Machine) -> None:
    """A worker's helper runs for three seconds: seen as somebody's, then known as ours, and on average nobody's."""
    machine.process(50, 0.0)
    meter = LoadMeter()
    meter.look(0.0, [50])
    seen, now = [], 0.0
    for round_number in range(1, 11):
        for second in range(3):
            now += 1.0
            machine.run(1.0)
            if second == 2:
                machine.process(50, 3.0 * round_number)
            seen.append(cores_of(meter.look(now, [50])))
    assert seen[:3] == [(2, 1.0), (2, 1.0), (2, 0.0)]
    assert seen[3:] == [(2, 0.0)] * 27


def test_little_can_be_hidden_by_what_became_ours_late(machine: Machine) -> None:
    """However long a helper ran, after half a minute others are seen again."""
    machine.process(50, 0.0)
    meter = LoadMeter()
    meter.look(0.0, [50])
    machine.process(50, 100_000.0)
    meter.look(1.0, [50])
    seen = []
    for second in range(2, 34):
        machine.run(1.0)
        seen.append(cores_of(meter.look(float(second), [50])))
    assert seen == [(2, 0.0)] * 30 + [(2, 1.0)] * 2


@pytest.mark.parametrize("usage", ["cpu.stat", "cpu/a/cpuacct.usage", "cpuacct/a/cpuacct.usage"])
def test_a_group_with_a_quota_counts_where_it_leaves_less(machine: Machine, tree: Path, usage: str) -> None:
    """v2, v1 with both controllers in one tree, v1 with one in each: others in our group take from our quota."""
    if usage == "cpu.stat":
        (tree / "outer" / "cpu.max").write_text("150000 100000\n")
        place, before, after = tree / "outer" / usage, "usage_usec 7000000", "usage_usec 7900000"
    else:
        (tree / "cpu" / "a" / "cpu.cfs_quota_us").write_text("150000\n")
        (tree / "cpu" / "a" / "cpu.cfs_period_us").write_text("100000\n")
        place, before, after = tree / usage, "7000000000", "7900000000"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"{before}\nuser_usec 1\n" if usage == "cpu.stat" else before)
    machine.process(50, 0.0)
    meter = LoadMeter()
    meter.look(0.0, [50])
    place.write_text(f"{after}\nuser_usec 1\n" if usage == "cpu.stat" else after)
    machine.process(50, 0.3)
    machine.run(0.4)
    # One and a half cores count as two, as they do in cpu_limit; 0.6 of the group is not ours, and 0.1 of the machine.
    assert cores_of(meter.look(1.0, [50])) == (2, 0.6)
    machine.run(1.5)
    assert cores_of(meter.look(2.0, [50])) == (2, 1.5)


def test_pressure_is_read_with_every_look(machine: Machine, tree: Path, tmp_path: Path) -> None:
    """Of the group that limits us, else of the machine; None where the kernel keeps none. The share comes from the
    guard."""
    meter = LoadMeter()
    assert meter.look(0.0, []).memory_pressure is None
    (tmp_path / "pressure").write_text("some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=90.00\n")
    assert meter.look(0.1, []).memory_pressure == 0.125
    group = tree / "outer"
    (group / "memory.max").write_text("1000000")
    (group / "memory.pressure").write_text("some avg10=3.00 avg60=1.00 avg300=0.00 total=1\n")
    load = meter.look(0.2, [], 0.8)
    assert (load.memory_used_share, load.memory_pressure) == (0.8, 0.03)
    # Groups of v1 keep no pressure: a narrower one of those leaves the machine's.
    (tree / "memory" / "a" / "memory.limit_in_bytes").write_text("500000")
    load = meter.look(0.3, [])
    assert (load.memory_used_share, load.memory_pressure) == (None, 0.125)


# --- real processes ---


@contextmanager
def program(code: str) -> Iterator[subprocess.Popen[str]]:
    with killed_at_the_end(subprocess.Popen([sys.executable, "-c", code], text=True)) as process:
        yield process


def seconds_told_apart(pids: list[int], wanted: float) -> float:
    """Two meters look at one machine, and only one of them knows that these processes are ours: by how many processor
    seconds they differ, as soon as that is more than `wanted`. Whatever else runs here is the same for both.
    """
    knows, does_not = LoadMeter(), LoadMeter()
    difference, before = 0.0, time.monotonic()
    for meter in (knows, does_not):
        meter.look(before, [])

    def look() -> float | None:
        nonlocal difference, before
        now = time.monotonic()
        mine, others = knows.look(now, pids), does_not.look(now, [])
        if mine.foreign_cores is not None and others.foreign_cores is not None:
            assert mine.foreign_cores <= others.foreign_cores + 0.2, "what is ours can only lower what is others'"
            difference += (others.foreign_cores - mine.foreign_cores) * (now - before)
            before = now
        return difference if difference > wanted else None

    return wait_until(look, f"{wanted} processor seconds of ours that are not taken for others'")


def test_a_busy_process_is_others_load_until_it_is_known_as_ours() -> None:
    """One and the same program, seen by one that knows it and by one that does not."""
    with program(BURN) as busy:
        seconds_told_apart([busy.pid], 1.5)


def test_what_a_worker_has_waited_for_is_ours_as_well() -> None:
    """A program that works only through children: its own time is next to nothing."""
    with program(BURN_BY_CHILDREN) as worker:
        seconds_told_apart([worker.pid], 1.5)
        assert processes.cpu_seconds(worker.pid) < 0.5 * processes.cpu_use(worker.pid).seconds


def test_a_system_without_proc_is_asked_through_psutil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No /proc, no affinity, no groups: the same answers, from elsewhere."""
    for name in ("_STAT", "_CGROUPS", "_PRESSURE"):
        monkeypatch.setattr(guards, name, tmp_path / "absent")
    monkeypatch.setattr(processes, "_ON_LINUX", False)
    monkeypatch.delattr(guards.os, "sched_getaffinity")
    with program(BURN) as busy:
        seconds_told_apart([busy.pid], 1.5)


def test_what_a_program_held_before_it_was_a_coordinator_is_its_own(tmp_path: Path) -> None:
    """A product's program may hold more than the limit; what it takes later counts."""
    program = """
import sys
held = []
for _ in sys.stdin:
    held.append(bytearray(b"x") * (100 << 20))
    print(flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as product:
        assert product.stdin is not None
        assert product.stdout is not None
        product.stdin.write("\n")
        product.stdin.flush()
        product.stdout.readline()
        looker = Looker(tmp_path)
        view = View(limit_bytes=1 << 30, sessions={"1-1": product.pid}, leases={}, is_busy=False)

        def used() -> int:
            return looker.look(0.0, view).ceilings[0].used_bytes - private_bytes(os.getpid())

        assert abs(used()) < 20 << 20
        product.stdin.write("\n")
        product.stdin.flush()
        product.stdout.readline()
        assert 90 << 20 < used() < 120 << 20
        product.kill()


@pytest.mark.parametrize(("before", "after"), [(20 * GB, GB), (GB, 20 * GB)])
def test_what_a_limit_keeps_free_is_not_taken_of_another(before: int, after: int) -> None:
    """Of 20 GB a whole one is kept free: all that a limit of 1 GB has, until the next look at the machine."""
    limits = Limits(max_total_workers=20, max_workers_per_user=5, cpu_limit=2, memory_limit_bytes=before)
    book = Book(limits, epoch="a")
    guard = Guard(book)
    ceilings = [
        Ceiling(limit_bytes=before, used_bytes=GB // 10, source=""),
        Ceiling(limit_bytes=30 * GB, used_bytes=2 * GB, source="the machine"),
    ]
    view = View(limit_bytes=before, sessions={}, leases={}, is_busy=False)
    guard.note(0.0, view, Sight(ceilings=ceilings, used={}, idle={}))
    book.set_limits(replace(limits, memory_limit_bytes=after))
    guard.note_limit(after)
    # Above 20 GB a whole one is kept free, below 5 %.
    kept = GB if after > GB else GB * 5 // 100
    assert book.memory.free_bytes == after - kept - GB // 10
