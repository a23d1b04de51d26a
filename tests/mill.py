"""The command line under test, as its users have it: a program, its output, its exit code, a data directory.

`wait_until` looks again and again for something that another process will bring about, and fails after a time-out: it
waits for an event, never for a span of time.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

_T = TypeVar("_T")
PROGRAM = (sys.executable, "-P", "-m", "engine")


def wait_until(look: Callable[[], _T | None], what: str, *, seconds: float = 60.0) -> _T:
    """What `look` finds, as soon as it finds something. Fails when it does not within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError(f"waited {seconds:.0f} s in vain for: {what}")


class Mill:
    """`nightmill` with a data directory of its own. Settings of the machine it runs on do not reach it."""

    def __init__(self, place: Path, **settings: str) -> None:
        self.place = place
        self.data_dir = place / "var"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("NIGHTMILL_", "MAX_", "DEBUG_MODE"))}
        self.environ = {**kept, "NIGHTMILL_DATA_DIR": str(self.data_dir), **settings}

    def run(self, *words: str, code: int = 0, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its exit code must be `code`."""
        done = subprocess.run(
            [*PROGRAM, *words],
            cwd=self.place,
            env={**self.environ, **settings},
            capture_output=True,
            text=True,
            timeout=280,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words: str, code: int = 0, **settings: str) -> dict[str, Any]:
        """Run a command with --json: the object that it prints."""
        table = json.loads(self.run(*words, "--json", code=code, **settings).stdout)
        assert table["schema_version"] == 1
        return table

    def start(self, *words: str, **settings: str) -> subprocess.Popen[str]:
        """Start a command and go on."""
        return subprocess.Popen(
            [*PROGRAM, *words],
            cwd=self.place,
            env={**self.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def hits(self, user: str, words: str, *more: str) -> list[str]:
        """The paths of the hits, best first."""
        return [hit["path"] for hit in self.json("search", user, words, *more)["hits"]]

    def reasons(self, user: str) -> dict[str, str]:
        """Path -> reason, of all that was not indexed."""
        table = self.json("failures", "list", "--user", user, "--skipped")
        return {entry["path"]: entry["reason"] for entry in table["failures"]}

    def ledger(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of the ledger, read beside whoever writes it."""
        with sqlite3.connect(f"file:{self.data_dir / 'ledger.db'}?mode=ro", uri=True, timeout=30) as connection:
            return connection.execute(query).fetchall()

    def repeated_units(self) -> list[tuple[Any, ...]]:
        """Units that ended well more than once at the same stage of the same item: none should."""
        return self.ledger(
            "SELECT i.path, a.stage, a.part, count(*) FROM attempts a JOIN items i ON i.id = a.item_id "
            "WHERE a.reason IS NULL GROUP BY a.item_id, a.stage, a.part HAVING count(*) > 1"
        )

    def processes(self) -> list[psutil.Process]:
        """All processes that work for this data directory, or were started by one that does."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if str(self.data_dir) in process.environ().get("NIGHTMILL_DATA_DIR", ""):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return [process for process in found if process.pid != os.getpid()]

    def workers(self) -> list[psutil.Process]:
        """The worker processes of this data directory."""
        return [process for process in self.processes() if "engine.workers.child" in _words(process)]

    def busy_worker(self, stage: str) -> psutil.Process | None:
        """A worker of that stage that has begun an item."""
        for slate in self.data_dir.glob("spool/*/workers/*/slate"):
            try:
                begun = slate.read_text().strip()
            except OSError:
                continue
            for worker in self.workers() if begun else ():
                try:
                    if any(str(slate.parent) == str(Path(file.path).parent) for file in worker.open_files()) and (
                        _loaded(worker, stage)
                    ):
                        return worker
                except psutil.Error:
                    continue
        return None

    def stop_scheduler(self) -> None:
        """So that no process is left when the test ends."""
        subprocess.run([*PROGRAM, "scheduler", "stop"], env=self.environ, capture_output=True, check=False)


#: A library that workers of one stage alone have mapped.
_LIBRARIES = {"ocr": "tesserocr", "extract": "pymupdf", "embed": "onnxruntime"}


def _loaded(worker: psutil.Process, stage: str) -> bool:
    return any(_LIBRARIES[stage] in entry.path for entry in worker.memory_maps())


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Whatever the test does, the process does not outlive it."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def fingerprint_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Everything in a folder: path -> (mtime in ns, sha256)."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def contents_of(index: Path) -> list[tuple[Any, ...]]:
    """What an index says, however it came to be: its items and chunks, without numbers that depend on the order."""
    with sqlite3.connect(f"file:{index / 'index.db'}?mode=ro", uri=True) as connection:
        return connection.execute(
            "SELECT i.key, i.kind, i.title, i.path, i.partial, c.kind, c.page, c.text FROM items i "
            "JOIN chunks c ON c.item = i.id ORDER BY i.source, i.key, c.kind, c.page, c.text"
        ).fetchall()
