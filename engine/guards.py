"""Measure what this machine gives us: memory, cores, room on the disk.

Rule: measures and never decides. Limits of containers (cgroup v1 and v2) count wherever they stand on the way up,
because the machine's own numbers are not ours inside one.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
#: Left to the rest of the machine when nothing else limits us: a tenth, and never less than the system and its
#: services need on a small server.
_RESERVE_SHARE, _RESERVE_BYTES = 0.10, 256 * 1024**2
#: cgroup v1 writes "no limit" as the largest page-aligned 64-bit number.
_V1_UNLIMITED = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Memory now, in bytes, as the narrowest limit sees it. Cache that can be dropped counts as available."""

    used_bytes: int
    available_bytes: int


def memory_limit(setting_bytes: int | None) -> tuple[int, str]:
    """The memory that all of us together may use, in bytes, and where that number comes from."""
    if setting_bytes is not None:
        return setting_bytes, "NIGHTMILL_MEMORY_LIMIT"
    physical = psutil.virtual_memory().total
    found = _narrowest_memory_group(_CGROUPS, _MOUNT, physical)
    if found is not None:
        limit, version, group = found
        return limit, f"cgroup v{version} {group}"
    reserve = max(int(physical * _RESERVE_SHARE), _RESERVE_BYTES)
    return max(physical - reserve, physical // 2), "physical memory less a reserve"


def read_memory() -> Reading:
    """What is used and what is available, by the narrowest cgroup limit, else by the machine."""
    machine = psutil.virtual_memory()
    found = _narrowest_memory_group(_CGROUPS, _MOUNT, machine.total)
    if found is None:
        return Reading(used_bytes=machine.total - machine.available, available_bytes=machine.available)
    limit, version, group = found
    used = _group_usage(group, version)
    if used is None:
        return Reading(used_bytes=machine.total - machine.available, available_bytes=machine.available)
    return Reading(used_bytes=used, available_bytes=max(0, min(limit - used, machine.available)))


def cpu_limit() -> int:
    """Cores that we can really use, at least 1: what affinity allows, cut by every cgroup quota on the way up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for version, group in _groups("cpu", _CGROUPS, _MOUNT):
        quota = _cpu_quota(group, version)
        if quota is not None:
            # Rounded up: 1.5 cores keep two workers busy three quarters of the time, one would waste a third.
            cores = min(cores, math.ceil(quota))
    return max(1, cores)


def disk_free_bytes(path: Path) -> int:
    """Room for an ordinary account on the file system of `path`, or of its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _narrowest_memory_group(cgroups: Path, mount: Path, physical: int) -> tuple[int, int, Path] | None:
    """(limit in bytes, cgroup version, folder) of the smallest memory limit on the way up; None: there is none."""
    best: tuple[int, int, Path] | None = None
    for version, group in _groups("memory", cgroups, mount):
        limit = _read_number(group / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if limit is None or limit >= min(physical, _V1_UNLIMITED):
            continue
        if best is None or limit < best[0]:
            best = (limit, version, group)
    return best


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
