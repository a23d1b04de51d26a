"""A worker's whole life: the sandbox first, then one stage by name, then unit after unit until the pipe closes.

Run as `python -m engine.workers.child PIPE_FD PARENT_PID`. Rule: this file imports nothing that a stage does not need;
a test holds what it loads against a list. The only broad `except` of the worker is here.

    begin -> sandbox -> load stage -> [rehearsal] -> ready -> [ slate, item, report ]* -> done
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import os
import re
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from engine.errors import NO_ROOM
from engine.model import Failure
from engine.ports import StageFailed, StageRunner
from engine.printing import printable
from engine.processes import adopt_orphans, die_with_parent, give_memory_back
from engine.reasons import Reason
from engine.workers import sandbox
from engine.workers.messages import EXIT_FULL, Begin, ItemDone, Progress, Ready, UnitDone, UnitOrder, receive, send

#: Progress is said at most this often: the supervisor asks whether a worker lives, not how each page went.
_PROGRESS_SECONDS = 0.5
#: Memory beyond what the stage itself takes that a worker keeps at hand between two units.
_SPARE_BYTES = 4 * 1024**2
#: Blocks from this size on get pages of their own, which go back when they are freed (mallopt(3), M_MMAP_THRESHOLD).
_OWN_PAGES_BYTES = 256 * 1024
_M_MMAP_THRESHOLD = -3
#: What an order that ran out of memory may leave behind before the worker makes way for another: MuPDF has kept 400 MB.
_LOST_BYTES = 64 * 1024**2
#: What a unit may add at least, however large the worker is already: less than an interpreter takes to report an error.
_LEAST_ROOM_BYTES = 16 << 20
_PAGE_BYTES = resource.getpagesize()
#: How the loader of shared libraries says that it has no memory (glibc, elf/dl-load.c; musl has errno's words).
_UNMAPPED = re.compile("cannot map zero-fill pages|failed to map segment|[Cc]annot allocate|Out of memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Usage:
    """resident: in memory now, with shared libraries; data: private and mapped, which is what RLIMIT_DATA bounds."""

    resident_bytes: int
    data_bytes: int


class _Memory:
    """This process's own usage, from a file that is opened once: 2 microseconds a reading. 0 where there is none."""

    def __init__(self) -> None:
        self._statm = -1
        with suppress(FileNotFoundError):
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def is_known(self) -> bool:
        return self._statm >= 0

    def read(self) -> _Usage:
        if not self.is_known:
            return _Usage(resident_bytes=0, data_bytes=0)
        # proc(5): size resident shared text lib data; "data" has the stack in it, which the limit does not count.
        fields = os.pread(self._statm, 200, 0).split()
        return _Usage(resident_bytes=int(fields[1]) * _PAGE_BYTES, data_bytes=int(fields[5]) * _PAGE_BYTES)


class _Home:
    """The two folders a stage may touch, its voice, and its memory."""

    def __init__(self, folder: Path, pipe: Connection) -> None:
        self.inbox = folder / "inbox"
        self.outbox = folder / "outbox"
        self._slate = os.open(folder / "slate", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._pipe = pipe
        #: A library was loaded in part, which some do not survive a second time.
        self.is_torn = False
        #: It has said that it is ready: before that nobody asks how it gets on.
        self.is_ready = False
        self._said = 0.0
        self._memory = _Memory()
        self._uncounted_bytes = 0  # resident when the limit was set, less what the limit counts

    def progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.is_ready and now - self._said >= _PROGRESS_SECONDS:
            self._said = now
            send(self._pipe, Progress(done=done, total=total))

    def memory_left(self) -> int:
        limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
        if limit == resource.RLIM_INFINITY:
            return sys.maxsize
        return max(0, limit - self._memory.read().data_bytes)

    def limit_memory(self, memory_bytes: int) -> None:
        """A soft limit such that the process ends up with `memory_bytes` resident at most, libraries included.

        Most overruns become a MemoryError, which costs one item, instead of a worker that is killed. The kernel has no
        limit on what is resident, so what is resident now tells how much may be added to what is mapped. No limit where
        that cannot be read.
        """
        if not self._memory.is_known:
            return
        now = self._memory.read()
        more = max(_LEAST_ROOM_BYTES, memory_bytes - now.resident_bytes)
        resource.setrlimit(resource.RLIMIT_DATA, (now.data_bytes + more, resource.RLIM_INFINITY))
        self._uncounted_bytes = now.resident_bytes - now.data_bytes

    def out_of_memory(self) -> Failure:
        """It wanted more than there was, with the number: the limit may have been raised since it was set."""
        limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
        said = "there was no more memory"
        if limit != resource.RLIM_INFINITY:
            all_bytes = limit + self._uncounted_bytes
            said = f"it wanted more than the {all_bytes // 10**6:,} MB of memory that its worker could have"
        return Failure(reason=Reason.OUT_OF_MEMORY, detail=said)

    def resident_bytes(self) -> int:
        return self._memory.read().resident_bytes

    def give_back(self, held_bytes: int) -> int:
        """Whoever looks at this worker now shall see what it cannot do without: less than what it has at hand.

        held_bytes: what it could not do without until now. Returns the same as of now: libraries that were loaded
        meanwhile stay, and what stays is not looked through again.
        """
        if self.resident_bytes() <= held_bytes + _SPARE_BYTES:
            return held_bytes
        gc.collect()
        gc.freeze()
        give_memory_back()
        return max(held_bytes, self.resident_bytes())

    def lacks_descriptors(self) -> bool:
        """So many files were left open that the next order may lack what it wants to open."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            # The lowest number that is free.
            free = os.dup(self._slate)
        except OSError:
            return True
        os.close(free)
        return 0 < limit <= 2 * free

    def write_slate(self, unit: int, index: int) -> None:
        """Before an item begins: whoever finds this worker dead knows which item it was."""
        os.pwrite(self._slate, f"{unit:>20} {index:>10}\n".encode(), 0)


def main() -> None:
    """Serve until the coordinator closes the pipe or dies."""
    pipe_fd, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    adopt_orphans()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _keep_little_memory()
    pipe = Connection(pipe_fd)
    begin = receive(pipe)
    if not isinstance(begin, Begin):
        raise SystemExit("the first message must be Begin")
    home = _Home(Path(begin.home), pipe)
    if begin.sandbox != "off":
        # Before the stage and its native libraries are loaded, and before there are threads.
        sandbox.confine(_rules(begin, home))
    runner: StageRunner = importlib.import_module(begin.stage).open_stage(begin.options)
    if begin.rehearsal is not None:
        # How it ends says nothing, but that it does.
        _do_item(runner, begin.rehearsal, home)
    gc.freeze()
    held = home.resident_bytes()
    home.is_ready = True
    send(pipe, Ready())
    while True:
        try:
            order = receive(pipe)
        except EOFError:
            return
        if isinstance(order, UnitOrder):
            _do_unit(order, runner, home, pipe, held)
            held = home.give_back(held)
            send(pipe, UnitDone(unit=order.unit))


def _keep_little_memory() -> None:
    """Else glibc learns from each large block to keep room for the next. A worker of OCR rests at 109 MB for it instead
    of 132, one of texts reaches 91 instead of 98."""
    with suppress(OSError, AttributeError):
        # glibc's alone.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES)


def _rules(begin: Begin, home: _Home) -> sandbox.Rules:
    package = begin.stage.rpartition(".")[0]
    return sandbox.Rules(
        inbox=home.inbox,
        outbox=home.outbox,
        # The stage's own, and all that stages import of ours.
        packages=tuple(dict.fromkeys((package.partition(".")[0], package, "engine", "indexes"))),
        private=tuple(map(Path, begin.private)),
        needs=sandbox.needs_of(begin.stage, begin.options),
        strict=begin.sandbox == "strict",
    )


def _do_unit(unit: UnitOrder, runner: StageRunner, home: _Home, pipe: Connection, held_bytes: int) -> None:
    """held_bytes: what the worker holds when it has nothing to do."""
    with_limit = unit.memory_bytes > 0
    if with_limit:
        home.limit_memory(unit.memory_bytes)
    for index, order in enumerate(unit.orders):
        home.write_slate(unit.unit, index)
        _reset_peak()
        began = _cpu_seconds()
        result, failure = _do_item(runner, order, home)
        done = ItemDone(
            unit=unit.unit,
            index=index,
            result=result,
            failure=failure,
            cpu_seconds=_cpu_seconds() - began,
            peak_bytes=_peak_bytes(),
        )
        try:
            send(pipe, done)
        except (TypeError, ValueError, RecursionError) as error:
            # Nothing was sent: the stage's result is too large, or no JSON. That is its item's failure alone.
            failure = Failure(reason=Reason.EXTRACTOR_ERROR, detail=printable(f"its result cannot be sent: {error}"))
            send(pipe, replace(done, result={}, failure=failure))
        if failure is not None and failure.reason is Reason.OUT_OF_MEMORY and index + 1 < len(unit.orders):
            home.give_back(held_bytes)
            if home.resident_bytes() > held_bytes + _LOST_BYTES:
                # Some libraries never give it back: what is left of the unit is for a worker that has room.
                raise SystemExit(EXIT_FULL)
        if home.is_torn or home.lacks_descriptors():
            # Said before the unit is: from then on the next one may have been given.
            raise SystemExit(EXIT_FULL)
    if with_limit:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _do_item(runner: StageRunner, order: Mapping[str, Any], home: _Home) -> tuple[Mapping[str, Any], Failure | None]:
    try:
        return runner.run(order, home), None
    except StageFailed as error:
        return {}, Failure(reason=error.failure.reason, detail=printable(error.failure.detail))
    except MemoryError:
        return {}, home.out_of_memory()
    except Exception as error:  # noqa: BLE001 - the worker's outermost loop: one bad item must not end the others
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            # mmap(2) says it so.
            return {}, home.out_of_memory()
        if isinstance(error, ImportError) and _UNMAPPED.search(str(error)):
            home.is_torn = True
            return {}, home.out_of_memory()
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            # The disk's fault and not the item's, which is to be tried again when there is room.
            return {}, Failure(reason=Reason.DISK_FULL, detail=printable(str(error)))
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            said = f"its result is larger than a worker may write: {sandbox.MAX_FILE_BYTES >> 30} GiB"
            return {}, Failure(reason=Reason.BOMB, detail=said)
        return {}, Failure(reason=Reason.EXTRACTOR_ERROR, detail=printable(f"{type(error).__name__}: {error}"))


def _cpu_seconds() -> float:
    """Of this process, and of the programs that it has started and waited for."""
    helpers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + helpers.ru_utime + helpers.ru_stime


def _reset_peak() -> None:
    """Begin a new measurement of VmHWM (proc(5), clear_refs 5). Where it may not be written, peaks only grow."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak_bytes() -> int:
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
