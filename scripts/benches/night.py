"""A night in which nothing changed: minutes and megabytes of `init`, and how fast `status` answers.

Makes a data directory of so many users, each with a folder of so many files that the ledger knows and the index holds,
through the engine's own ledger; then runs the commands as an operator would. The files are empty, and the indexes are
links to one that a real run made: nothing opens them, listing costs what it costs, and the disk is not filled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.clock import SystemClock
from engine.ledger import open_ledger
from engine.model import ItemState, RunId, UserId
from engine.plan import make_plan
from engine.ports import Ledger, Move
from engine.settings import LEDGER_FILE, load_settings
from engine.sources.uri import open_source
from indexes import paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=100, help="of each user (default 100)")
    parser.add_argument("--place", type=Path, help="build here and keep it (default: a temporary place)")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    place = given.place or Path(tempfile.mkdtemp(prefix="nightmill-night-"))
    try:
        began = time.monotonic()
        if not (place / "var" / LEDGER_FILE).exists():
            build(place, given.users, given.items)
        built = time.monotonic() - began
        first = command(place, "init", "--json")
        status = command(place, "status", "--json")
        one = command(place, "status", "user00007", "--json")
    finally:
        if given.place is None:
            shutil.rmtree(place, ignore_errors=True)
    report = json.loads(first.pop("said"))
    figures = {
        "users": given.users,
        "items": given.users * given.items,
        "built_seconds": round(built, 1),
        "init_minutes": round(first["seconds"] / 60, 2),
        "init_mb": first["mb"],
        "init_work": report["work"],
        "init_found": report["counts"]["found"],
        "status_seconds": round(status["seconds"], 2),
        "status_user_seconds": round(one["seconds"], 2),
    }
    if set(report["work"].values()) != {0} or report["counts"]["found"] != given.users * given.items:
        sys.exit(f"the night was not one in which nothing changed: {report}")
    if given.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{given.users:,} users, {given.users * given.items:,} items (built in {built:.0f} s)")
    print(f"init, nothing changed: {figures['init_minutes']} min, {figures['init_mb']} MB at most")
    print(f"status of all: {figures['status_seconds']} s; of one user: {figures['status_user_seconds']} s")


def build(place: Path, users: int, items: int) -> None:
    """Users, files, ledger rows and indexes, all in agreement."""
    index = place / "index"
    _make_one_index(place, index, items)
    settings = load_settings({"NIGHTMILL_DATA_DIR": str(place / "var"), "NIGHTMILL_EMBEDDER": "fast"}, dotenv=None)
    versions = make_plan(settings).versions
    with open_ledger(settings.data_dir / LEDGER_FILE, SystemClock()) as ledger:
        run = ledger.begin_run("bench", users)
        for number in range(users):
            user = UserId(f"user{number:05}")
            folder = place / "files" / user
            folder.mkdir(parents=True)
            for item in range(items):
                os.mknod(folder / f"{item}.txt")
            home = paths.make_user_dir(settings.data_dir / "indexes", user)
            # ext4 allows 65,000 links to one file.
            os.link(index / "index.db", home / "index.db")
            _enter(ledger, run, user, folder, home, versions)
        ledger.end_run(run, 0, {})


def _enter(ledger: Ledger, run: RunId, user: UserId, folder: Path, home: Path, versions: str) -> None:
    uri = f"folder:{folder}"
    ledger.add_user(user, [uri])
    source = ledger.sources(user)[0]
    with ledger.listing(source.id) as listing:
        for page in open_source(uri).list(""):
            listing.add(page)
        listing.finish(complete=True, cursor="", accept_removals=False)
    found = ledger.pending(user, limit=1_000_000)
    ledger.published(run, user, 1, [Move(item=item.id, state=ItemState.INDEXED) for item in found])
    ledger.user_done(user, run, index_stamp=paths.stamp(home), versions=versions)


def _make_one_index(place: Path, index: Path, items: int) -> None:
    """A real index, made by a real run over one user's files."""
    files = place / "one"
    files.mkdir(parents=True)
    for item in range(items):
        (files / f"{item}.txt").write_text(f"Text number {item} of the one user who is really indexed.")
    own = place / "one-var"
    environ = {"NIGHTMILL_DATA_DIR": str(own)}
    command(place, "users", "add", "one", f"folder:{files}", environ=environ)
    command(place, "init", environ=environ)
    shutil.move(own / "indexes" / "one", index)


def command(place: Path, *words: str, environ: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command of the engine: its output, wall seconds, and the peak memory of its process in MB."""
    settings = {"NIGHTMILL_DATA_DIR": str(place / "var"), "NIGHTMILL_EMBEDDER": "fast", **(environ or {})}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        command_words = [sys.executable, "-m", "engine", *words]
        with subprocess.Popen(command_words, env={**os.environ, **settings}, stdout=said) as process:
            peak = _watch_peak(process)
        seconds = time.monotonic() - began
        if process.returncode:
            sys.exit(f"{words} ended with exit code {process.returncode}")
        said.seek(0)
        return {"said": said.read(), "seconds": seconds, "mb": peak // 1024}


def _watch_peak(process: subprocess.Popen[bytes]) -> int:
    """The peak of the process's own memory in kB, looked at until it ends.

    Not `ru_maxrss`: that of a child begins with what its parent had when it was forked.
    """
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    return peak


if __name__ == "__main__":
    main()
