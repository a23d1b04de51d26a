"""Measure what this machine gives us: memory, cores, room on the disk, and what others take of it.

Rule: measures and never decides. Limits of containers (cgroup v1 and v2) count wherever they stand on the way up,
because the machine's own numbers are not ours inside one. Only a `LoadMeter` and a `MemoryMeter` remember anything:
what they counted, or where they looked, before.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.policy.pressure import Ceiling
from engine.policy.scaling import Load
from engine.processes import CpuUse, children, cpu_use, private_bytes

_PROC = Path("/proc")
_CGROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
_STAT = Path("/proc/stat")
_PRESSURE = Path("/proc/pressure/memory")
_MEMINFO = Path("/proc/meminfo")
#: Left to the rest of the machine when nothing else limits us: a tenth, and never less than the system and its
#: services need on a small server.
_RESERVE_SHARE, _RESERVE_BYTES = 0.10, 256 * 1024**2
#: Limits are looked for anew so often: operators change them by hand, and looking costs more than reading what is used.
_LOOK_FOR_LIMITS_SECONDS = 1.0
#: A tree of processes is followed so far down: `tesseract` is one, and whatever forks without end is for the caps of
#: its group to catch.
_MOST_HELPERS = 64
_OF_MACHINE = "physical memory less a reserve"
#: cgroup v1 writes "no limit" as the largest page-aligned 64-bit number.
_V1_UNLIMITED = 2**62
#: By version. Beyond memory.high nobody is killed, but all are held up until they stand still (cgroup-v2.rst).
_LIMIT_FILES = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
#: Cores are counted no more often than this: processor time comes in ticks of 10 ms, and differences over less than a
#: second are mostly rounding.
_LEAST_SECONDS = 1.0
#: What a helper of a worker (`tesseract`) uses shows as ours only when the worker has waited for it; until then it
#: looks like somebody else's. The surplus is set against what others seem to use later. A page of recognition takes
#: seconds; at worst half a minute of somebody's single core stays hidden.
_MOST_CREDIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Memory now, in bytes, as the narrowest limit sees it. Cache that can be dropped counts as available."""

    used_bytes: int
    available_bytes: int


def memory_limit(setting_bytes: int | None) -> tuple[int, str]:
    """The memory that all of us together may use, in bytes, and where that comes from: the narrowest there is."""
    physical, _ = _machine_memory()
    found = [] if setting_bytes is None else [(setting_bytes, "NIGHTMILL_MEMORY_LIMIT")]
    group = _narrowest_memory_group(_CGROUPS, _MOUNT, physical)
    if group is not None:
        found.append((group[0], f"cgroup v{group[1]} {group[2]}"))
    return min([*found, (_less_reserve(physical), _OF_MACHINE)], key=lambda one: one[0])


def machine_limit() -> int:
    """The memory that the machine has, less a reserve, in bytes. Groups may have less, and are changed while we run."""
    return _less_reserve(_machine_memory()[0])


def read_memory() -> Reading:
    """What is used and what is available, by the narrowest cgroup limit, else by the machine."""
    return _memory_of(_narrowest_memory_group(_CGROUPS, _MOUNT, _machine_memory()[0]))


def cpu_limit() -> int:
    """Cores that we can really use, at least 1: what affinity allows, cut by every cgroup quota on the way up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for version, group in _groups("cpu", _CGROUPS, _MOUNT):
        quota = _cpu_quota(group, version)
        if quota is not None:
            # Rounded up: 1.5 cores keep two workers busy three quarters of the time, one would waste a third.
            cores = min(cores, math.ceil(quota))
    return max(1, cores)


class MemoryMeter:
    """What is used under every ceiling that binds us: the limit that was set, against what our own processes hold;
    each limited group that one of them is in, and all groups above it; and the machine less its reserve.
    """

    def __init__(self) -> None:
        self._groups: dict[Path, tuple[int, int]] = {}
        self._looked_at: float | None = None
        self._looked_for: tuple[int, ...] = ()

    def read(self, now_seconds: float, limit_bytes: int, held_bytes: int, leaders: Collection[int]) -> list[Ceiling]:
        """One reading, the limit that was set first.

        held_bytes  what our processes hold together; of a coordinator what it has taken since it is one
        leaders     a process id for each set of processes that stays in one group: a coordinator's workers are where
                    it is
        """
        wanted = tuple(leaders)
        if (
            self._looked_at is None
            or now_seconds - self._looked_at >= _LOOK_FOR_LIMITS_SECONDS
            or wanted != self._looked_for
        ):
            self._looked_at, self._looked_for = now_seconds, wanted
            self._groups = _limited_groups(wanted)
        found = []
        for group, (limit, version) in self._groups.items():
            used = _group_usage(group, version)
            if used is not None:
                found.append(Ceiling(limit_bytes=limit, used_bytes=used, source=f"cgroup v{version} {group}"))
        total, available = _machine_memory()
        found.append(Ceiling(limit_bytes=_less_reserve(total), used_bytes=total - available, source=_OF_MACHINE))
        # A limit that no group and no machine sets was set by somebody.
        source = next((one.source for one in found if one.limit_bytes == limit_bytes), "NIGHTMILL_MEMORY_LIMIT")
        return [Ceiling(limit_bytes=limit_bytes, used_bytes=held_bytes, source=source), *found]


def held_bytes(pid: int) -> int:
    """What would come back with the end of this process and of the helpers that it has started, in bytes.

    Raises ProcessLookupError when it has ended.
    """
    total, known, following = private_bytes(pid), {pid}, children(pid)
    while following and len(known) <= _MOST_HELPERS:
        helper = following.pop()
        if helper not in known:
            known.add(helper)
            following += children(helper)
            try:
                total += private_bytes(helper)
            except ProcessLookupError:
                continue
    return total


class LoadMeter:
    """How many cores others keep busy, and how short memory is.

    "Others" is whoever is not in the process ids that are given, nor a helper that one of those has waited for. A
    process that was ours stays ours until it ends. Where quotas bind us, what counts is what leaves us least: the
    machine with all that runs on it, or a group with all that runs in it.

    Steal (time that a hypervisor gave to other machines) is not counted: it grows when we want to run and goes when we
    do not, so that giving way to it would swing for ever and help nobody on this machine.
    """

    def __init__(self) -> None:
        self._counted_at: float | None = None
        self._busy: dict[Hashable, _Busy] = {}
        self._ours: dict[int, CpuUse] = {}
        #: By ceiling: processor seconds, at most 0, that became ours later than they were counted.
        self._credit: dict[Hashable, float] = {}

    def look(self, now_seconds: float, pids: Collection[int], memory_used_share: float | None = None) -> Load:
        """One look. pids: our own processes, whether they still live or not. The share is whoever reads memory's.

        The cores are None at the first look and less than a second after the last one that had them.
        """
        found = _narrowest_memory_group(_CGROUPS, _MOUNT, _machine_memory()[0])
        cores = self._count_cores(now_seconds, pids)
        return Load(
            now_seconds=now_seconds,
            cores=None if cores is None else cores[0],
            foreign_cores=None if cores is None else cores[1],
            memory_used_share=memory_used_share,
            memory_pressure=_pressure_of(found),
        )

    def _count_cores(self, now: float, pids: Collection[int]) -> tuple[int, float] | None:
        """(cores that we could use alone, cores that others kept busy) by the ceiling that leaves us least."""
        if self._counted_at is not None and now - self._counted_at < _LEAST_SECONDS:
            return None
        seconds = None if self._counted_at is None else now - self._counted_at
        busy = _busy_now()
        ours = self._ours_since(pids, seconds or 0.0)
        found: list[tuple[float, int, float]] = []
        for ceiling, after in busy.items():
            before = self._busy.get(ceiling)
            if before is None or seconds is None:
                continue
            foreign = after.seconds - before.seconds - ours + self._credit.get(ceiling, 0.0)
            self._credit[ceiling] = max(-_MOST_CREDIT_SECONDS, min(0.0, foreign))
            foreign_cores = max(0.0, foreign) / seconds
            found.append((after.cores - foreign_cores, after.cores, foreign_cores))
        self._counted_at, self._busy = now, busy
        return min(found)[1:] if found else None

    def _ours_since(self, pids: Collection[int], seconds: float) -> float:
        """Processor seconds that our processes have used since the look before."""
        used, alive = 0.0, {}
        for pid in {*pids, *self._ours}:
            try:
                use = cpu_use(pid)
            except ProcessLookupError:
                continue
            before = self._ours.get(pid)
            if before is not None and before.started == use.started:
                used += use.seconds - before.seconds
            elif pid in pids:
                # New here, and mostly new at all: a worker is listed when it starts.
                used += min(use.seconds, seconds)
            else:
                # A stranger was given the id of one of ours that has ended.
                continue
            alive[pid] = use
        for pid, gone in self._ours.items():
            if not _same(alive.get(pid), gone) and _same(alive.get(gone.parent), self._ours.get(gone.parent)):
                # Its parent has waited for it, and with that took over its whole life; of which all but the end was
                # counted before.
                used -= gone.seconds
        self._ours = alive
        return max(0.0, used)


def disk_free_bytes(path: Path) -> int:
    """Room for an ordinary account on the file system of `path`, or of its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


@dataclass(frozen=True, slots=True, kw_only=True)
class _Busy:
    """What a ceiling allows, and the processor seconds that everybody beneath it has used since some beginning."""

    cores: int
    seconds: float


def _same(one: CpuUse | None, other: CpuUse | None) -> bool:
    return one is not None and other is not None and one.started == other.started


def _busy_now() -> dict[Hashable, _Busy]:
    """For the machine (under the cores that we may run on) and for each group with a quota (under its folder)."""
    found: dict[Hashable, _Busy] = {}
    allowed = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
    seconds = _machine_busy_seconds(allowed)
    if seconds is not None:
        found[allowed] = _Busy(cores=len(allowed) or os.cpu_count() or 1, seconds=seconds)
    for version, group in _groups("cpu", _CGROUPS, _MOUNT):
        quota, usage = _cpu_quota(group, version), _cpu_usage(group, version)
        if quota is not None and usage is not None:
            # Rounded up as cpu_limit does: the budget is, too, and half a core must not look like somebody's load.
            found[group] = _Busy(cores=math.ceil(quota), seconds=usage)
    return found


def _machine_busy_seconds(allowed: frozenset[int]) -> float | None:
    """Time that these cores (all, where the table does not name them) were busy with processes and interrupts."""
    try:
        lines = _STAT.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        times = psutil.cpu_times()
        return float(times.user + times.system + getattr(times, "nice", 0.0))
    ticks: dict[str, int] = {}
    for line in lines:
        name, *fields = line.split()
        if name.startswith("cpu") and len(fields) >= 7:
            user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
            ticks[name] = user + nice + system + irq + softirq
    names = [f"cpu{number}" for number in allowed]
    if not names or not all(name in ticks for name in names):
        # In some containers the table is made up, and its cores have other numbers than the kernel's.
        names = ["cpu"]
    if names[0] not in ticks:
        return None
    return sum(ticks[name] for name in names) / os.sysconf("SC_CLK_TCK")


def _cpu_usage(group: Path, version: int) -> float | None:
    """Processor seconds that a group has used. With v1 they are kept by another controller, often in another tree."""
    if version == 2:
        try:
            lines = (group / "cpu.stat").read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith("usage_usec ")), None)
    beneath = group.relative_to(_MOUNT).parts[1:]
    for folder in (group, _MOUNT.joinpath("cpuacct", *beneath)):
        nanoseconds = _read_number(folder / "cpuacct.usage")
        if nanoseconds is not None:
            return nanoseconds / 1e9
    return None


def _less_reserve(physical: int) -> int:
    reserve = max(int(physical * _RESERVE_SHARE), _RESERVE_BYTES)
    return max(physical - reserve, physical // 2)


def _machine_memory() -> tuple[int, int]:
    """(bytes that the machine has, bytes that are available). psutil says the same in five times the time."""
    try:
        with open(_MEMINFO, "rb", buffering=0) as file:
            fields = dict(line.split(b":") for line in file.read(4096).splitlines() if line.startswith(b"Mem"))
        return int(fields[b"MemTotal"].split()[0]) * 1024, int(fields[b"MemAvailable"].split()[0]) * 1024
    except (OSError, LookupError, ValueError):
        machine = psutil.virtual_memory()
        return int(machine.total), int(machine.available)


def _limited_groups(pids: Collection[int]) -> dict[Path, tuple[int, int]]:
    """The groups with a memory limit that these processes are in, and those above them: (limit in bytes, version)."""
    physical, _ = _machine_memory()
    return {
        group: (limit, version)
        for pid in pids
        for limit, version, group in _memory_limits(_PROC / str(pid) / "cgroup", _MOUNT, physical)
    }


def _memory_of(found: tuple[int, int, Path] | None) -> Reading:
    """What the narrowest group says, else the machine."""
    total, available = _machine_memory()
    if found is not None:
        limit, version, group = found
        used = _group_usage(group, version)
        if used is not None:
            return Reading(used_bytes=used, available_bytes=max(0, min(limit - used, available)))
    return Reading(used_bytes=total - available, available_bytes=available)


def _pressure_of(found: tuple[int, int, Path] | None) -> float | None:
    """Share of the last ten seconds in which some process waited for memory; None: the kernel does not say."""
    place = found[2] / "memory.pressure" if found is not None and found[1] == 2 else _PRESSURE
    try:
        fields = dict(field.split("=") for field in place.read_text(encoding="utf-8").splitlines()[0].split()[1:])
        return float(fields["avg10"]) / 100
    except (OSError, ValueError, LookupError):
        return None


def _narrowest_memory_group(cgroups: Path, mount: Path, physical: int) -> tuple[int, int, Path] | None:
    """(limit in bytes, cgroup version, folder) of the smallest memory limit on the way up; None: there is none."""
    return min(_memory_limits(cgroups, mount, physical), key=lambda found: found[0], default=None)


def _memory_limits(cgroups: Path, mount: Path, physical: int) -> Iterator[tuple[int, int, Path]]:
    """(limit in bytes, cgroup version, folder) of each group on the way up that has less than the machine."""
    for version, group in _groups("memory", cgroups, mount):
        found = [_read_number(group / name) for name in _LIMIT_FILES[version]]
        limit = min((limit for limit in found if limit is not None), default=physical)
        if limit < min(physical, _V1_UNLIMITED):
            yield limit, version, group


def _groups(controller: str, cgroups: Path, mount: Path) -> list[tuple[int, Path]]:
    """Our groups of a controller and all above them: (version, folder).

    Inside a container the path that the kernel names may not be mounted; then the mount's own root is ours.
    """
    try:
        lines = cgroups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[tuple[int, Path]] = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            version, roots = 2, [mount, mount / "unified"]
        elif controller in controllers.split(","):
            version, roots = 1, [mount / controllers, mount / controller]
        else:
            continue
        root = next((root for root in roots if root.is_dir()), None)
        if root is None:
            continue
        group = root / name.lstrip("/")
        if ".." in group.parts or not group.is_dir():
            group = root
        found += [(version, folder) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return found


def _group_usage(group: Path, version: int) -> int | None:
    """Bytes in use in a group, without the file cache that the kernel drops when memory is short."""
    usage = _read_number(group / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
    if usage is None:
        return None
    names = {"inactive_file", "active_file", "slab_reclaimable"}
    if version == 1:
        names = {"total_inactive_file", "total_active_file"}
    try:
        lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return usage
    cache = sum(int(line.split()[1]) for line in lines if line.split()[0] in names)
    return max(0, usage - cache)


def _cpu_quota(group: Path, version: int) -> float | None:
    """Cores that a group's quota allows; None: it has none."""
    try:
        if version == 2:
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError):
        return None


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
