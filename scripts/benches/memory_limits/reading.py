"""The engine's own stages `extract` and `ocr`, called as functions: what a person would put into a pool.

Rule: no worker of the engine, no limit, no desk. One process opens each stage once and keeps it.

Run as `python -m memory_limits.reading FILE`: reads one file from beginning to end in a process of its own, and prints
{"failed": reason or "", "pages": ocr pages, "peak_bytes": of the process}.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.model import Kind, Stage
from engine.plan import make_plan
from engine.ports import StageFailed, StageRunner
from engine.settings import load_settings
from engine.way import kind_of


@dataclass(slots=True, kw_only=True)
class Place:
    """What a stage may touch (engine.ports.Place), without anybody who listens and without a limit."""

    inbox: Path
    outbox: Path

    def progress(self, done: int, total: int) -> None:
        """Nobody asks."""

    def memory_left(self) -> int:
        """No limit."""
        return sys.maxsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What extraction came to. parts: (file, name, kind) of attachments, items of their own. failed: the reason."""

    media_type: str = ""
    pages: tuple[int, ...] = ()
    parts: tuple[tuple[str, str, str], ...] = ()
    failed: str = ""


_stages: dict[Stage, StageRunner] = {}


def extract(path: str, name: str, kind: str, outbox: str, prefix: str) -> Found:
    """One file; its document and its parts go to the outbox."""
    order = {"file": Path(path).name, "name": name, "kind": kind, "prefix": prefix}
    try:
        done = _run(Stage.EXTRACT, order, Place(inbox=Path(path).parent, outbox=Path(outbox)))
    except (StageFailed, MemoryError) as error:
        return Found(failed=_reason(error))
    document = json.loads((Path(outbox) / done["document"]).read_bytes())
    parts = [
        (str(Path(outbox) / part["file"]), part["name"], str(kind_of(part["media_type"]))) for part in document["parts"]
    ]
    return Found(media_type=done["media_type"], pages=tuple(done["needs_ocr"]), parts=tuple(parts))


def recognise(path: str, media_type: str, page: int, outbox: str, prefix: str) -> str:
    """One page; the reason when it cannot be read, else ""."""
    order = {"file": Path(path).name, "media_type": media_type, "page": page, "prefix": prefix}
    try:
        _run(Stage.OCR, order, Place(inbox=Path(path).parent, outbox=Path(outbox)))
    except (StageFailed, MemoryError) as error:
        return _reason(error)
    return ""


def _run(stage: Stage, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    if stage not in _stages:
        options = make_plan(load_settings({"NIGHTMILL_EMBEDDER": "none"}, dotenv=None)).options[stage]
        _stages[stage] = importlib.import_module(f"engine.workers.{stage}").open_stage(options)
    return _stages[stage].run(order, place)


def _reason(error: BaseException) -> str:
    return error.failure.reason.value if isinstance(error, StageFailed) else "out_of_memory"


def _alone(path: Path) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="nightmill-alone-") as outbox:
        found = extract(str(path), path.name, Kind.FILE, outbox, "one")
        failed = [recognise(str(path), found.media_type, page, outbox, f"p{page}") for page in found.pages]
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    lost = next(filter(None, failed), "")
    return {"failed": found.failed or lost, "pages": len(found.pages), "peak_bytes": peak}


if __name__ == "__main__":
    print(json.dumps(_alone(Path(sys.argv[1]))))
