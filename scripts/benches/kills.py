"""kill -9 of workers, coordinators and schedulers at random moments, round after round; then everything must add up.

Each round brings new files, starts a run and kills one of its processes. After the last round an undisturbed run
finishes the work, and the result is compared with that of a data directory where nobody was killed: the same index,
found = indexed + skipped + failed, ledger = index, no unit that ended well done twice, no process and no spool left.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests import files
from tests.mill import Mill, contents_of, wait_until


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments and the victims")
    given = parser.parse_args()
    luck = random.Random(given.seed)
    place = Path(tempfile.mkdtemp(prefix="nightmill-kills-"))
    print(f"seed {given.seed}")
    try:
        users = {user: f"folder:{place / 'world' / user}" for user in ("ann", "ben", "cleo")}
        mill = _registered(place / "killed", users)
        for number in range(given.rounds):
            _add_files(place / "world", users, number)
            print(f"round {number + 1}: {_kill_one(mill, luck)}", flush=True)
        mill.run("init")
        calm = _registered(place / "calm", users)
        calm.run("init")
        problems = _problems(mill, calm, users)
        for one in (mill, calm):
            one.stop_scheduler()
            wait_until(lambda one=one: not one.processes(), "the end of every process")  # type: ignore[misc]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print("\n".join(problems) or f"{given.rounds} kills: all adds up")
    sys.exit(1 if problems else 0)


def _add_files(world: Path, users: Iterable[str], number: int) -> None:
    """A scan, so that there is something to interrupt; texts, and mails with attachments."""
    for user in users:
        home = world / user / f"round{number}"
        home.mkdir(parents=True)
        for note in range(10):
            (home / f"note{note}.txt").write_text(f"Note {note} of {user} about lapwings, round {number}.")
        pages = (f"Page {page} of log {number} of {user}\n" + "line\n" * 8 for page in range(5))
        files.scanned_pdf(home / "log.pdf", *pages)
        for letter in range(2):
            attached = ("annex.txt", f"Annex {letter} of {user}, round {number}".encode(), "text/plain")
            (home / f"letter{letter}.eml").write_bytes(files.mail(f"Letter {letter} of {number}", "See.", attached))


def _registered(place: Path, users: dict[str, str]) -> Mill:
    place.mkdir()
    mill = Mill(place, NIGHTMILL_EMBEDDER="fast")
    for user, source in users.items():
        mill.run("users", "add", user, source)
    return mill


def _kill_one(mill: Mill, luck: random.Random) -> str:
    run = mill.start("init")
    try:
        time.sleep(luck.uniform(0.4, 3.0))
        kind = luck.choice(("coordinator", "worker", "worker", "scheduler"))
        victims = {
            "coordinator": [psutil.Process(run.pid)],
            "worker": mill.workers(),
            "scheduler": [p for p in mill.processes() if "engine.scheduler" in " ".join(p.cmdline())],
        }[kind]
        if run.poll() is not None or not victims:
            return f"the run had ended, or there was no {kind}"
        luck.choice(victims).kill()
        if kind == "coordinator" or luck.random() < 0.5:
            run.kill()
            run.wait()
            wait_until(lambda: not mill.workers(), "the end of all workers")
            return f"{kind}, and the run with it"
        return f"{kind}; the run ended with {run.wait(timeout=300)}"
    finally:
        run.kill()
        run.communicate()


def _problems(mill: Mill, calm: Mill, users: dict[str, str]) -> list[str]:
    found: list[str] = []
    table = mill.json("status")
    if table["found"] != table["indexed"] + table["skipped"] + table["failed"] or table["pending"]:
        found.append(f"the sum is wrong: {table}")
    if mill.repeated_units():
        found.append(f"done twice: {mill.repeated_units()[:5]}")
    for user in users:
        index = mill.data_dir / "indexes" / user
        if contents_of(index) != contents_of(calm.data_dir / "indexes" / user):
            found.append(f"the index of {user} is not that of an undisturbed run")
        with sqlite3.connect(index / "index.db") as connection:
            (items,) = connection.execute("SELECT count(*) FROM items").fetchone()
        query = (
            "SELECT count(*) FROM items i JOIN users u ON u.id = i.user_id "
            f"WHERE u.name = '{user}' AND i.state = 'indexed'"
        )
        if mill.ledger(query) != [(items,)]:
            found.append(f"the ledger of {user} says {mill.ledger(query)}, the index {items}")
    if list((mill.data_dir / "spool").iterdir()):
        found.append("something is left in the spool")
    return found


if __name__ == "__main__":
    main()
