"""Hostile files: how each ends, what their workers took of what they were promised, and what is left behind.

A folder of hostile files is indexed together with honest ones, which lie between them, under a memory limit. What the
workers take is looked at from outside every 20 ms, and held against what the run's log says that they were promised.
Then the same is run again, which has nothing left to do.

It ends with exit code 1 when a file ends in no definite state or without a reason of the catalogue, an honest one is
not indexed whole, a worker is over its promise by more than 25 % for longer than 300 ms or works beyond its deadline, a
process or a file in the spool is left, or the second run tries again what nothing has changed of.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from hostile_files.witness import FAR, Verdict, Witness, judge, leases_of  # noqa: E402
from scheduling.figures import Figure, Part  # noqa: E402

from engine.policy.retries import worth_another_run  # noqa: E402 - found beside this file
from engine.reasons import Reason  # noqa: E402
from tests import bombs, files  # noqa: E402
from tests.mill import PROGRAM, Mill  # noqa: E402

#: A worker that is over is found within two looks of the engine's guard, and killed.
MOST_OVER_SECONDS = 0.3
#: The engine looks at clocks twice a second, and the kernel counts in ticks.
CLOCK_SECONDS = 1.0
#: A run that takes longer hangs.
MOST_SECONDS = 3600.0
DEFINITE = frozenset({"indexed", "skipped", "failed", "quarantined"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What the ledger says of a file or of something inside one."""

    path: str
    state: str
    reason: str | None
    partial: bool


def main(words: Sequence[str] | None = None) -> int:
    """Run, look, judge, print. Returns the exit code."""
    given = _parse(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    place = Path(tempfile.mkdtemp(prefix="nightmill-hostile-", dir=given.place))
    try:
        honest = _make_home(place / "home", given)
        part, items = _tried(place, honest, given)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if given.json != "-":
        _print(part, items, honest, given.list)
    if given.json is not None:
        table = {"schema_version": 1, **part.to_json(), "states": _states(items, honest)}
        text = json.dumps(table, indent=2)
        if given.json == "-":
            print(text)
        else:
            Path(given.json).write_text(text + "\n", encoding="utf-8")
    return 1 if part.broken else 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench hostile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    corpus = Path(os.environ.get("NIGHTMILL_CORPUS") or ROOT.parent / "shared" / "corpus")
    parser.add_argument("--files", type=Path, default=corpus / "hostile", help="hostile ones (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth of them")
    parser.add_argument("--bombs", action="store_true", help="also those that scripts/bombs makes: some minutes more")
    parser.add_argument("--honest", type=int, default=40, metavar="N", help="files between them (default: %(default)s)")
    parser.add_argument("--limit", default="1GiB", help="NIGHTMILL_MEMORY_LIMIT (default: %(default)s)")
    parser.add_argument("--embedder", default="none", help="NIGHTMILL_EMBEDDER (default: %(default)s)")
    parser.add_argument("--place", type=Path, help="work in this folder")
    parser.add_argument("--list", action="store_true", help="print how each hostile file ended")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="also write JSON; alone: only JSON")
    given = parser.parse_args(words)
    if not given.files.is_dir():
        parser.error(f"no hostile files at {given.files} (--files, or NIGHTMILL_CORPUS)")
    return given


def _make_home(home: Path, given: argparse.Namespace) -> frozenset[str]:
    """Fill a folder; the names of the honest files, of which some lie before, between and behind the others."""
    home.mkdir()
    hostile = sorted(path for path in given.files.iterdir() if path.is_file())[:: given.every]
    for path in hostile:
        shutil.copyfile(path, home / path.name)
    if given.bombs:
        for name in bombs.BOMBS:
            bombs.write(name, home)
    # Units are made of the newest first: honest and hostile share them only when they are as old as each other.
    between = sorted(path.name for path in home.iterdir())
    honest = set()
    for number in range(given.honest):
        neighbour = between[number * len(between) // given.honest] if between else "a"
        path = _write_honest(home / f"{neighbour}.honest{number}", number)
        honest.add(path.name)
    for number, path in enumerate(sorted(home.iterdir())):
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
    return frozenset(honest)


def _write_honest(stem: Path, number: int) -> Path:
    words = f"Honest number {number} of the sandpiper"
    match number % 4:
        case 0:
            path = stem.with_name(f"{stem.name}.txt")
            path.write_text(words + "\n")
        case 1:
            path = files.text_pdf(stem.with_name(f"{stem.name}.pdf"), words, f"{words}, second page")
        case 2:
            path = stem.with_name(f"{stem.name}.eml")
            path.write_bytes(files.mail(f"Letter {number}", words, ("annex.txt", words.encode(), "text/plain")))
        case _:
            path = files.scanned_pdf(stem.with_name(f"{stem.name}.pdf"), words)
    return path


# --- the runs ---


def _tried(place: Path, honest: frozenset[str], given: argparse.Namespace) -> tuple[Part, list[Item]]:
    mill = Mill(place, NIGHTMILL_EMBEDDER=given.embedder, NIGHTMILL_MEMORY_LIMIT=given.limit)
    mill.run("users", "add", "hal", f"folder:{place / 'home'}")
    broken: list[str] = []
    seconds, witness, log = _run_init(mill, broken)
    verdict = judge(witness.looks, leases_of(log).values())
    left = [process.pid for process in mill.workers()]
    items = [Item(path=p, state=s, reason=r, partial=bool(h)) for p, s, r, h in mill.ledger(
        "SELECT path, state, reason, partial FROM items ORDER BY path"
    )]  # fmt: skip
    attempts = mill.ledger("SELECT count(*), count(reason), max(cpu_seconds), max(seconds) FROM attempts")[0]
    again, _, _ = _run_init(mill, broken)
    tried_again = mill.ledger(
        "SELECT i.path, i.reason FROM attempts a JOIN items i ON i.id = a.item_id "
        "WHERE a.run_id > (SELECT min(id) FROM runs)"
    )
    mill.stop_scheduler()
    # A process whose end nobody has waited for yet is no process that is left.
    deadline = time.monotonic() + 10.0
    while mill.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    left += [process.pid for process in mill.processes()]
    broken += _wrong(items, honest, verdict)
    broken += [f"process {pid} is left" for pid in left]
    broken += [f"left in the spool: {path}" for path in (mill.data_dir / "spool").iterdir()]
    broken += [
        f"tried again though nothing had changed: {path} ({reason})"
        for path, reason in tried_again
        if reason is None or not worth_another_run(Reason(reason))
    ]
    figures = (
        Figure(name="files", value=len(items), unit="", words="files and attachments"),
        Figure(name="seconds", value=seconds, unit="s", words="first run"),
        Figure(name="again_seconds", value=again, unit="s", words="second run"),
        Figure(name="attempts", value=attempts[0], unit="", words="attempts"),
        Figure(name="failed_attempts", value=attempts[1], unit="", words="attempts that failed"),
        Figure(name="attempt_cpu", value=attempts[2], unit="s", words="the most CPU time of one"),
        Figure(name="attempt_seconds", value=attempts[3], unit="s", words="the most wall time of one"),
        Figure(name="leases", value=verdict.leases, unit="", words="units that were looked at"),
        Figure(name="looks", value=verdict.looks, unit="", words="looks at their workers"),
        Figure(name="most_share", value=verdict.most_share, unit="", words="the most that one held of its promise"),
        Figure(
            name="over",
            value=verdict.longest_over,
            unit="s",
            words="the longest that one was more than 25 % over it",
            at_most=MOST_OVER_SECONDS,
        ),
        Figure(
            name="overtime",
            value=max(0.0, verdict.longest_overtime),
            unit="s",
            words="the most CPU time beyond a deadline",
            at_most=CLOCK_SECONDS,
        ),
    )
    return Part(figures=figures, broken=tuple(broken), checked=len(items)), items


def _run_init(mill: Mill, broken: list[str]) -> tuple[float, Witness, list[str]]:
    """(wall seconds, what was seen, lines of the log). Its output goes to a file, which never fills."""
    log = mill.place / "log"
    with log.open("w") as err:
        began = time.monotonic()
        with subprocess.Popen(
            [*PROGRAM, "init", "--quiet"],
            cwd=mill.place,
            env={**mill.environ, "NIGHTMILL_LOG_LEVEL": "debug"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
        ) as running:
            witness = Witness(running.pid)
            try:
                code = running.wait(MOST_SECONDS)
            except subprocess.TimeoutExpired:
                running.kill()
                code = -signal.SIGKILL
            finally:
                witness.close()
        seconds = time.monotonic() - began
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if code not in (0, 3):
        broken.append(f"init ended with exit code {code}: {' | '.join(lines[-3:])}")
    return seconds, witness, lines


def _wrong(items: Sequence[Item], honest: frozenset[str], verdict: Verdict) -> list[str]:
    found = []
    known = {reason.value for reason in Reason}
    for item in items:
        if item.state not in DEFINITE:
            found.append(f"{item.path}: {item.state} is no end")
        elif item.state != "indexed" and item.reason not in known:
            found.append(f"{item.path}: {item.state} for no reason of the catalogue: {item.reason}")
    whole = {item.path for item in items if item.state == "indexed" and not item.partial}
    found += [f"{name}: honest, and not indexed whole" for name in sorted(honest - whole)]
    if not verdict.leases:
        found.append("no worker was seen with a unit: the log or the looks are broken")
    if verdict.longest_over > MOST_OVER_SECONDS:
        found.append(f"a worker was more than {FAR:g} times its promise for {verdict.longest_over:.2f} s")
    if verdict.longest_overtime > CLOCK_SECONDS:
        found.append(f"a worker went on for {verdict.longest_overtime:.1f} CPU seconds beyond its deadline")
    return found


# --- telling ---


def _states(items: Sequence[Item], honest: frozenset[str]) -> dict[str, int]:
    return dict(Counter(" ".join(filter(None, (i.state, i.reason))) for i in items if i.path not in honest))


def _print(part: Part, items: Sequence[Item], honest: frozenset[str], with_list: bool) -> None:
    for item in items if with_list else ():
        if item.path not in honest:
            print(f"  {item.path:70} {item.state} {item.reason or ''}{' partial' if item.partial else ''}")
    for state, count in sorted(_states(items, honest).items(), key=lambda pair: -pair[1]):
        print(f"  {count:5} {state}")
    print(*(f"  {figure.line()}" for figure in part.figures), sep="\n")
    for broken in part.broken:
        print(f"  BROKEN: {broken}")


if __name__ == "__main__":
    sys.exit(main())
