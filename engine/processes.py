"""Processes as things with an identity: find out who lives, wait for an end, end a whole group.

Rule: a process is its id and its start time together, because ids are used again. Linux answers from /proc and
pidfds; elsewhere psutil answers, and waiting means looking again.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

#: prctl(2), linux/prctl.h.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
#: How often a process without a pidfd, or a group, is looked at, in seconds. SIGKILL takes a few milliseconds.
_LOOK_SECONDS = 0.01
#: Between two looks at a family that is being ended: what it cost is a part of what losing a worker costs.
_FAMILY_LOOK_SECONDS = 0.003
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ON_LINUX = sys.platform.startswith("linux")
#: Nothing can be opened now, in this process or on this machine. It passes, and says nothing of what was looked for.
LACKING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def start_time(pid: int) -> float:
    """When the process started: clock ticks since boot on Linux, seconds since the epoch elsewhere.

    A number to compare with itself, not a time of day. Raises ProcessLookupError when there is no such process.
    """
    if _ON_LINUX:
        return float(_stat_fields(pid)[19])
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error as error:
        raise ProcessLookupError(f"no process {pid}") from error


def is_alive(pid: int, started: float) -> bool:
    """That very process exists and is no zombie (a zombie runs nothing and holds no memory)."""
    try:
        if _ON_LINUX:
            fields = _stat_fields(pid)
            return float(fields[19]) == started and fields[0] not in "ZX"
        process = psutil.Process(pid)
        return float(process.create_time()) == started and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.Error):
        return False


class Watched:
    """A process whose end can be waited for. `fd` is a pidfd, or -1 where the system has none.

    Raises ProcessLookupError when that very process is already gone, another OSError (LACKING) when nothing can be
    opened now. Later looks at one with a pidfd open nothing.
    """

    def __init__(self, pid: int, started: float) -> None:
        self.pid, self.started, self.fd = pid, started, -1
        self._poller = select.poll()
        if hasattr(os, "pidfd_open"):
            try:
                self.fd = os.pidfd_open(pid)
            except ProcessLookupError:
                raise
            except OSError as error:
                if error.errno in LACKING:
                    raise
                # An old kernel or a sandbox: is_alive answers instead.
        try:
            # Looked at after the pidfd was opened, so that it cannot belong to a later process with the same id.
            if not is_alive(pid, started):
                raise ProcessLookupError(f"process {pid} has ended")
        except BaseException:
            self.close()
            raise
        if self.fd >= 0:
            self._poller.register(self.fd, select.POLLIN)

    @property
    def alive(self) -> bool:
        """True until the process has ended. Never waits. For one thread at a time."""
        return is_alive(self.pid, self.started) if self.fd < 0 else not self._poller.poll(0)

    def wait_end(self, timeout_seconds: float) -> bool:
        """Wait until the process has ended; False when it still lives after the time-out."""
        if self.fd >= 0:
            poller = select.poll()
            poller.register(self.fd, select.POLLIN)
            return bool(poller.poll(max(0.0, timeout_seconds) * 1000))
        until = time.monotonic() + timeout_seconds
        while self.alive:
            if time.monotonic() >= until:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""
        # Let go of first: interrupted (Ctrl-C) in between, a second close would close somebody else's descriptor.
        descriptor, self.fd = self.fd, -1
        if descriptor >= 0:
            os.close(descriptor)


def kill_group(pgid: int, started: float, *, timeout_seconds: float = 5.0) -> bool:
    """SIGKILL the process group that process `pgid` (started at `started`) leads, and wait until all of it is gone.

    True when nothing of it is left; False when something still is after the time-out (it hangs in the kernel).
    Safe against used-again ids: the kernel gives no new process the id of a group that still has members.
    """
    if pgid <= 1 or pgid == os.getpgrp():
        raise ValueError(f"process group {pgid} is not a worker's")
    until = time.monotonic() + timeout_seconds
    while True:
        try:
            if start_time(pgid) != started:
                return True
        except ProcessLookupError:
            pass  # The leader is gone; helpers that it started may live on in its group.
        members = _group_members(pgid)
        if not members:
            return True
        try:
            os.killpg(pgid, signal.SIGKILL)
        except ProcessLookupError:
            # No such group: a leader that was listed before it became one is ended by its own id.
            for pid in members:
                _kill(pid)
        if time.monotonic() >= until:
            return False
        time.sleep(_LOOK_SECONDS)


def die_with_parent(expected_parent_pid: int) -> None:
    """Inside a child: be killed when the thread that started it ends. Does nothing where the system cannot.

    Ends the process at once when the parent has died already.
    """
    if _ON_LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != expected_parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Inside a worker: what its helpers leave behind becomes its own child and not that of init, so that whoever ends
    the worker finds all of it below it (kill_family). Does nothing where the system cannot."""
    if _ON_LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def mark_descent(pid: int, word: bytes) -> None:
    """Mark a child of ours that has not begun anything, and with it all that will come of it, for kill_family: by a
    limit that nobody needs (how long a real-time process may run, in ages of microseconds). It is inherited whatever
    becomes of environment, session and parent. Does nothing where the system cannot."""
    if _ON_LINUX:
        number = _number_of(word)
        with suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_RTTIME, (number, number))


def _number_of(word: bytes) -> int:
    """Between 2^61 and 2^62: no other process has the same, unless somebody means it to."""
    return 1 << 61 | int.from_bytes(hashlib.sha256(word).digest()[:8], "big") >> 3


def kill_family(
    pgid: int, started: float, *, mark: bytes = b"", seen: Mapping[int, float] | None = None, timeout_seconds: float
) -> bool:
    """SIGKILL all that has come of the process `pgid` (started at `started`), which leads a group and is our child.

    That is its group, whatever descends from it, whoever was `seen` below it before (process id -> start time), and
    whoever bears `mark` (mark_descent, or in its environment: "NAME=value"), wherever they have gone. Looks at least
    once; True when nothing of it is left, False when something still is after the time-out (it hangs in the kernel, or
    is multiplying).
    The process itself must not have been waited for: so neither its id nor its group's is used again.
    """
    if not _ON_LINUX:
        return kill_group(pgid, started, timeout_seconds=timeout_seconds)
    if pgid <= 1 or pgid == os.getpgrp():
        raise ValueError(f"process group {pgid} is not a worker's")
    until = time.monotonic() + timeout_seconds
    while True:
        table = _all_processes()
        family = _family(table, pgid, started, seen or {}) or _marked(table, started, mark)
        if not family:
            return True
        outside = [pid for pid in family if table[pid].group != pgid]
        if len(outside) < len(family):
            # While some have left the group, those who may start more of them stand still, and stay their parents:
            # whoever is killed first loses its children to init.
            with suppress(ProcessLookupError):
                os.killpg(pgid, signal.SIGSTOP if outside else signal.SIGKILL)
        for pid in outside:
            _kill(pid)
        if time.monotonic() >= until:
            return False
        time.sleep(_FAMILY_LOOK_SECONDS)


def find_descent(pids: Collection[int]) -> dict[int, dict[int, float]]:
    """For each process: the living ones that descend from it, with their start times. One look at all of /proc."""
    if not _ON_LINUX or not pids:
        return {pid: {} for pid in pids}
    table = _all_processes()
    children = _children(table)
    return {
        pid: {
            below: table[below].started for below in _below(children, [pid]) if not table[below].gone and below != pid
        }
        for pid in pids
    }


def allow_descriptors(wanted: int) -> None:
    """Raise our soft limit of open files to so many, or as far as the system lets us. Never lowers it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def cpu_seconds(pid: int) -> float:
    """User and system time that the process itself has used. Raises ProcessLookupError."""
    if _ON_LINUX:
        fields = _stat_fields(pid)
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error as error:
        raise ProcessLookupError(f"no process {pid}") from error
    return float(times.user + times.system)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuUse:
    """What a process has used by now, in CPU seconds, and who it is.

    started   as start_time says it
    parent    the process id of its parent
    seconds   its own, and those of the children that it has waited for, with theirs
    """

    started: float
    parent: int
    seconds: float


def cpu_use(pid: int) -> CpuUse:
    """One look at a process that may have helpers. Raises ProcessLookupError."""
    if _ON_LINUX:
        fields = _stat_fields(pid)
        ticks = sum(int(field) for field in fields[11:15])
        return CpuUse(started=float(fields[19]), parent=int(fields[1]), seconds=ticks / os.sysconf("SC_CLK_TCK"))
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        seconds = times.user + times.system + times.children_user + times.children_system
        return CpuUse(started=float(process.create_time()), parent=int(process.ppid()), seconds=float(seconds))
    except psutil.Error as error:
        raise ProcessLookupError(f"no process {pid}") from error


def waited_seconds(pid: int) -> float:
    """How long the first thread of a process has been ready to run while others had the cores. 0.0: nobody counts."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            _, waited, _ = file.read().split()
    except (OSError, ValueError):
        return 0.0
    return int(waited) / 1e9


def resident_bytes(pid: int) -> int:
    """Memory of the process that is in RAM. Raises ProcessLookupError."""
    if _ON_LINUX:
        return int(_stat_fields(pid)[21]) * os.sysconf("SC_PAGE_SIZE")
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error as error:
        raise ProcessLookupError(f"no process {pid}") from error


def threads(pid: int) -> int:
    """How many threads the process has. Raises ProcessLookupError."""
    if _ON_LINUX:
        return int(_stat_fields(pid)[17])
    try:
        return int(psutil.Process(pid).num_threads())
    except psutil.Error as error:
        raise ProcessLookupError(f"no process {pid}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """What /proc/<pid>/status says of a process, in bytes; 0 where it does not say.

    resident  in RAM now, libraries included        peak  the most of that (VmHWM) since it was last begun anew
    data      what RLIMIT_DATA counts
    """

    resident: int
    peak: int
    data: int


def memory_use(pid: int) -> MemoryUse:
    """One look. Raises ProcessLookupError; a zombie has nothing."""
    if not _ON_LINUX:
        return MemoryUse(resident=resident_bytes(pid), peak=0, data=0)
    found = {"VmRSS": 0, "VmHWM": 0, "VmData": 0}
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"no process {pid}") from error
    for line in lines:
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024
    return MemoryUse(resident=found["VmRSS"], peak=found["VmHWM"], data=found["VmData"])


def raise_memory_limit(pid: int, data_bytes: int) -> None:
    """Let another process of ours map so much (MemoryUse.data; 0: no limit): raises its soft RLIMIT_DATA, and never
    lowers it. Raises ProcessLookupError."""
    if not hasattr(resource, "prlimit"):
        return
    soft, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = hard
    if data_bytes:
        wanted = data_bytes if hard == resource.RLIM_INFINITY else min(data_bytes, hard)
    if wanted == resource.RLIM_INFINITY or wanted > soft:
        resource.prlimit(pid, resource.RLIMIT_DATA, (wanted, hard))


@dataclass(frozen=True, slots=True)
class _Process:
    """An entry of /proc."""

    parent: int
    group: int
    started: float
    gone: bool


def _all_processes() -> dict[int, _Process]:
    table = {}
    for pid in psutil.pids():
        try:
            fields = _stat_fields(pid)
        except (ProcessLookupError, PermissionError):
            continue
        table[pid] = _Process(int(fields[1]), int(fields[2]), float(fields[19]), fields[0] in "ZX")
    return table


def _family(table: Mapping[int, _Process], pgid: int, started: float, seen: Mapping[int, float]) -> list[int]:
    """The living members of the group, those that were seen, and what descends from any of them."""
    roots = [pid for pid, one in table.items() if one.group == pgid or pid == pgid]
    roots += [pid for pid, since in seen.items() if pid in table and table[pid].started == since]
    found = _below(_children(table), roots)
    # Nobody is older than its ancestors: an id that was used again may look like it.
    return [pid for pid in found if not table[pid].gone and table[pid].started >= started and pid != os.getpid()]


def _children(table: Mapping[int, _Process]) -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for pid, one in table.items():
        children.setdefault(one.parent, []).append(pid)
    return children


def _below(children: Mapping[int, list[int]], roots: Collection[int]) -> set[int]:
    """The roots and all their descendants."""
    found: set[int] = set()
    left = list(roots)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, ())
    return found


def _marked(table: Mapping[int, _Process], started: float, mark: bytes) -> list[int]:
    """Those no older than `started` that bear this mark, whichever way it came to them."""
    found = []
    number = b" %d " % _number_of(mark)
    for pid, one in table.items() if mark else ():
        if one.started < started or one.gone:
            continue
        for name, sign in (("limits", number), ("environ", mark + b"\0")):
            with suppress(OSError), open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
                if sign in file.read():
                    found.append(pid)
                    break
    return found


def private_bytes(pid: int) -> int:
    """Memory in RAM that is the process's own and would come back with its end, without what it maps of files or
    shares with others. 0 for a zombie. Raises ProcessLookupError."""
    if not _ON_LINUX:
        return resident_bytes(pid)
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            fields = file.read().split()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"no process {pid}") from error
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES


def give_memory_back() -> None:
    """To the system: what this process has freed, and its C library keeps at hand. Some milliseconds."""
    with suppress(OSError, AttributeError):
        # glibc's alone.
        ctypes.CDLL(None).malloc_trim(0)


def children(pid: int) -> list[int]:
    """The processes that this one has started and not waited for; none where that is not known."""
    found = list[int]()
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            # Threads may end meanwhile; what they have started is another's then.
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                found += map(int, file.read().split())
    return found


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third (state) on; the name before them may hold any character."""
    try:
        # Unbuffered and as bytes: a third of the time that Path.read_text takes, for what is read all the time.
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read().decode("utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(f"no process {pid}") from error
    return text[text.rindex(")") + 2 :].split()


def _group_members(pgid: int) -> list[int]:
    """The living processes of a group, and its leader-to-be; zombies are not counted."""
    members = []
    for pid in psutil.pids():
        try:
            if _ON_LINUX:
                fields = _stat_fields(pid)
                group, gone = int(fields[2]), fields[0] in "ZX"
            else:
                group, gone = os.getpgid(pid), psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
        if not gone and (group == pgid or pid == pgid):
            members.append(pid)
    return members


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
