"""What Nightmill is measured against: a ProcessPoolExecutor over the same functions, its size chosen by hand.

Written as well as such a thing usually is: all files and all pages are handed in as they become known, files first, the
results are taken as they come, attachments are read too. No limits, no retries, no index.

Run as `python -m memory_limits.pool FOLDER WORKERS`: prints {"files", "extracted", "pages", "failed"}; exit code 1 when
the pool broke, as it does when the kernel kills one of its processes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from engine.model import Kind
from memory_limits.reading import Found, extract, recognise


@dataclass(slots=True, kw_only=True)
class Done:
    """How far it came: files handed in, files and attachments read, pages recognised, and what failed of both."""

    files: int = 0
    extracted: int = 0
    pages: int = 0
    failed: int = 0


def main() -> int:
    """Read the whole folder. Returns the exit code."""
    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    done, code = Done(), 0
    with tempfile.TemporaryDirectory(prefix="nightmill-pool-", dir=folder.parent) as outbox:
        try:
            with ProcessPoolExecutor(max_workers=workers) as pool:
                _read_all(pool, folder, outbox, done)
        except BrokenProcessPool:
            code = 1
    print(json.dumps(asdict(done)))
    return code


def _read_all(pool: ProcessPoolExecutor, folder: Path, outbox: str, done: Done) -> None:
    numbers = count(1)
    #: What is under way -> the file that it reads, for extraction; "" for a page.
    waiting: dict[Future[Any], str] = {}

    def hand_in(path: str, name: str, kind: str) -> None:
        waiting[pool.submit(extract, path, name, kind, outbox, f"i{next(numbers)}")] = path

    for path in sorted(folder.rglob("*")):
        if path.is_file():
            done.files += 1
            hand_in(str(path), str(path.relative_to(folder)), Kind.FILE)
    while waiting:
        for ended in wait(waiting, return_when=FIRST_COMPLETED).done:
            path_read, result = waiting.pop(ended), ended.result()
            if not isinstance(result, Found):
                done.pages += 1
                done.failed += bool(result)
                continue
            done.extracted += not result.failed
            done.failed += bool(result.failed)
            for part in result.parts:
                hand_in(*part)
            for page in result.pages:
                name = f"p{next(numbers)}"
                waiting[pool.submit(recognise, path_read, result.media_type, page, outbox, name)] = ""


if __name__ == "__main__":
    sys.exit(main())
