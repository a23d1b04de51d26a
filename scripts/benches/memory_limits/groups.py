"""A memory limit of the kernel's own, for a program and all it starts: one cgroup, v1 or v2, made and removed here.

Rule: finds its place without the engine's code, because it is there to check what the engine believes. Only groups that
are made here are ever written to, emptied or removed; they are called nightmill-memory-<pid>-<n>.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

_PREFIX = "nightmill-memory-"
#: File cache, which the kernel drops before it kills anybody; with v1 the counts of a group and all beneath it.
_CACHE_NAMES = {
    1: {"total_inactive_file", "total_active_file"},
    2: {"inactive_file", "active_file", "slab_reclaimable"},
}
#: A killed process gives back its memory, and its group can be removed, within some milliseconds.
_GONE_SECONDS = 10.0
_numbers = count(1)


class NoGroupError(Exception):
    """Why no group with a memory limit can be made here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes in use in a group now: all that the kernel counts, and that without file cache."""

    all_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One group. Its counters begin at nothing when it is made."""

    folder: Path
    version: int

    def joining(self, words: list[str]) -> list[str]:
        """The command that runs `words` inside the group. A shell joins first, so that nothing is used outside."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *words]

    def usage(self) -> Usage:
        """One look."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        whole = _number(self.folder / name) or 0
        table = _table(self.folder / "memory.stat")
        cache = sum(table.get(name, 0) for name in _CACHE_NAMES[self.version])
        return Usage(all_bytes=whole, used_bytes=max(0, whole - cache))

    def peak_bytes(self) -> int | None:
        """The most that the kernel has counted, file cache included; None: this kernel does not say."""
        return _number(self.folder / ("memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"))

    def oom_kills(self) -> int:
        """Processes of the group that the kernel has killed for want of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _table(self.folder / name).get("oom_kill", 0)

    def limit_hits(self) -> int:
        """How often the limit was touched; mostly that means that file cache was dropped."""
        if self.version == 2:
            return _table(self.folder / "memory.events").get("max", 0)
        return _number(self.folder / "memory.failcnt") or 0

    def members(self) -> list[int]:
        """The ids of the processes in the group, zombies left out."""
        try:
            return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]
        except OSError:
            return []


@contextmanager
def limited(limit_bytes: int) -> Iterator[Group]:
    """A new group with that limit and no swap. In the end what still runs in it is killed, and it is removed.

    Raises NoGroupError.
    """
    version, parent = _place()
    group = Group(folder=parent / f"{_PREFIX}{os.getpid()}-{next(_numbers)}", version=version)
    try:
        group.folder.mkdir()
    except OSError as error:
        raise NoGroupError(f"{group.folder} cannot be made: {error.strerror}; run as root") from error
    try:
        _limit(group, limit_bytes)
        yield group
    finally:
        _remove(group)


def sweep() -> None:
    """Remove empty groups of ours that a killed bench has left."""
    for left in _place()[1].glob(f"{_PREFIX}*"):
        owner = left.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            try:
                left.rmdir()
            except OSError:
                continue


def _place() -> tuple[int, Path]:
    """(cgroup version, folder) in which groups with a memory limit can be made.

    v1: beneath our own group. v2: beneath the first group on the way up that hands the controller on; only groups
    without processes of their own do.
    """
    own = dict[str, str]()
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    if "memory" in own:
        found = _mounted("cgroup", "memory", own["memory"])
        if found is not None:
            return 1, found[1]
    if "" in own:
        found = _mounted("cgroup2", None, own[""])
        if found is not None:
            root, group = found
            for folder in (group, *group.parents):
                if folder.is_relative_to(root) and _hands_on_memory(folder):
                    return 2, folder
    raise NoGroupError("no cgroup here hands on the memory controller, neither v1 nor v2")


def _mounted(kind: str, option: str | None, path: str) -> tuple[Path, Path] | None:
    """(mount, folder of our group in it). In a container a part of the tree may be mounted, or another one."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        beyond = fields[fields.index("-") + 1 :]
        if beyond[0] != kind or (option is not None and option not in beyond[2].split(",")):
            continue
        root, mount = fields[3], Path(fields[4])
        beneath = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
        folder = mount / beneath
        return mount, folder if folder.is_dir() and ".." not in beneath.parts else mount
    return None


def _hands_on_memory(folder: Path) -> bool:
    """Looked at and never changed: what a group hands on is for whoever set up the machine to say."""
    try:
        return "memory" in (folder / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


def _limit(group: Group, limit_bytes: int) -> None:
    try:
        if group.version == 2:
            (group.folder / "memory.max").write_text(str(limit_bytes))
        else:
            (group.folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError as error:
        raise NoGroupError(f"{group.folder} takes no limit: {error.strerror}") from error
    # Swap would let a program use more than its limit, slowly. Where it is not counted there is no such file.
    swap, value = ("memory.swap.max", 0) if group.version == 2 else ("memory.memsw.limit_in_bytes", limit_bytes)
    if (group.folder / swap).exists():
        (group.folder / swap).write_text(str(value))


def _remove(group: Group) -> None:
    until = time.monotonic() + _GONE_SECONDS
    while True:
        for pid in group.members():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            group.folder.rmdir()
            return
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.02)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _table(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
