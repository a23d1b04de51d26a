"""One data directory with a scheduler, borrowers and an observer, all of them processes.

Rule: leaving the world is part of each test. The borrowers go, the scheduler is stopped, nothing may be left running,
and the observer must have seen no limit exceeded.

    with a_world(tmp_path, total=2) as world:
        holder = world.borrower("holder")
        holder.work("ann", count=2, milliseconds=None)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from engine import rendezvous
from engine.desk import Desk, find_statistics, open_desk, stop_scheduler
from engine.errors import CannotRunError
from engine.model import Lane, TokenKind, UserId
from engine.policy.tokens import Limits
from engine.ports import Ask, DeskStats, Grant
from engine.processes import Watched, start_time
from tests.conftest import REPOSITORY
from tests.faults.observer import locked_units
from tests.mill import wait_until

#: Set in all processes of a world, and inherited by what they start.
_MARK = "NIGHTMILL_TEST_WORLD"


class Borrower:
    """A running tests/saboteurs/borrower.py, and what it has said."""

    def __init__(self, world: World, name: str, told: dict[str, Any]) -> None:
        self.name = name
        self.said: list[dict[str, Any]] = []
        self._process = world.start("-m", "tests.saboteurs.borrower", json.dumps(told), pipes=True)
        self.pid = self._process.pid
        self._ear = threading.Thread(target=self._listen, daemon=True)
        self._ear.start()

    def work(
        self, user: str, *, count: int = 1, milliseconds: int | None = 20, lane: str = "bulk", kind: str = "cpu"
    ) -> None:
        """Have it do `count` units; milliseconds None: until `end`."""
        self.tell("work", user=user, count=count, milliseconds=milliseconds, lane=lane, kind=kind)

    def tell(self, do: str, **more: Any) -> None:
        """Say a command; a borrower that is dead by now does not hear it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
            self._process.stdin.flush()

    def heard(self, said: str) -> list[dict[str, Any]]:
        """All it has said of this kind."""
        return [entry for entry in list(self.said) if entry["said"] == said]

    def wait_for(self, said: str, count: int = 1, *, seconds: float = 60.0) -> list[dict[str, Any]]:
        """Its first `count` words of this kind, or more."""

        def look() -> list[dict[str, Any]] | None:
            found = self.heard(said)
            if len(found) < count and not self._ear.is_alive():
                raise AssertionError(f"borrower {self.name} has ended ({self._process.poll()}): {self.said[-3:]}")
            return found if len(found) >= count else None

        return wait_until(look, f"borrower {self.name} to say {said!r} {count} times", seconds=seconds)

    def signal(self, number: int) -> None:
        """Send a signal to the borrower itself, not to its units."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait for its end."""
        self._process.kill()
        self.wait_end()

    def leave(self) -> None:
        """Have it return everything and end."""
        self.tell("leave")
        assert self.wait_end() == 0, f"borrower {self.name} ended badly: {self.said[-3:]}"

    def wait_end(self) -> int:
        """Its exit code, when it has ended."""
        code = self._process.wait(timeout=60.0)
        self._ear.join(60.0)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        return code

    @property
    def ended(self) -> bool:
        """It runs no longer."""
        return self._process.poll() is not None

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as words:
            for line in words:
                self.said.append(json.loads(line))


class World:
    """See the head of this file. Made by `a_world`."""

    def __init__(self, place: Path, *, total: int, per_user: int, cores: int) -> None:
        self.place = place
        self.data_dir = place / "data"
        self.limits = {"total": total, "per_user": per_user, "cores": cores}
        for name in ("units", "drafts", "done"):
            (place / name).mkdir(parents=True)
        self.borrowers: list[Borrower] = []
        self._desks: list[Desk] = []
        self._ended: set[str] = set()
        self._started: list[subprocess.Popen[str]] = []
        self.environ = {**os.environ, _MARK: str(place), "PYTHONPATH": str(REPOSITORY)}
        self._observer = self.start("-m", "tests.faults.observer", str(place / "units"), pipes=True)
        self.observe()

    # --- who is there ---

    def start(self, *words: str, pipes: bool = False, **more: Any) -> subprocess.Popen[str]:
        """A Python process of this world; it does not outlive it."""
        stream = subprocess.PIPE if pipes else subprocess.DEVNULL
        started = subprocess.Popen(
            [sys.executable, *words], env=self.environ, stdin=stream, stdout=stream, cwd=REPOSITORY, text=True, **more
        )
        self._started.append(started)
        return started

    def borrower(self, name: str, *, limits: dict[str, int] | None = None, wait: bool = True, **more: Any) -> Borrower:
        """A new borrower, which has been greeted (unless wait is False)."""
        told = {"name": name, "place": str(self.place), "limits": limits or self.limits, **more}
        borrower = Borrower(self, name, told)
        self.borrowers.append(borrower)
        if wait:
            borrower.wait_for("here")
        return borrower

    def desk(self) -> Desk:
        """A desk in this process. Nothing that it is lent is seen by the observer."""
        desk = open_desk(
            data_dir=self.data_dir,
            max_total_workers=self.limits["total"],
            max_workers_per_user=self.limits["per_user"],
            cpu_limit=self.limits["cores"],
            memory_limit_bytes=10**9,
            scaling=False,
        )
        self._desks.append(desk)
        return desk

    def scheduler(
        self, *, how: dict[str, Any] | None = None, idle_seconds: float = 60.0, wait: bool = True, **more: Any
    ) -> subprocess.Popen[str]:
        """A scheduler that the test starts. how: see tests/saboteurs/dying_scheduler.py."""
        words = ["engine.scheduler"] if how is None else ["tests.saboteurs.dying_scheduler", json.dumps(how)]
        started = self.start(
            "-m",
            *words,
            f"--data-dir={self.data_dir}",
            f"--max-total-workers={self.limits['total']}",
            f"--max-workers-per-user={self.limits['per_user']}",
            f"--cpu-limit={self.limits['cores']}",
            f"--memory-limit-bytes={10**9}",
            f"--idle-seconds={idle_seconds}",
            "--no-scaling",
            stderr=(self.place / "scheduler.err").open("ab"),
            **more,
        )
        if wait:
            wait_until(lambda: self.statistics() is not None or started.poll() is not None, "a scheduler that answers")
            # Only one that is to die may have ended: in a test that starts one, nobody else does at that time.
            assert started.poll() is None or (how is not None and how.get("at")), (
                self.place / "scheduler.err"
            ).read_text()
        return started

    def statistics(self) -> DeskStats | None:
        """What the scheduler says now; None when none answers."""
        with suppress(CannotRunError):
            return find_statistics(self.data_dir)
        return None

    def scheduler_process(self) -> psutil.Process | None:
        """The process that holds the scheduler's lock."""
        try:
            found = (self.data_dir / "run" / "scheduler.lock").stat()
        except FileNotFoundError:
            return None
        # proc_locks(5): "1: FLOCK  ADVISORY  WRITE 708 08:13:393221 0 EOF"
        inode = str(found.st_ino)
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].split(":")[2] == inode:
                with suppress(psutil.Error, ValueError):
                    process = psutil.Process(int(words[4]))
                    if str(self.data_dir) in " ".join(process.cmdline()):
                        return process
        return None

    def kill_scheduler(self) -> None:
        """kill -9 of the scheduler that serves now, and wait until it is gone."""
        process = wait_until(self.scheduler_process, "a scheduler that can be killed")
        watched = Watched(process.pid, start_time(process.pid))
        process.kill()
        # By its pidfd: the process is a zombie when its first thread has ended, and has ended with its last one.
        assert watched.wait_end(30.0), "the scheduler did not end"
        watched.close()

    def processes(self) -> list[psutil.Process]:
        """All processes of this world, zombies and this one aside."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get(_MARK) == str(self.place) or str(self.place) in " ".join(process.cmdline()):
                    found.append(process)
        return found

    # --- what runs ---

    def running(self, user: str | None = None, of: str | None = None) -> int:
        """How many units run now: of a user, of a borrower, or all."""
        names = locked_units(self.place / "units", self._ended)
        return sum(
            (user is None or name.startswith(f"{user}+")) and (of is None or name.split("+")[3].startswith(f"{of}."))
            for name in names
        )

    def done(self) -> set[str]:
        """The names of the work that is done."""
        return {path.name for path in (self.place / "done").iterdir()}

    def observe(self, **limits: int) -> None:
        """Tell the observer the limits that count from now on."""
        assert self._observer.stdin is not None
        assert self._observer.stdout is not None
        self._observer.stdin.write(json.dumps({**self.limits, **limits}) + "\n")
        self._observer.stdin.flush()
        assert self._observer.stdout.readline() == "looking\n"

    def finish_observer(self) -> dict[str, Any]:
        """End the observer: what it has seen (observer.Sight)."""
        words, _ = self._observer.communicate(timeout=60.0)
        sight: dict[str, Any] = json.loads(words)
        return sight

    # --- the end ---

    def close_desks(self) -> None:
        """Desks of this process go."""
        while self._desks:
            self._desks.pop().close()

    def finish(self) -> dict[str, Any]:
        """Everybody leaves; what must be true afterwards. Returns what the observer saw."""
        self.close_desks()
        for borrower in self.borrowers:
            if not borrower.ended:
                borrower.leave()
        sight = self.finish_observer()
        # Where the folder is not fit to be used there is no scheduler; one that is left is found below.
        with suppress(CannotRunError, OSError):
            stop_scheduler(self.data_dir)
        wait_until(lambda: not self.processes(), f"the end of all processes: {self.processes()}", seconds=20.0)
        assert sight["violations"] == [], sight["violations"]
        return sight

    def kill_all(self) -> None:
        """Whatever is still there: each by its own id."""
        self.close_desks()
        while alive := self.processes():
            for process in alive:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(alive, timeout=5.0)
        for process in self._started:
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    if stream is not None:
                        stream.close()


@contextmanager
def a_world(place: Path, *, total: int = 2, per_user: int = 2, cores: int = 4) -> Iterator[World]:
    """A world of its own; see the head of this file."""
    world = World(place / "world", total=total, per_user=per_user, cores=cores)
    try:
        yield world
        world.finish()
    finally:
        world.kill_all()


def an_ask(name: str, user: str = "zoe", lane: Lane = Lane.BULK) -> Ask:
    """An ask of a desk in this process."""
    return Ask(ask_id=name, user=UserId(user), lane=lane, kind=TokenKind.CPU, cost_seconds=1.0)


def borrow_all(desk: Desk, limits: Limits, *, seconds: float = 30.0) -> list[Grant]:
    """Borrow every token that there is, in both lanes, and fail when one of them is missing.

    From three tokens up one is kept for each lane: all but one are bulk's, and one is interactive's.
    """
    held: list[Grant] = []
    asks: Sequence[Ask] = [
        an_ask(f"all-{number}", f"zoe{number}", Lane.INTERACTIVE if number == 0 else Lane.BULK)
        for number in range(limits.max_total_workers)
    ]
    held += desk.exchange(asks=asks).grants

    def all_there() -> bool:
        held.extend(desk.exchange(patience_seconds=0.05).grants)
        return len(held) >= limits.max_total_workers

    wait_until(all_there, f"all {limits.max_total_workers} tokens", seconds=seconds)
    return held


def lives(process: psutil.Process) -> bool:
    """It runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stop(process: psutil.Process) -> None:
    """SIGSTOP, and wait until every thread of it stands still: the signal reaches them one after the other."""
    process.suspend()

    def stands_still() -> bool:
        states = [
            path.read_text().rsplit(")", 1)[1].split()[0] for path in Path(f"/proc/{process.pid}/task").glob("*/stat")
        ]
        return all(state in "tT" for state in states)

    wait_until(stands_still, "a process that stands still")


def client_files(world: World) -> list[Path]:
    """The client files that are there."""
    return rendezvous.client_files(world.data_dir / "run")
