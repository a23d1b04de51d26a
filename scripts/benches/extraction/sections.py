"""What is measured, section by section: who runs over what in which order, and the figures that come of it.

Rule: we and the others read the same files in the same run, whole programs against whole programs, and who begins
changes from round to round. A figure is the median of the rounds; a ratio is the median of the ratios within rounds.
"""

from __future__ import annotations

import statistics
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from scheduling.charts import bar_chart
from scheduling.figures import Figure, Part

from engine.workers.types import DOCX, IMAGES, PDF
from extraction.measures import Found, added, agreed, compare, error_rates, words_of
from extraction.pages import NIGHTMILL
from extraction.peers import Peers
from extraction.runs import MillRun, Watched, run_mill
from extraction.worlds import docx_words, page_count, page_images, write_books, write_scans

_T = TypeVar("_T")
#: Of each file, where the least CPU time of them counts.
READINGS = 3

#: Character error rate in percent that a group of pages may have, by the beginning of its name.
_MOST_ERRORS = {
    "all": 2.4,
    "receipt": 24.0,
    "book": 2.3,
    **{f"{kind}{dpi}": 0.3 for kind in ("clean", "noisy") for dpi in (150, 200, 300)},
    **{f"{kind}100": 0.5 for kind in ("clean", "noisy")},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of everything. Of the corpus every `every`th file is taken.

    scans   pages of each PDF made of page images
    users   who have the mixed files
    books   PDFs of text, of so many pages each
    rounds  of what is compared by time
    dpi     at which the others render a page for OCR; 0: they take the picture as it is
    """

    every: int = 1
    scans: tuple[int, ...] = (1, 2, 3, 5, 10, 20, 50, 200)
    users: int = 10
    books: int = 8
    book_pages: int = 600
    rounds: int = 3
    dpi: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Figures and promises of one section, and its pictures: name -> SVG."""

    part: Part
    pictures: Mapping[str, str] = field(default_factory=dict)


class World:
    """The files, made when they are asked for, and the runs that more than one section looks at."""

    def __init__(self, corpus: Path, place: Path, cores: int, sizes: Sizes, peers: Peers | None) -> None:
        self.place, self.cores, self.sizes, self.peers = place, cores, sizes, peers
        self.images = page_images(corpus / "ocr", sizes.every)
        self.mixed_files = sorted(path for path in (corpus / "mixed").iterdir() if path.is_file())[:: sizes.every]

    @cached_property
    def mixed(self) -> Path:
        """A folder with the mixed files."""
        return self.folder_of(self.mixed_files, "mixed")

    @cached_property
    def scans(self) -> list[Path]:
        """PDFs of page images."""
        return write_scans(self.place / "scans", self.images, self.sizes.scans)

    @cached_property
    def books(self) -> list[Path]:
        """PDFs of the text pages of the mixed files."""
        sources = [path for path in self.mixed_files if path.suffix == ".pdf"]
        return write_books(self.place / "books", sources, self.sizes.books, self.sizes.book_pages)

    @cached_property
    def images_read(self) -> MillRun:
        """The page images themselves, with OCR."""
        folder = self.folder_of([image.path for image in self.images], "images")
        return self.run({"ann": folder}, documents=True)

    @cached_property
    def mixed_read(self) -> MillRun:
        """The mixed files once, without OCR."""
        return self.run({"ann": self.mixed}, documents=True, NIGHTMILL_OCR="off")

    def folder_of(self, files: Sequence[Path], name: str) -> Path:
        """A new folder with copies of the files."""
        folder = self.place / name
        folder.mkdir()
        for file in files:
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    def run(self, users: Mapping[str, Path], *, documents: bool = False, **settings: str) -> MillRun:
        """The whole engine over the users' folders."""
        return run_mill(self.place, users, self.cores, documents=documents, **settings)

    def peer(self, verb: str, **order: Any) -> tuple[Watched, dict[str, Any]]:
        """One of the others."""
        assert self.peers is not None
        return self.peers.run(self.place, verb, **order)

    def rotate(self, runners: Mapping[str, Callable[[], _T]]) -> dict[str, list[_T]]:
        """Each runner once in each round, another one first each time."""
        names = list(runners)
        found: dict[str, list[_T]] = {name: [] for name in names}
        for turn in range(self.sizes.rounds):
            at = turn % len(names)
            for name in (*names[at:], *names[:at]):
                found[name].append(runners[name]())
        return found


# --- OCR -------------------------------------------------------------------------------------------------------------


def ocr(world: World) -> Section:
    """Pages per second and character errors of OCR."""
    pages = sum(world.sizes.scans)
    mills: list[MillRun] = []

    def ours() -> Watched:
        mills.append(world.run({"ann": world.scans[0].parent}))
        return mills[-1].seen

    runners: dict[str, Callable[[], Watched]] = {NIGHTMILL: ours}
    pool = f"pytesseract, pool of {world.cores}"
    if world.peers:
        files = [str(path) for path in world.scans]
        order = {"files": files, "dpi": world.sizes.dpi, "workers": world.cores}
        runners[pool] = lambda: world.peer("pytesseract-pages", **order)[0]
    seen = world.rotate(runners)
    broken = [f"{mill.ocr_pages} pages were recognised, not {pages}" for mill in mills if mill.ocr_pages != pages] + [
        f"{path}: {read.state}" for mill in mills for path, read in mill.files.items() if read.state != "indexed"
    ]
    figures = [
        Figure(name="pages", value=pages, unit="pages", words=f"{len(world.scans)} PDFs of page images"),
        Figure(
            name="wall_ratio",
            value=_median(mill.seen.seconds / (mill.ocr_cpu_seconds / world.cores) for mill in mills),
            unit="",
            words="wall time / (CPU seconds of OCR / cores)",
            at_most=1.08,
        ),
        *_cpu(seen, pages, "page"),
        *_rates(seen, pages, "pages/s"),
        *_ratio("speedup", seen, pool, "pages/s over those of the pytesseract pool", 1.6),
        *_memory(seen),
    ]
    rates, more, failed = _errors(world)
    pictures = {"ocr": _chart("OCR of scanned PDFs, whole programs", seen, pages, "pages/s")}
    if rates:
        pictures["errors"] = bar_chart(
            "Character error rate by group of pages", rates, "%, logarithmic", by_powers=True
        )
    return Section(
        part=Part(figures=(*figures, *more), broken=(*broken, *failed), checked=len(world.images)), pictures=pictures
    )


def _errors(world: World) -> tuple[dict[str, dict[str, float]], list[Figure], list[str]]:
    """(group -> who -> character error rate, figures, files that were not read)."""
    truths = {image.path.name: image.truth for image in world.images}
    groups = {image.path.name: image.group for image in world.images}
    files = [str(image.path) for image in world.images]
    documents = world.images_read.documents
    texts = {NIGHTMILL: {name: _text(documents[name]) for name in groups if name in documents}}
    seen = {NIGHTMILL: [world.images_read.seen]}
    failed = [f"{name}: no document" for name in groups if name not in documents]
    if world.peers:
        for name, verb, order in (
            ("pytesseract", "pytesseract-images", {"workers": world.cores}),
            ("kreuzberg", "kreuzberg-batch", {"ocr": True, "texts": True}),
        ):
            watched, answer = world.peer(verb, files=files, **order)
            texts[name] = {Path(file).name: text for file, text in answer["texts"].items()}
            seen[name] = [watched]
    rates: dict[str, dict[str, float]] = defaultdict(dict)
    figures = _rates(seen, len(files), "pages/s", "image files: ")
    for name, found in texts.items():
        for group, rate in error_rates(found, truths, groups).items():
            rates[group][name] = rate
            most = next((most for start, most in _MOST_ERRORS.items() if group.startswith(start)), None)
            figures.append(
                Figure(
                    name=f"cer_{group}_{_plain(name)}",
                    value=rate,
                    unit="%",
                    words=f"character error rate, {group}: {name}",
                    at_most=most if name == NIGHTMILL else None,
                )
            )
    return rates, figures, failed


# --- files of all kinds ----------------------------------------------------------------------------------------------


def mixed(world: World) -> Section:
    """Files per second, many small files of many users."""
    users = {f"u{number:02d}": world.mixed for number in range(world.sizes.users)}
    count = len(world.mixed_files) * len(users)
    runners: dict[str, Callable[[], Watched]] = {}
    mills: list[MillRun] = []

    def ours() -> Watched:
        mills.append(world.run(users, NIGHTMILL_OCR="off"))
        return mills[-1].seen

    runners[NIGHTMILL] = ours
    shared = _read_by_both(world) if world.peers else []
    same, other = f"{NIGHTMILL}, the same", "kreuzberg, batch"
    if shared:
        folder = world.folder_of(shared, "shared")
        runners[same] = lambda: world.run(dict.fromkeys(users, folder), NIGHTMILL_OCR="off").seen
        order = {"files": [str(path) for path in shared] * len(users), "ocr": False, "texts": False}
        runners[other] = lambda: world.peer("kreuzberg-batch", **order)[0]
    seen = world.rotate(runners)
    both = {name: seen[name] for name in (same, other) if name in seen}
    broken = [f"{mill.found} files were found, not {count}" for mill in mills if mill.found != count]
    figures = [
        Figure(name="files", value=count, unit="files", words=f"the mixed files as {len(users)} users, OCR off"),
        *_rates({NIGHTMILL: seen[NIGHTMILL]}, count, "files/s", "all: ", at_least=200.0),
        *_cpu({NIGHTMILL: seen[NIGHTMILL]}, count, "file", "all: "),
        Figure(
            name="worker_share",
            value=_median(sum(use.cpu_seconds for use in mill.uses.values()) / mill.seen.cpu_seconds for mill in mills),
            unit="",
            words="share of it that workers spend on files",
        ),
        Figure(name="files_both", value=len(shared) * len(users), unit="files", words="of which both extract a text"),
        *_rates(both, len(shared) * len(users), "files/s", "read by both: "),
        *_cpu(both, len(shared) * len(users), "file", "read by both: "),
        *_ratio(
            "level", {NIGHTMILL: both.get(same, []), **both}, other, "files/s over those of kreuzberg's batch", 1.0
        ),
        *_memory(seen),
    ]
    if not shared:
        figures = [figure for figure in figures if figure.name != "files_both"]
    chart = _chart("Files a second", both, len(shared) * len(users), "files/s") if both else None
    return Section(
        part=Part(figures=tuple(figures), broken=tuple(broken), checked=count),
        pictures={"files": chart} if chart else {},
    )


def _read_by_both(world: World) -> list[Path]:
    """The mixed files of which a text comes out on both sides, without OCR."""
    _, answer = world.peer("kreuzberg-batch", files=[str(path) for path in world.mixed_files], ocr=False, texts=True)
    theirs = {Path(file).name for file, text in answer["texts"].items() if text.strip()}
    ours = {name for name, document in world.mixed_read.documents.items() if _text(document).strip()}
    return [path for path in world.mixed_files if path.name in theirs & ours]


def types(world: World) -> Section:
    """CPU time a file by type: the least of several readings, when all libraries were loaded. Of files of which both
    read something, where there are others."""
    users = {f"u{number}": world.mixed for number in range(READINGS)}
    read = {path: one for path, one in world.run(users, NIGHTMILL_OCR="off").files.items() if one.state == "indexed"}
    seconds = {NIGHTMILL: {path: one.cpu_seconds for path, one in read.items()}}
    if world.peers:
        files = [str(path) for path in world.mixed_files if path.name in read]
        answer = world.peer("kreuzberg-each", files=files, readings=READINGS)[1]["cpu_seconds"]
        seconds["kreuzberg"] = {Path(file).name: taken for file, taken in answer.items()}
    shared = set.intersection(*(set(taken) for taken in seconds.values()))
    by_kind: dict[str, list[str]] = defaultdict(list)
    for path in sorted(shared):
        by_kind[_kind(read[path].media_type)].append(path)
    rows: dict[str, dict[str, float]] = {}
    figures = []
    for kind, paths in sorted(by_kind.items()):
        rows[kind] = {name: statistics.fmean(taken[path] for path in paths) * 1000 for name, taken in seconds.items()}
        figures += [
            Figure(
                name=f"cpu_{_plain(kind)}_{_plain(name)}",
                value=value,
                unit="ms",
                words=f"CPU time a file, {kind} ({len(paths)} files): {name}",
            )
            for name, value in rows[kind].items()
        ]
    chart = bar_chart("CPU time a file by type, OCR off", rows, "ms, logarithmic", by_powers=True)
    return Section(part=Part(figures=tuple(figures), checked=len(shared)), pictures={"types": chart} if rows else {})


# --- text PDFs -------------------------------------------------------------------------------------------------------


def pages(world: World) -> Section:
    """Pages per second of PDFs that have text."""
    files = [str(path) for path in world.books]
    count = sum(map(page_count, world.books))
    mills: list[MillRun] = []

    def ours() -> Watched:
        mills.append(world.run({"ann": world.books[0].parent}))
        return mills[-1].seen

    runners: dict[str, Callable[[], Watched]] = {NIGHTMILL: ours}
    if world.peers:
        for library in ("pypdfium2", "pymupdf"):
            order = {"library": library, "files": files, "workers": world.cores}
            runners[f"{library}, bare pool"] = lambda order=order: world.peer("pdf-pool", **order)[0]  # type: ignore[misc]
        runners["kreuzberg, batch"] = lambda: world.peer("kreuzberg-batch", files=files, ocr=False, texts=False)[0]
    seen = world.rotate(runners)
    broken = [f"{path}: {read.state}" for mill in mills for path, read in mill.files.items() if read.state != "indexed"]
    broken += [f"{mill.ocr_pages} pages of text were taken for scans" for mill in mills if mill.ocr_pages]
    figures = [
        Figure(name="pages", value=count, unit="pages", words=f"{len(files)} PDFs of text"),
        *_rates({NIGHTMILL: seen[NIGHTMILL]}, count, "pages/s", at_least=1000.0),
        *_rates({name: runs for name, runs in seen.items() if name != NIGHTMILL}, count, "pages/s"),
        *_cpu(seen, count, "page"),
        *_memory(seen),
    ]
    return Section(
        part=Part(figures=tuple(figures), broken=tuple(broken), checked=count),
        pictures={"pages": _chart("Pages of text PDF a second", seen, count, "pages/s")},
    )


def words(world: World) -> Section:
    """Words found in text PDFs and in DOCX."""
    figures: list[Figure] = []
    read = world.mixed_read
    checked = 0
    if world.peers:
        some, checked = _pdf_words(world, read)
        figures += some
    parts = {
        path: docx_words(path)
        for path in world.mixed_files
        if read.files[path.name].media_type == DOCX and path.name in read.documents and zipfile.is_zipfile(path)
    }
    if parts:
        figures += _docx_figures(parts, read)
    return Section(part=Part(figures=tuple(figures), checked=checked + len(parts)))


def _pdf_words(world: World, read: MillRun) -> tuple[list[Figure], int]:
    files = [
        path
        for path in world.mixed_files
        if read.files[path.name].media_type == PDF
        and path.name in read.documents
        and not any(page.needs_ocr for page in read.documents[path.name].pages)
    ]
    answer = world.peer("pdf-texts", files=[str(path) for path in files], workers=world.cores)[1]
    texts, four = answer["texts"], answer["four"]
    apart = [*four[:-1], *(name for name in texts if name not in four)]
    alike: list[Found] = []
    found: dict[str, list[Found]] = defaultdict(list)
    worst: tuple[float, str] = (2.0, "")
    for path in files:
        others = {name: words_of(their[str(path)]) for name, their in texts.items()}
        wanted = agreed([others[name] for name in four])
        if not wanted:
            continue
        for name, own in ((NIGHTMILL, words_of(_text(read.documents[path.name]))), *others.items()):
            found[name].append(compare(own, wanted))
        alike.append(compare(words_of(_text(read.documents[path.name])), agreed([others[name] for name in apart])))
        worst = min(worst, (found[NIGHTMILL][-1].recall, path.name))
    figures = []
    for name, several in found.items():
        total = added(several)
        least = 0.99 if name == NIGHTMILL else None
        for what, value in (("recall", total.recall), ("precision", total.precision)):
            said = f"{what} of words, text PDFs ({len(several)} files): {name}"
            figures.append(Figure(name=f"pdf_{what}_{_plain(name)}", value=value, unit="", words=said, at_least=least))
    said = f"with {apart[-1]} in place of {four[-1]}"
    for what, value in (("recall", added(alike).recall), ("precision", added(alike).precision)):
        figures.append(Figure(name=f"pdf_{what}_apart", value=value, unit="", words=f"{what}, {said}: {NIGHTMILL}"))
    if worst[1]:
        figures.append(Figure(name="pdf_worst", value=worst[0], unit="", words=f"least recall of a file ({worst[1]})"))
    return figures, len(files)


def _docx_figures(parts: Mapping[Path, Counter[str]], read: MillRun) -> list[Figure]:
    found = {path: words_of(_text(read.documents[path.name])) for path in parts}
    missing = {path: (wanted - found[path]).total() for path, wanted in parts.items()}
    more = {path: (found[path] - wanted).total() for path, wanted in parts.items()}
    return [
        Figure(
            name="docx_words",
            value=sum(wanted.total() for wanted in parts.values()),
            unit="words",
            words=f"in the parts of {len(parts)} DOCX",
        ),
        Figure(
            name="docx_missing",
            value=sum(missing.values()),
            unit="words",
            words=f"of them not found{_mostly(missing)}",
            at_most=0,
        ),
        Figure(
            name="docx_more",
            value=sum(more.values()),
            unit="words",
            words=f"found more often than they stand there{_mostly(more)}",
            at_most=0,
        ),
    ]


def _mostly(counts: Mapping[Path, int]) -> str:
    most = max(counts, key=lambda path: counts[path])
    return f" (most in {most.name})" if counts[most] else ""


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(world: World) -> Section:
    """What a worker takes that has done one kind of thing only; the kernel's high-water mark of each, by the ledger."""
    folder = world.place / "texts"
    if not folder.exists():
        names = {path for path, read in world.mixed_read.files.items() if read.media_type not in IMAGES}
        world.folder_of([path for path in world.mixed_files if path.name in names], "texts")
    text = world.run({"ann": folder}, NIGHTMILL_OCR="off")
    figures = [
        Figure(
            name="ocr_worker",
            value=world.images_read.use("ocr").peak_bytes / 1e6,
            unit="MB",
            words="most of a worker that did only OCR",
            at_most=150.0,
        ),
        Figure(
            name="text_worker",
            value=max(text.use(stage).peak_bytes for stage in ("extract", "chunk")) / 1e6,
            unit="MB",
            words="most of a worker that did only text (mixed files, no pictures)",
            at_most=90.0,
        ),
    ]
    return Section(part=Part(figures=tuple(figures), checked=len(text.files)))


SECTIONS: dict[str, Callable[[World], Section]] = {
    "ocr": ocr,
    "mixed": mixed,
    "types": types,
    "pages": pages,
    "words": words,
    "memory": memory,
}

# --- of all ----------------------------------------------------------------------------------------------------------


def _rates(
    seen: Mapping[str, Sequence[Watched]], count: int, unit: str, before: str = "", at_least: float | None = None
) -> list[Figure]:
    what = unit.removesuffix("/s")
    return [
        Figure(
            name=f"{what}_per_second_{_plain(before + name)}",
            value=_median(count / one.seconds for one in runs),
            unit=unit,
            words=f"{before}{what} a second: {name}",
            at_least=at_least,
        )
        for name, runs in seen.items()
        if runs
    ]


def _cpu(seen: Mapping[str, Sequence[Watched]], count: int, thing: str, before: str = "") -> list[Figure]:
    """Of all processes; what hardly changes where the machine has other things to do."""
    return [
        Figure(
            name=f"cpu_per_{thing}_{_plain(before + name)}",
            value=_median(one.cpu_seconds / count for one in runs) * 1000,
            unit="ms",
            words=f"{before}CPU time a {thing}: {name}",
        )
        for name, runs in seen.items()
    ]


def _ratio(figure: str, seen: Mapping[str, Sequence[Watched]], other: str, words: str, at_least: float) -> list[Figure]:
    if other not in seen:
        return []
    pairs = zip(seen[NIGHTMILL], seen[other], strict=True)
    value = _median(theirs.seconds / ours.seconds for ours, theirs in pairs)
    return [Figure(name=figure, value=value, unit="", words=words, at_least=at_least)]


def _memory(seen: Mapping[str, Sequence[Watched]]) -> list[Figure]:
    return [
        Figure(
            name=f"peak_{_plain(name)}",
            value=max(one.peak_bytes for one in runs) / 1e6,
            unit="MB",
            words=f"peak memory of all processes: {name}",
        )
        for name, runs in seen.items()
    ]


def _chart(title: str, seen: Mapping[str, Sequence[Watched]], count: int, unit: str) -> str:
    return bar_chart(
        title, {name: {"": _median(count / one.seconds for one in runs)} for name, runs in seen.items()}, unit
    )


def _median(values: Any) -> float:
    return statistics.median(values)


def _text(document: Any) -> str:
    return "\n\n".join(page.text for page in document.pages)


def _kind(media_type: str) -> str:
    return {DOCX: "DOCX", PDF: "PDF"}.get(media_type, media_type)


def _plain(name: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
