"""How long will this take, and how much memory? Predictions for a unit before it begins.

    what is known of the order -> worst case of its kind -- peaks.py: what such orders really took --> Estimate

Rule: never right, always on the safe side where it protects (memory, deadlines), near the mean where it only orders
(seconds). Figures are CPU seconds of one core, and bytes in all: worker and libraries included.

Sources of the constants: `scripts/bench` for seconds; for memory the peaks of workers (VmHWM) in runs over a folder of
217 real files of many kinds, and over pages and pictures of 1 to 98 million pixels that were made for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from engine.model import Failure, PeakKey, Stage
from engine.policy.peaks import Peaks, octave_of
from engine.reasons import Reason

MIB: Final = 1024**2


@dataclass(frozen=True, slots=True)
class _Reader:
    """CPU seconds for the file and for a MB of it; bytes over an idle worker, as a multiple of the size, at most."""

    seconds: float
    seconds_mb: float
    factor: float
    most_bytes: int = 1 << 62


#: A picture of 100 million pixels, which is the largest that is decoded: four bytes each.
_PICTURE_BYTES: Final = 400 * MIB
#: Extraction, by the ending of the name. Pictures are decoded whole: PNG of text packs 60 bytes into one, fax 100; of a
#: JPEG an eighth of the height and width is decoded. Of a PDF pages are looked at one by one.
_BY_ENDING: Final[dict[str, _Reader]] = {
    ".pdf": _Reader(0.02, 0.15, 4.0),
    ".docx": _Reader(0.01, 0.6, 40.0),
    ".html": _Reader(0.004, 0.1, 15.0),
    ".htm": _Reader(0.004, 0.1, 15.0),
    ".eml": _Reader(0.005, 0.1, 10.0),
    ".ics": _Reader(0.002, 0.1, 10.0),
    ".png": _Reader(0.01, 0.02, 64.0, _PICTURE_BYTES),
    ".gif": _Reader(0.01, 0.02, 64.0, _PICTURE_BYTES),
    ".webp": _Reader(0.01, 0.02, 64.0, _PICTURE_BYTES),
    ".bmp": _Reader(0.01, 0.02, 4.0, _PICTURE_BYTES),
    ".jpg": _Reader(0.01, 0.02, 8.0, _PICTURE_BYTES),
    ".jpeg": _Reader(0.01, 0.02, 8.0, _PICTURE_BYTES),
    ".tif": _Reader(0.02, 0.02, 128.0, _PICTURE_BYTES),
    ".tiff": _Reader(0.02, 0.02, 128.0, _PICTURE_BYTES),
}
#: Anything else: unknown is taken for the worst that is usual.
_UNKNOWN: Final = _Reader(0.01, 0.3, 15.0)
#: Under which word a file's peak is learned. All other endings are "other": what a user calls its files is the
#: user's, and must not outlive it in a table that has no user.
_KINDS: Final[dict[str, str]] = {
    **{f".{name}": name for name in ("pdf", "docx", "html", "eml", "ics", "png", "jpg", "tif", "gif", "webp", "bmp")},
    **{f".{name}": name for name in ("txt", "md", "csv", "tsv", "json", "xml", "svg", "mbox", "rtf", "doc", "zip")},
    **{f".{name}": name for name in ("xlsx", "pptx", "odt", "epub", "xls", "ppt", "msg", "log")},
    ".htm": "html",
    ".jpeg": "jpg",
    ".tiff": "tif",
    ".mht": "eml",
    "": "none",
}
_OTHER: Final = "other"
#: A worker of any stage, its libraries loaded: one that has read a file of each kind has 76 MiB, after a thousand of
#: them 89 at rest; one of chunks 40. For OCR the pixels come on top, see there.
_BASE_BYTES: Final = {
    Stage.EXTRACT: 112 * MIB,
    Stage.OCR: 160 * MIB,
    Stage.CHUNK: 64 * MIB,
    Stage.EMBED: 288 * MIB,
    Stage.INDEX: 96 * MIB,
}
#: What was learned of a kind never promises less. A worker keeps the libraries of every kind that it has read: one text
#: file takes 24 MiB in a new worker, and 79 in one that has read PDF and pictures before; one of chunks keeps 40. It is
#: replaced when it leaves a unit less than 16 MiB of its promise: with less than this, before each small unit.
_LOADED_BYTES: Final = {
    Stage.EXTRACT: 112 * MIB,
    Stage.OCR: 120 * MIB,
    Stage.CHUNK: 64 * MIB,
    Stage.EMBED: 0,
    Stage.INDEX: 0,
}
#: A mail is parsed in one piece, as much of it as is read at all (workers/read_mail.py).
_MAIL_BYTES: Final = 256 * MIB
#: No worker is smaller: the interpreter and our own modules.
_LEAST_WORKER_BYTES: Final = 16 * MIB
#: Below so many bits of its size the worker itself is nearly all that an order takes: those are learned as one.
_SMALL_BITS: Final = {Stage.EXTRACT: 16, Stage.OCR: 20, Stage.CHUNK: 16, Stage.EMBED: 6, Stage.INDEX: 14}
#: What any order may take in the end, alone on the machine if need be: far more than any honest file was seen to take,
#: and sixteen times its size, so that large files are not refused for being large.
_CEILING_BYTES, _CEILING_FACTOR = 2048 * MIB, 16
#: One page. Bytes a pixel: what it is decoded from, the sheet, the OCR engine's copies of that. Seen, in MiB: up to 165
#: for pages of a million pixels and for A4 at 200 dpi (3.9), 159 for A3; of pictures 243 for 8 million with
#: transparency, 221 for 35 million of a JPEG, 602 for 98 million of a PNG.
_OCR_PAGE_SECONDS, _OCR_PIXEL_BYTES = 0.7, 12
#: Where a page does not say how many it has: the largest sheet that is rendered.
_OCR_UNKNOWN_PIXELS: Final = 20_000_000
#: Texts of 200 tokens on one core.
_EMBED_SECONDS: Final = {"builtin": 0.03, "fast": 0.0004, "none": 0.0}
#: A million characters are cut, and their keywords made, in a second or two; by the tokens of a model in eight, where
#: they are Chinese.
_CHUNK_SECONDS_PER_CHAR: Final = 4e-6
#: CPU seconds that an item may use: so many times what was predicted, and never less than a slow machine needs.
_DEADLINE_FACTOR, _DEADLINE_LEAST_SECONDS = 20.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one order is expected to take. All bytes are of the whole worker.

    seconds         CPU seconds
    memory_bytes    peak: what the lease is promised
    ceiling_bytes   what it may take in the end, when it runs alone and memory is promised anew
    least_bytes     what it surely takes: a budget below that can never hold it
    deadline        CPU seconds after which the worker is stopped
    key             where its peak is learned; None: nowhere
    """

    seconds: float
    memory_bytes: int
    ceiling_bytes: int
    least_bytes: int
    deadline: float
    key: PeakKey | None = None


def extraction(*, size_bytes: int, ending: str, is_mail: bool = False) -> Estimate:
    """One file. `ending` as ".pdf", lower case; is_mail: its source says so, whatever it holds."""
    reader = _BY_ENDING.get(ending, _UNKNOWN)
    return _estimate(
        _key(Stage.EXTRACT, _KINDS.get(ending, _OTHER), size_bytes),
        seconds=reader.seconds + reader.seconds_mb * size_bytes / 1e6,
        own=min(int(size_bytes * reader.factor), reader.most_bytes),
        size=size_bytes,
        least=min(size_bytes, _MAIL_BYTES) if is_mail else 0,
    )


def ocr_page(*, media_type: str, pixels: int = 0) -> Estimate:
    """One page of a PDF or a picture. `pixels` of the picture, or of the page as it is rendered; 0: unknown."""
    kind = "pdf" if media_type == "application/pdf" else "image"
    own = (pixels or _OCR_UNKNOWN_PIXELS) * _OCR_PIXEL_BYTES
    key = _key(Stage.OCR, kind, pixels) if pixels else PeakKey(Stage.OCR, kind, 0)
    return _estimate(key, seconds=_OCR_PAGE_SECONDS, own=own, size=pixels)


def chunking(*, chars: int) -> Estimate:
    """One document of so many characters (bytes of its JSON do as well)."""
    return _estimate(
        _key(Stage.CHUNK, "document", chars),
        seconds=0.001 + chars * _CHUNK_SECONDS_PER_CHAR,
        own=chars * 12,
        size=chars,
        least=chars,
    )


def embedding(*, texts: int, embedder: str) -> Estimate:
    """So many texts of the usual length, one order."""
    seconds = 0.001 + texts * _EMBED_SECONDS.get(embedder, _EMBED_SECONDS["builtin"])
    return _estimate(_key(Stage.EMBED, embedder, texts), seconds=seconds, own=16 * MIB)


def indexing(*, vectors: int, dim: int) -> Estimate:
    """A FAISS file of so many vectors: FAISS holds them once, and a second time while its array grows."""
    size = vectors * dim * 4
    key = _key(Stage.INDEX, f"{dim}", vectors)
    return _estimate(key, seconds=0.01 + vectors * dim * 4e-9, own=size * 2, size=size, least=size)


def fitted(estimate: Estimate, *, peaks: Peaks, budget_bytes: int, alone: bool = False) -> Estimate:
    """The estimate as this machine takes it: by what was learned, and within the budget (0: none).

    alone: it is suspect, has nothing beside it, and is promised all that it may ever take.
    """
    ceiling = min(estimate.ceiling_bytes, budget_bytes) if budget_bytes else estimate.ceiling_bytes
    need = estimate.memory_bytes
    if estimate.key is not None:
        need = max(_LOADED_BYTES[estimate.key.stage], peaks.expect(estimate.key, need))
    return replace(estimate, memory_bytes=ceiling if alone else min(need, ceiling), ceiling_bytes=ceiling)


def refusal(estimate: Estimate, budget_bytes: int) -> Failure | None:
    """Why this order can never be done within the budget (0: none), with the numbers; None: it may be."""
    if not budget_bytes or estimate.least_bytes <= budget_bytes:
        return None
    detail = (
        f"it takes at least {estimate.least_bytes // MIB:,} MiB of memory; all that the workers may use together is "
        f"{budget_bytes // MIB:,} MiB (NIGHTMILL_MEMORY_LIMIT, or what there is)"
    )
    return Failure(reason=Reason.OUT_OF_MEMORY, detail=detail)


def _key(stage: Stage, kind: str, size: int) -> PeakKey:
    return PeakKey(stage, kind, max(_SMALL_BITS[stage], octave_of(size)))


def _estimate(key: PeakKey, *, seconds: float, own: int, size: int = 0, least: int = 0) -> Estimate:
    memory = _BASE_BYTES[key.stage] + own
    return Estimate(
        seconds=seconds,
        memory_bytes=memory,
        ceiling_bytes=max(memory, _CEILING_BYTES + _CEILING_FACTOR * size),
        least_bytes=_LEAST_WORKER_BYTES + least,
        deadline=max(_DEADLINE_LEAST_SECONDS, seconds * _DEADLINE_FACTOR),
        key=key,
    )
