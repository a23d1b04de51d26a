"""How long will this take, and how much memory? Predictions for a unit before it begins.

Rule: never right, always on the safe side where it protects (memory, deadlines), near the mean where it only orders
(seconds). Figures are CPU seconds of one core and bytes over an empty worker.

Sources of the constants: FACTS of the extraction and embedding benches (README, "Figures"); refined by `scripts/bench`.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.model import Stage

MIB = 1024**2

#: Extraction, by the ending of the name: (seconds for the file, seconds a MB, memory as a multiple of the size).
_BY_ENDING: dict[str, tuple[float, float, float]] = {
    ".pdf": (0.02, 0.15, 8.0),
    ".docx": (0.01, 0.6, 40.0),
    ".html": (0.004, 0.1, 15.0),
    ".htm": (0.004, 0.1, 15.0),
    ".eml": (0.005, 0.1, 10.0),
    ".ics": (0.002, 0.1, 10.0),
    ".png": (0.01, 0.02, 4.0),
    ".jpg": (0.01, 0.02, 4.0),
    ".tif": (0.02, 0.02, 4.0),
}
#: Anything else: unknown is taken for the worst that is usual.
_UNKNOWN = (0.01, 0.3, 15.0)
#: A worker of any stage, its libraries loaded.
_BASE_BYTES = {
    Stage.EXTRACT: 96 * MIB,
    Stage.OCR: 160 * MIB,
    Stage.CHUNK: 96 * MIB,
    Stage.EMBED: 288 * MIB,
    Stage.INDEX: 96 * MIB,
}
#: The least that a unit may use before its limit makes an error of it. Innocent files stay far below.
_LEAST_LIMIT_BYTES = 768 * MIB
#: One page of 200 dpi: the bitmap, the OCR engine's copies of it.
_OCR_PAGE_SECONDS, _OCR_PAGE_BYTES = 0.7, 64 * MIB
#: Texts of 200 tokens on one core.
_EMBED_SECONDS = {"builtin": 0.03, "fast": 0.0004, "none": 0.0}
#: A million characters are cut, and their keywords made, in about a second and a half.
_CHUNK_SECONDS_PER_CHAR = 1.5e-6
#: CPU seconds that an item may use: so many times what was predicted, and never less than a slow machine needs.
_DEADLINE_FACTOR, _DEADLINE_LEAST_SECONDS = 20.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one order is expected to take.

    seconds         CPU seconds
    memory_bytes    peak, worker included: what the lease reserves
    limit_bytes     over an idle worker: beyond it the worker meets an error; 0: no limit of its own
    deadline        CPU seconds after which the worker is stopped
    """

    seconds: float
    memory_bytes: int
    limit_bytes: int
    deadline: float


def extraction(*, size_bytes: int, ending: str, failures: int = 0) -> Estimate:
    """One file. `ending` as ".pdf", lower case; each failure before doubles what it may use."""
    base, per_mb, factor = _BY_ENDING.get(ending, _UNKNOWN)
    seconds = base + per_mb * size_bytes / 1e6
    own = int(size_bytes * factor) << min(failures, 4)
    limit = max(_LEAST_LIMIT_BYTES << min(failures, 4), 2 * own)
    return _estimate(Stage.EXTRACT, seconds, own, limit)


def ocr_page(*, failures: int = 0) -> Estimate:
    """One page."""
    own = _OCR_PAGE_BYTES << min(failures, 4)
    return _estimate(Stage.OCR, _OCR_PAGE_SECONDS, own, _LEAST_LIMIT_BYTES << min(failures, 4))


def chunking(*, chars: int, failures: int = 0) -> Estimate:
    """One document of so many characters (bytes of its JSON do as well)."""
    own = chars * 12 << min(failures, 4)
    limit = max(_LEAST_LIMIT_BYTES << min(failures, 4), 2 * own)
    return _estimate(Stage.CHUNK, 0.001 + chars * _CHUNK_SECONDS_PER_CHAR, own, limit)


def embedding(*, texts: int, embedder: str) -> Estimate:
    """So many texts of the usual length, one order."""
    seconds = 0.001 + texts * _EMBED_SECONDS.get(embedder, _EMBED_SECONDS["builtin"])
    return _estimate(Stage.EMBED, seconds, 16 * MIB, 0)


def indexing(*, vectors: int, dim: int) -> Estimate:
    """A FAISS file of so many vectors: they are held once by FAISS, once while they are read."""
    own = vectors * dim * 4 * 2
    return _estimate(Stage.INDEX, 0.01 + vectors * dim * 4e-9, own, 0)


def _estimate(stage: Stage, seconds: float, own: int, limit: int) -> Estimate:
    return Estimate(
        seconds=seconds,
        memory_bytes=_BASE_BYTES[stage] + own,
        limit_bytes=limit,
        deadline=max(_DEADLINE_LEAST_SECONDS, seconds * _DEADLINE_FACTOR),
    )
