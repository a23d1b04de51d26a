"""The scheduler: grant times and fairness of 10,000 users, calls through the socket, who waits, the engine's own cost.

Every part is measured in a process of its own, one after the other; targets stand beside the figures. A broken promise
(a limit exceeded, an item lost) ends with exit code 1 always; a missed target only with --check.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from scheduling import charts  # noqa: E402 - found beside this file
from scheduling.figures import Part  # noqa: E402

PARTS = ("simulation", "calls", "express", "noop", "share")
SCHEMA_VERSION = 1


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, draw. Returns the exit code."""
    given = _parse(words)
    parts: dict[str, Part] = {}
    as_json = given.json == "-"
    for name in given.only:
        parts[name] = _measure(name, quick=given.quick)
        if not as_json:
            print(f"\n{name}", *(f"  {figure.line()}" for figure in parts[name].figures), sep="\n", flush=True)
            for broken in parts[name].broken:
                print(f"  BROKEN: {broken}")
    missed = [f"{name}.{figure.name}" for name, part in parts.items() for figure in part.figures if figure.missed]
    table = {
        "schema_version": SCHEMA_VERSION,
        "quick": given.quick,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "parts": {name: part.to_json() for name, part in parts.items()},
        "missed": missed,
        "broken": [f"{name}: {broken}" for name, part in parts.items() for broken in part.broken],
    }
    _deliver(table, given.json)
    if given.plots is not None:
        for drawn in charts.draw_all(parts, given.plots):
            print(f"drawn: {drawn}", file=sys.stderr)
    if table["broken"]:
        return 1
    return 1 if given.check and missed else 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench scheduler", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_names, default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a small size of everything; its figures mean little")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="also write JSON; alone: only JSON")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw SVG files into this folder")
    return parser.parse_args(words)


def _names(words: str) -> tuple[str, ...]:
    names = tuple(words.split(","))
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return names


def _measure(name: str, *, quick: bool) -> Part:
    """A process of its own, so that no part pays for what another has left in memory."""
    paths = [str(HERE.parents[1]), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NIGHTMILL_", "MAX_", "DEBUG_MODE"))}
    done = subprocess.run(
        [sys.executable, "-m", "scheduling", name, *(["--quick"] if quick else [])],
        env={**kept, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"the part {name} ended with exit code {done.returncode}")
    return Part.from_json(json.loads(done.stdout))


def _deliver(table: dict[str, Any], where: str | None) -> None:
    if where == "-":
        print(json.dumps(table, indent=2))
    elif where is not None:
        Path(where).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
