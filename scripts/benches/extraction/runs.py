"""One program, watched from outside until it ends; and one `init` of the whole engine, with what it left behind.

Rule: wall time is from start to end, start-up included, and CPU time that of the program and of all descendants that
were waited for, for us and for others alike. What is said of pages and files comes from the ledger and from the index.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from engine.document import Document
from indexes.paths import user_dir
from indexes.writer import open_writer
from tests.mill import PROGRAM, Mill

ROOT = Path(__file__).resolve().parents[3]
_LOOK_SECONDS = 0.25
#: The slowest part of the slowest peer takes a few minutes; whoever takes longer hangs.
_MOST_SECONDS = 3600.0


class RunError(Exception):
    """A program that is measured did not come to its end; the message says which, and its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What was seen of one program. peak_bytes: of it and its descendants, pages they share counted once."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One file, attachments not counted. cpu_seconds: of all attempts at it, in workers."""

    state: str
    media_type: str
    cpu_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a stage took: attempts, CPU seconds, and the most memory of a worker at one of them."""

    attempts: int = 0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MillRun:
    """One `init`. files: path -> what became of it; documents: path -> what was read (only where asked for)."""

    seen: Watched
    found: int
    uses: Mapping[str, Use]
    files: Mapping[str, Read]
    ocr_pages: int
    ocr_cpu_seconds: float
    documents: Mapping[str, Document] = field(default_factory=dict)

    def use(self, stage: str) -> Use:
        """Of a stage; nothing where it was not needed."""
        return self.uses.get(stage, Use())


def watch(words: Sequence[str], environ: Mapping[str, str], place: Path) -> Watched:
    """Run a command to its end. Raises RunError when its exit code is neither 0 nor 3 (some files failed)."""
    with tempfile.TemporaryFile("w+", dir=place) as out, tempfile.TemporaryFile("w+", dir=place) as err:
        before, began = _cpu_of_children(), time.monotonic()
        with subprocess.Popen(words, env=dict(environ), cwd=place, stdout=out, stderr=err) as process:
            looker = _Looker(process.pid)
            looker.start()
            try:
                code = process.wait(_MOST_SECONDS)
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                process.kill()
        seconds, cpu_seconds = time.monotonic() - began, _cpu_of_children() - before
        looker.end()
        out.seek(0)
        err.seek(0)
        said, complaints = out.read(), err.read()
    if code not in (0, 3):
        raise RunError(f"{' '.join(words)[:200]}: exit code {code}: {(complaints or said)[-1500:]}")
    return Watched(seconds=seconds, cpu_seconds=cpu_seconds, peak_bytes=looker.peak_bytes, said=said)


def run_mill(
    place: Path, users: Mapping[str, Path], cores: int, *, documents: bool = False, **settings: str
) -> MillRun:
    """A new data directory, each user with a folder, one `init`. Nothing is left of it."""
    folder = Path(tempfile.mkdtemp(prefix="mill-", dir=place))
    # Whoever measures wants the machine's limit, and the others do not give way either.
    fixed = {"NIGHTMILL_EMBEDDER": "none", "NIGHTMILL_SCALING": "off", "NIGHTMILL_CPU_LIMIT": str(cores)}
    mill = Mill(folder, **fixed, PYTHONPATH=str(ROOT), **settings)
    try:
        (folder / "users.csv").write_text(
            "".join(f"{user},folder:{source}\n" for user, source in users.items()), encoding="utf-8"
        )
        mill.run("users", "import", "users.csv")
        seen = watch([*PROGRAM, "init", "--json"], mill.environ, folder)
        report = json.loads(seen.said)
        return MillRun(
            seen=seen,
            found=report["counts"]["found"],
            uses=_uses(mill),
            files=_files(mill),
            ocr_pages=report["work"]["ocr_pages"],
            # Of the attempts at an item the ledger keeps the latest 50: not those of all pages of a scan.
            ocr_cpu_seconds=report["work"]["ocr_cpu_seconds"],
            documents=_documents(mill, users) if documents else {},
        )
    finally:
        mill.stop_scheduler()
        shutil.rmtree(folder, ignore_errors=True)


def plain_environ(**more: str) -> dict[str, str]:
    """The environment without settings of ours, nor paths to our modules."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NIGHTMILL_", "MAX_", "DEBUG_MODE", "PYTHON"))}
    return {**kept, **more}


def _uses(mill: Mill) -> dict[str, Use]:
    rows = mill.ledger("SELECT stage, count(*), sum(cpu_seconds), max(peak_bytes) FROM attempts GROUP BY stage")
    return {stage: Use(attempts=count, cpu_seconds=cpu, peak_bytes=peak) for stage, count, cpu, peak in rows}


def _files(mill: Mill) -> dict[str, Read]:
    """Files of the same path of several users are the same file: of these the one that took least counts."""
    rows = mill.ledger(
        "SELECT i.path, i.state, i.media_type, coalesce(sum(a.cpu_seconds), 0) FROM items i "
        "LEFT JOIN attempts a ON a.item_id = i.id WHERE i.parent_id IS NULL GROUP BY i.id ORDER BY 4 DESC"
    )
    return {path: Read(state=state, media_type=kind, cpu_seconds=cpu) for path, state, kind, cpu in rows}


def _documents(mill: Mill, users: Mapping[str, Path]) -> dict[str, Document]:
    found = {}
    for user in users:
        folder = user_dir(mill.data_dir / "indexes", user)
        with sqlite3.connect(f"file:{folder / 'index.db'}?mode=ro", uri=True) as connection:
            rows = connection.execute("SELECT path, content, extract FROM items").fetchall()
        writer = open_writer(folder)
        try:
            for path, content, extract in rows:
                raw = writer.find_document(content, extract)
                if raw is not None:
                    found[path] = Document.from_json(json.loads(raw))
        finally:
            writer.close()
    return found


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Looker(threading.Thread):
    """Adds up the memory of a process and its descendants, again and again. Proportional set size: proc(5), smaps."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._ended, self.peak_bytes = pid, threading.Event(), 0

    def run(self) -> None:
        """Until `end`."""
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                process = psutil.Process(self._pid)
                every = [process, *process.children(recursive=True)]
            except psutil.Error:
                continue
            self.peak_bytes = max(self.peak_bytes, sum(_pss(one) for one in every))

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
