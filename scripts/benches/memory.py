"""Memory limits of the kernel: what `init` does under 1, 2 and 4 GiB, against a pool of processes sized by hand.

The mixed files of the corpus and two large scans (A4 and A3 at 300 dpi) are read inside a cgroup, first by Nightmill,
then by a ProcessPoolExecutor over the same functions with one worker count after the other; the best that survives
counts. Memory is looked at from outside every 100 ms. Each mixed file is also read alone, to know what it needs.

A kernel OOM kill of Nightmill, a file that would fit and is not indexed, or a process left running ends with exit code
1 always; a missed target only with --check; 4 where no limit can be set. Needs root (or a cgroup that was handed on),
and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from memory_limits.groups import Group, NoGroupError, limited, sweep  # noqa: E402
from memory_limits.runs import Watched, watch  # noqa: E402
from memory_limits.scans import find_sources, write_poster, write_scan  # noqa: E402
from scheduling.charts import Axis, line_chart  # noqa: E402
from scheduling.figures import Figure, Part  # noqa: E402

from engine.sizes import format_size, parse_size  # noqa: E402 - found beside this file
from tests.mill import PROGRAM, Mill  # noqa: E402

PARTS = ("alone", "init", "pool")
SCHEMA_VERSION = 1
GIB = 1 << 30
#: A pool whose try takes longer than this hangs; the slowest honest one (one worker, 400 pages) takes ten minutes.
MOST_SECONDS = 3600.0
#: Neither a mixed file nor a poster takes a minute alone.
ALONE_SECONDS = 300.0
#: Of the best count that was found by hand.
LEAST_SHARE = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is read: a folder of `mixed`, `scans` and `posters`, how many files these are, and pages of scans."""

    folder: Path
    files: int
    scan_pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A file, not a scan, read in a process of its own. failed: the reason, "" where it was read."""

    peak_bytes: int
    failed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MillRun:
    """One `init` in a group, and what the ledger says afterwards.

    states      files (not attachments) by state
    reasons     files that are not indexed, by reason
    lost        path -> "state reason" of files that are not indexed whole
    attempts    attempts that failed, by reason
    peaks       stage -> the largest peak that the engine noted, bytes
    problems    what must not be, in words
    """

    seen: Watched
    embedder: str
    work: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    peaks: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRun:
    """One try of the pool. done: as memory_limits/pool.py prints it; {} where it did not come to that."""

    seen: Watched
    workers: int
    done: Mapping[str, int]

    @property
    def survived(self) -> bool:
        """It came to its end, and no process was killed."""
        return self.seen.exit_code == 0 and not self.seen.oom_kills


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, draw. Returns the exit code."""
    given = _parse(words)
    signal.signal(signal.SIGTERM, _end)
    place = Path(tempfile.mkdtemp(prefix="nightmill-memory-", dir=given.place))
    try:
        sweep()
        with limited(given.limits[0]):
            pass  # Said at once where it cannot be done, and not when all has been made.
        world = _make_world(given.corpus, place / "world", given)
        alone = _read_alone(world) if "alone" in given.only else {}
        _say(f"{world.files} files, {world.scan_pages} pages of scans; {len(alone)} files read alone")
        parts: dict[str, Part] = {}
        details: dict[str, Any] = {"alone": {name: asdict(one) for name, one in alone.items()}}
        for limit in given.limits:
            name = format_size(limit).replace(" ", "")
            mills, pools = _measure(world, place, limit, given)
            parts[name] = _judged(world, limit, alone, mills, pools)
            details[name] = {"init": [asdict(one) for one in mills], "pool": [asdict(one) for one in pools]}
            if given.json != "-":
                _print_part(name, parts[name])
            if given.plots is not None:
                _draw(given.plots / f"memory-{name}.svg", limit, mills, pools)
    except NoGroupError as error:
        _say(f"cannot be measured here: {error}")
        return 4
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return _deliver(given, world, parts, details)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    corpus = os.environ.get("NIGHTMILL_CORPUS") or ROOT.parent / "shared" / "corpus"
    parser.add_argument("--corpus", type=Path, default=Path(corpus), help="of real files (default: %(default)s)")
    parser.add_argument("--limits", type=_sizes, default=(GIB, 2 * GIB, 4 * GIB), help="such as 1GiB,2GiB,4GiB")
    parser.add_argument("--pages", type=int, default=200, help="of each scan (default: %(default)s); 0 for no scans")
    parser.add_argument("--posters", type=int, default=0, help="pictures of 70 million pixels as well, so many")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth mixed file")
    parser.add_argument("--workers", type=_numbers, default=(1, 2, 3, 4), help="counts to try in the pool")
    parser.add_argument(
        "--embedders", type=_names, default=("none", "builtin"), help="runs of init; the first compares"
    )
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--place", type=Path, help="work in this folder; a tmpfs would count as memory")
    parser.add_argument(
        "--quick", action="store_true", help="3 pages, every 20th file, one limit; its figures mean little"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="also write JSON; alone: only JSON")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw memory over time as SVG into this folder")
    given = parser.parse_args(words)
    if given.quick:
        given.pages, given.every = 3, 20
        given.limits, given.workers, given.embedders = given.limits[:1], given.workers[1:2], given.embedders[:1]
    if not (given.corpus / "mixed").is_dir():
        parser.error(f"no corpus of real files at {given.corpus} (set NIGHTMILL_CORPUS)")
    return given


def _sizes(words: str) -> tuple[int, ...]:
    return tuple(parse_size(word) for word in words.split(","))


def _numbers(words: str) -> tuple[int, ...]:
    return tuple(sorted({int(word) for word in words.split(",")}))


def _names(words: str) -> tuple[str, ...]:
    return tuple(words.split(","))


def _parts(words: str) -> tuple[str, ...]:
    unknown = sorted(set(_names(words)) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return _names(words)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


# --- what is read ----------------------------------------------------------------------------------------------------


def _make_world(corpus: Path, folder: Path, given: argparse.Namespace) -> World:
    mixed = folder / "mixed"
    mixed.mkdir(parents=True)
    for path in sorted(path for path in (corpus / "mixed").iterdir() if path.is_file())[:: given.every]:
        shutil.copyfile(path, mixed / path.name)
    scans = folder / "scans"
    scans.mkdir()
    sources = find_sources(corpus / "ocr")
    if (given.pages or given.posters) and not sources:
        raise SystemExit(f"{corpus / 'ocr'} has no A4 pages of 300 dpi to make scans of; --pages 0 goes without")
    for sheet in ("A4", "A3") if given.pages else ():
        write_scan(scans / f"{sheet}.pdf", sheet, given.pages, sources)
        size = format_size((scans / f"{sheet}.pdf").stat().st_size)
        _say(f"made a scan of {given.pages} pages {sheet}, {size}")
    posters = folder / "posters"
    posters.mkdir()
    for number in range(given.posters):
        write_poster(posters, number, sources)
    files = sum(path.is_file() for path in folder.rglob("*"))
    return World(folder=folder, files=files, scan_pages=given.pages * 2)


def _read_alone(world: World) -> dict[str, Alone]:
    """Each file but the scans in a new process, as many at once as there are cores. Nothing is limited here."""

    def read(path: Path) -> tuple[str, Alone]:
        name = str(path.relative_to(world.folder))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "memory_limits.reading", str(path)],
                env=_environ(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=ALONE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return name, Alone(peak_bytes=0, failed="deadline")
        if done.returncode:
            return name, Alone(peak_bytes=0, failed=f"exit code {done.returncode}")
        said = json.loads(done.stdout)
        return name, Alone(peak_bytes=said["peak_bytes"], failed=said["failed"])

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(threads.map(read, sorted(world.folder.glob("[mp]*/*"))))


def _environ() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NIGHTMILL_", "MAX_", "DEBUG_MODE"))}
    return {**kept, "PYTHONPATH": os.pathsep.join((str(ROOT), str(HERE)))}


# --- runs ------------------------------------------------------------------------------------------------------------


def _measure(world: World, place: Path, limit: int, given: argparse.Namespace) -> tuple[list[MillRun], list[PoolRun]]:
    mills: list[MillRun] = []
    for embedder in given.embedders if "init" in given.only else ():
        with limited(limit) as group, tempfile.TemporaryDirectory(dir=place) as folder:
            mills.append(_run_mill(world, group, Path(folder), embedder))
        seen = mills[-1].seen
        _say(f"{format_size(limit)}, init with embedder {embedder}: {_in_words(seen)}")
    pools: list[PoolRun] = []
    for workers in _in_order(given.workers) if "pool" in given.only else ():
        if not _worth_trying(workers, pools):
            continue
        with limited(limit) as group:
            seen = watch(
                group,
                [sys.executable, "-m", "memory_limits.pool", str(world.folder), str(workers)],
                _environ(),
                place,
                MOST_SECONDS,
            )
        done = json.loads(seen.said) if seen.said.strip() else {}
        pools.append(PoolRun(seen=seen, workers=workers, done=done))
        _say(f"{format_size(limit)}, pool of {workers}: {_in_words(seen)}; {done}")
    return mills, pools


def _in_order(counts: Iterable[int]) -> list[int]:
    """As many as there are cores first, then more, then fewer."""
    cores = len(os.sched_getaffinity(0))
    return sorted(counts, key=lambda workers: (workers < cores, abs(workers - cores)))


def _worth_trying(workers: int, tried: Sequence[PoolRun]) -> bool:
    """More than a count that did not survive will not either; fewer than the cores lose to any count that did."""
    if any(not one.survived and one.workers < workers for one in tried):
        return False
    fewer = workers < len(os.sched_getaffinity(0))
    return not (fewer and any(one.survived and one.workers > workers for one in tried))


def _run_mill(world: World, group: Group, folder: Path, embedder: str) -> MillRun:
    mill = Mill(folder, NIGHTMILL_EMBEDDER=embedder, PYTHONPATH=str(ROOT))
    mill.run("users", "add", "ann", f"folder:{world.folder}")
    seen = watch(group, [*PROGRAM, "init", "--json"], mill.environ, folder, MOST_SECONDS)
    mill.stop_scheduler()
    problems: list[str] = []
    left = group.members()
    if left:
        problems.append(f"{len(left)} processes still ran when all had ended")
    if seen.exit_code not in (0, 3):
        problems.append(f"init ended with exit code {seen.exit_code}: {seen.complaints[-500:]}")
        return MillRun(seen=seen, embedder=embedder, problems=tuple(problems))
    report = json.loads(seen.said)
    counts = report["counts"]
    if counts["found"] != counts["indexed"] + counts["skipped"] + counts["failed"] or counts["pending"]:
        problems.append(f"the sum is wrong: {counts}")
    own = "FROM items WHERE parent_id IS NULL"
    lost = mill.ledger(f"SELECT path, state, reason, partial {own} AND (state <> 'indexed' OR partial)")
    return MillRun(
        seen=seen,
        embedder=embedder,
        work=report["work"],
        states=dict(mill.ledger(f"SELECT state, count(*) {own} GROUP BY state")),
        reasons=dict(mill.ledger(f"SELECT reason, count(*) {own} AND reason IS NOT NULL GROUP BY reason")),
        lost={
            path: " ".join(filter(None, (state, reason, partial and "partial")))
            for path, state, reason, partial in lost
        },
        attempts=dict(mill.ledger("SELECT reason, count(*) FROM attempts WHERE reason IS NOT NULL GROUP BY reason")),
        peaks=dict(mill.ledger("SELECT stage, max(peak_bytes) FROM attempts GROUP BY stage")),
        problems=tuple(problems),
    )


# --- what it means ---------------------------------------------------------------------------------------------------


def _judged(
    world: World, limit: int, alone: Mapping[str, Alone], mills: Sequence[MillRun], pools: Sequence[PoolRun]
) -> Part:
    broken: list[str] = []
    figures: list[Figure] = []
    for number, mill in enumerate(mills):
        seen, told = mill.seen, f"init, {mill.embedder}"
        broken += [f"{told}: {problem}" for problem in mill.problems]
        if seen.oom_kills:
            broken.append(f"{told}: the kernel killed {seen.oom_kills} processes for want of memory")
        broken += [f"{told}: {path}: {why}" for path, why in _should_be_indexed(world, limit, alone, mill)]
        figures += _figures(f"init_{mill.embedder}", told, seen, world)
        refused = sum(mill.reasons.get(reason, 0) for reason in ("out_of_memory", "too_large", "bomb"))
        short = mill.attempts.get("out_of_memory", 0)
        figures += [
            Figure(name=f"refusals_{mill.embedder}", value=refused, unit="files", words=f"{told}: refused for memory"),
            Figure(name=f"retries_{mill.embedder}", value=short, unit="attempts", words=f"{told}: ran out of memory"),
        ]
        if mill.work:
            words = f"{told}: pages recognised"
            figures.append(Figure(name=f"pages_{mill.embedder}", value=mill.work["ocr_pages"], unit="", words=words))
        best = _best(pools)
        if number == 0 and best is not None and not mill.problems:
            # Both have read the same files: the ratio of their rates is that of their times.
            share = best.seen.seconds / seen.seconds
            words = f"throughput over that of the best pool that survived ({best.workers} workers)"
            figures.append(Figure(name="share", value=share, unit="", words=words, at_least=LEAST_SHARE))
    for pool in sorted(pools, key=lambda pool: pool.workers):
        told = f"pool of {pool.workers}" + ("" if pool.survived else ", which broke")
        figures += _figures(f"pool_{pool.workers}", told, pool.seen, world if pool.survived else None)
        pages = pool.done.get("pages", 0)
        figures.append(
            Figure(name=f"pool_{pool.workers}_pages", value=pages, unit="", words=f"{told}: pages recognised")
        )
    return Part(figures=tuple(figures), broken=tuple(broken), checked=len(alone))


def _figures(name: str, told: str, seen: Watched, world: World | None) -> list[Figure]:
    figures = [
        Figure(name=f"{name}_seconds", value=seen.seconds, unit="s", words=f"{told}: wall time"),
        Figure(name=f"{name}_cpu", value=seen.cpu_seconds, unit="s", words=f"{told}: CPU time"),
        Figure(
            name=f"{name}_peak", value=seen.peak_used_bytes / 2**20, unit="MiB", words=f"{told}: peak without cache"
        ),
        Figure(
            name=f"{name}_kernel_peak", value=seen.peak_kernel_bytes / 2**20, unit="MiB", words=f"{told}: with cache"
        ),
        Figure(
            name=f"{name}_oom_kills",
            value=seen.oom_kills,
            unit="",
            words=f"{told}: OOM kills",
            at_most=0 if name.startswith("init") else None,
        ),
    ]
    if world is not None:
        rate = world.files / seen.seconds
        figures.insert(0, Figure(name=f"{name}_files", value=rate, unit="files/s", words=f"{told}: files a second"))
    return figures


def _should_be_indexed(world: World, limit: int, alone: Mapping[str, Alone], mill: MillRun) -> list[tuple[str, str]]:
    """(path, what it is instead) of files that fit alone, and of scans, that are not indexed whole."""
    fits = {name for name, one in alone.items() if not one.failed and one.peak_bytes < limit}
    fits |= {f"scans/{path.name}" for path in (world.folder / "scans").iterdir()}
    return sorted((path, f"{why}; {_need(alone.get(path))}") for path, why in mill.lost.items() if path in fits)


def _need(one: Alone | None) -> str:
    return "a scan" if one is None else f"alone it takes {one.peak_bytes / 2**20:.0f} MiB"


def _best(pools: Sequence[PoolRun]) -> PoolRun | None:
    return min((one for one in pools if one.survived), key=lambda one: one.seen.seconds, default=None)


# --- telling ---------------------------------------------------------------------------------------------------------


def _draw(path: Path, limit: int, mills: Sequence[MillRun], pools: Sequence[PoolRun]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    best = _best(pools)
    lines = {"nightmill": mills[0].seen.line} if mills else {}
    if best is not None:
        lines[f"pool of {best.workers}"] = best.seen.line
    for broke in sorted((one for one in pools if not one.survived), key=lambda one: one.workers)[:1]:
        lines[f"pool of {broke.workers}"] = broke.seen.line
    if not lines:
        return
    words = f"Memory in use under a limit of {format_size(limit)}"
    mebibytes = limit / 2**20
    y = Axis(words="MiB, without file cache", least=0.0, most=mebibytes * 1.1)
    path.write_text(
        line_chart(words, lines, Axis(words="seconds", least=0.0), y, (None, mebibytes, "the limit")), encoding="utf-8"
    )
    print(f"drawn: {path}", file=sys.stderr)


def _in_words(seen: Watched) -> str:
    return (
        f"{seen.seconds:.1f} s, peak {seen.peak_used_bytes / 2**20:.0f} MiB, exit code {seen.exit_code}, "
        f"{seen.oom_kills} OOM kills"
    )


def _print_part(name: str, part: Part) -> None:
    print(f"\n{name}", *(f"  {figure.line()}" for figure in part.figures), sep="\n", flush=True)
    for broken in part.broken:
        print(f"  BROKEN: {broken}", flush=True)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _deliver(given: argparse.Namespace, world: World, parts: Mapping[str, Part], details: Mapping[str, Any]) -> int:
    missed = [f"{name}.{figure.name}" for name, part in parts.items() for figure in part.figures if figure.missed]
    broken = [f"{name}: {words}" for name, part in parts.items() for words in part.broken]
    table = {
        "schema_version": SCHEMA_VERSION,
        "quick": given.quick,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "files": world.files,
        "scan_pages": world.scan_pages,
        "parts": {name: part.to_json() for name, part in parts.items()},
        "missed": missed,
        "broken": broken,
        "details": details,
    }
    if given.json == "-":
        print(json.dumps(table, indent=2))
    elif given.json is not None:
        Path(given.json).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    if broken:
        return 1
    return 1 if given.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
