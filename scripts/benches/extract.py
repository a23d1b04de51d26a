"""Extraction and OCR: pages and files a second, character errors, words found, memory; against other programs.

The whole engine (`nightmill init`, embedder none) over the files of the corpus and PDFs made of its pages, in the same
run as kreuzberg's batch API and as pytesseract, pypdfium2 and PyMuPDF in a pool of as many processes as there are
cores. These are installed into an environment of their own (pip, pinned versions, once). Who begins changes from round
to round.

Nothing here is a pass mark: the exit code is 0, and what was missed, lost or could not be run is named at the end.
Needs a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from extraction.pages import write_figures  # noqa: E402
from extraction.peers import NoPeersError, Peers, default_place, prepare  # noqa: E402
from extraction.runs import RunError  # noqa: E402
from extraction.sections import SECTIONS, Section, Sizes, World  # noqa: E402
from scheduling.figures import Part  # noqa: E402

SCHEMA_VERSION = 1
QUICK = Sizes(every=12, scans=(1, 3), users=2, books=2, book_pages=20, rounds=1)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, draw. Returns the exit code."""
    given = _parse(words)
    signal.signal(signal.SIGTERM, _end)
    machine = _machine(given.cores)
    peers = _peers(given.peers)
    place = Path(tempfile.mkdtemp(prefix="nightmill-extract-", dir=given.place))
    sections: dict[str, Section] = {}
    try:
        world = World(given.corpus, place, given.cores, given.sizes, peers)
        for name in given.only:
            began = time.monotonic()
            try:
                sections[name] = SECTIONS[name](world)
            except RunError as error:
                sections[name] = Section(part=Part(figures=(), broken=(f"could not be run: {error}",)))
            _say(f"{name}: measured in {time.monotonic() - began:.0f} s")
            if given.json != "-":
                _print(name, sections[name])
    finally:
        shutil.rmtree(place, ignore_errors=True)
    _deliver(given, sections, peers, machine)
    return 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench extract", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    corpus = os.environ.get("NIGHTMILL_CORPUS") or ROOT.parent / "shared" / "corpus"
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--corpus", type=Path, default=Path(corpus), help="of real files (default: %(default)s)")
    parser.add_argument("--only", type=_names, default=tuple(SECTIONS), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="a small size of everything; its figures mean little")
    parser.add_argument("--every", type=int, metavar="N", help="only every Nth file and page image")
    parser.add_argument("--cores", type=int, default=cores, help="workers of ours and of pools (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help=f"of what is compared by time (default: {Sizes().rounds})")
    parser.add_argument("--users", type=int, help=f"who have the mixed files (default: {Sizes().users})")
    parser.add_argument("--scans", type=_numbers, help="pages of each scan, such as 1,20,200")
    parser.add_argument(
        "--dpi", type=int, help=f"the pytesseract pool renders pages at (default: {Sizes().dpi}); 0: takes the picture"
    )
    parser.add_argument(
        "--peers", default=str(default_place()), help="folder for the others (default: %(default)s), or none"
    )
    parser.add_argument("--place", type=Path, help="work in this folder")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="also write JSON; alone: only JSON")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw SVG files into this folder")
    parser.add_argument(
        "--write", type=Path, metavar="DOCS", help="put tables into DOCS/extraction.md, pictures into DOCS/figures"
    )
    given = parser.parse_args(words)
    for folder in ("ocr", "mixed"):
        if not (given.corpus / folder).is_dir():
            parser.error(f"no corpus of real files at {given.corpus} (set NIGHTMILL_CORPUS)")
    said = {name: getattr(given, name) for name in ("every", "rounds", "users", "scans", "dpi")}
    sizes = QUICK if given.quick else Sizes()
    given.sizes = Sizes(
        **{
            name: said[name] if said.get(name) is not None else getattr(sizes, name)
            for name in ("every", "scans", "users", "books", "book_pages", "rounds", "dpi")
        }
    )
    return given


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _names(words: str) -> tuple[str, ...]:
    names = tuple(words.split(","))
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no section is called {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    return names


def _numbers(words: str) -> tuple[int, ...]:
    return tuple(int(word) for word in words.split(","))


def _peers(where: str) -> Peers | None:
    if where == "none":
        return None
    try:
        return prepare(Path(where))
    except NoPeersError as error:
        _say(f"{error}\nwithout them only Nightmill is measured; --peers none says so from the beginning")
        return None


def _machine(cores: int) -> str:
    """Cores, and whether others were at work when the bench began: then rates mean little, CPU times a bit more."""
    busy = psutil.cpu_percent(interval=2.0)
    said = f" beside other work ({busy:.0f} % of the processor), so that rates mean little" if busy > 10 else ""
    return f"{cores} cores{said}"


def _told(sizes: Sizes) -> str:
    """What the figures are of, where it is not always the same."""
    part = f"one file in {sizes.every}, " if sizes.every > 1 else ""
    scans = ", ".join(map(str, sizes.scans))
    return f"{part}scans of {scans} pages, {sizes.users} users, {sizes.rounds} rounds"


def _print(name: str, section: Section) -> None:
    print(f"\n{name}", *(f"  {figure.line()}" for figure in section.part.figures), sep="\n", flush=True)
    for broken in section.part.broken:
        print(f"  BROKEN: {broken}", flush=True)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _deliver(given: argparse.Namespace, sections: Mapping[str, Section], peers: Peers | None, machine: str) -> None:
    missed = [f"{name}.{one.name}" for name, found in sections.items() for one in found.part.figures if one.missed]
    broken = [f"{name}: {words}" for name, found in sections.items() for words in found.part.broken]
    table: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "quick": given.quick,
        "machine": {
            "cores": given.cores,
            "python": platform.python_version(),
            "system": platform.platform(),
            "words": machine,
        },
        "peers": peers is not None,
        "parts": {name: found.part.to_json() for name, found in sections.items()},
        "missed": missed,
        "broken": broken,
    }
    if given.plots is not None:
        _draw(given.plots, sections)
    if given.write is not None:
        _draw(given.write / "figures", sections)
        measured = {name: found.part for name, found in sections.items() if found.part.figures}
        write_figures(given.write / "extraction.md", measured, f"{machine}; {_told(given.sizes)}")
    if given.json == "-":
        print(json.dumps(table, indent=2))
    elif given.json is not None:
        Path(given.json).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    if given.json != "-":
        print(f"\ntargets missed: {', '.join(missed) or 'none'}")
        print(*(f"broken: {words}" for words in broken), sep="\n", end="\n" if broken else "")


def _draw(folder: Path, sections: Mapping[str, Section]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for found in sections.values():
        for name, picture in found.pictures.items():
            path = folder / f"extract-{name}.svg"
            path.write_text(picture, encoding="utf-8")
            _say(f"drawn: {path}")


if __name__ == "__main__":
    sys.exit(main())
