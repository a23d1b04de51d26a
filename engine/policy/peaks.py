"""What units of a kind have really taken of the memory: histograms that forget, and what they say of the next unit.

    observed peak -> bucket, 5 % wide, of its (stage, kind, octave of the size)
    next unit     <- 95th percentile of that histogram + 15 % (16 MiB at least), once it has 8 samples; until then the
                     worst case

Rule: adding is all that is ever done to a histogram, so that any number of processes add to the same rows without
having read them, and what was written twice or lost with a process costs a sample, never the sense of the rest. An old
sample is not made lighter; a new one weighs more (forward decay: Cormode, Shkapenyuk, Srivastava, Xu, ICDE 2009).

Holds numbers by type of file and nothing else. A kind is a word from a closed list (policy/estimates.py), never what a
name or a file says: when a user is erased, what its files have taught stays here as counts that say nothing of it.

Width of buckets, percentile, margin and what follows when memory has run out are those of the vertical autoscaler of
Kubernetes (its recommender's defaults).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from engine.model import PeakCount, PeakKey
from engine.policy.growth import LEAST_BURST_BYTES

_MIB: Final = 1024**2

#: Each bucket ends 5 % above the one before. The first holds all up to 8 MiB, less than a Python without work takes.
RATIO: Final = 1.05
FIRST_BYTES: Final = 8 * _MIB
#: The last one ends at some 4 TiB.
MOST_BUCKETS: Final = 270
#: One unit in twenty may need more than it is promised: it grows while it runs, where there is room, or runs again with
#: all there is. Promising each what the largest took would leave memory idle all night.
SHARE: Final = 0.95
MARGIN: Final = 1.15
#: And never a smaller one than a unit may take in any case: a worker that rests at what its kind takes would be
#: replaced before each unit.
LEAST_MARGIN_BYTES: Final = LEAST_BURST_BYTES
#: So many samples before they count: fewer are too often all alike.
ENOUGH_SAMPLES: Final = 8
#: Two weeks: after a new release of a library, or another kind of scans, the last nights say more than all before,
#: and a quiet weekend forgets nothing.
HALF_LIFE_SECONDS: Final = 14 * 86400.0
#: Weights are relative to this moment (2026-01-01, UTC) and double every half-life. A float holds them for 39 years;
#: clocks beyond are taken for that end.
LANDMARK: Final = 1_767_225_600.0
_MOST_DOUBLINGS: Final = 900.0
#: What larger files of a kind have taken is enough for a smaller one: looked for so many octaves up.
_OCTAVES_UP: Final = 3


def octave_of(size: int) -> int:
    """Sizes between two powers of two are alike: 0 for nothing (or unknown), else the bits that the number takes."""
    return max(0, size).bit_length()


def bucket_of(peak_bytes: int) -> int:
    """The bucket that a peak falls into, 0 to MOST_BUCKETS - 1."""
    if peak_bytes <= FIRST_BYTES:
        return 0
    return min(MOST_BUCKETS - 1, math.ceil(math.log(peak_bytes / FIRST_BYTES) / math.log(RATIO)))


def bucket_bytes(bucket: int) -> int:
    """The largest peak that falls into a bucket."""
    return math.ceil(FIRST_BYTES * RATIO**bucket)


def weight_at(now: float) -> float:
    """What one sample weighs that is taken at this moment (seconds since the epoch)."""
    doublings = (now - LANDMARK) / HALF_LIFE_SECONDS
    return float(2.0 ** max(-_MOST_DOUBLINGS, min(_MOST_DOUBLINGS, doublings)))


def after_running_out(taken_bytes: int) -> int:
    """What a unit is taken to need that ran out of memory when it had so much: a fifth more, at least 100 MiB more."""
    return max(taken_bytes + taken_bytes // 5, taken_bytes + 100 * _MIB)


@dataclass(slots=True)
class Histogram:
    """Peaks of units that are alike, by bucket."""

    samples: int = 0
    weights: dict[int, float] = field(default_factory=dict)

    def add(self, bucket: int, weight: float, samples: int = 1) -> None:
        """Add samples that weigh so much together. Order does not matter."""
        self.samples += samples
        self.weights[bucket] = self.weights.get(bucket, 0.0) + weight

    def percentile(self, share: float) -> int:
        """Bytes that this share of the weight (above 0, at most 1) stays within, rounded up to the end of a bucket.

        Raises ValueError when there is no sample.
        """
        if not self.weights:
            raise ValueError("a histogram without samples has no percentile")
        # Of the largest the weights are parts of one: sums of many that differ by 900 doublings stay finite.
        scale = max(self.weights.values()) or 1.0
        wanted = share * math.fsum(weight / scale for weight in self.weights.values())
        reached, bucket = 0.0, 0
        for bucket in sorted(self.weights):
            reached += self.weights[bucket] / scale
            # A sum of floats may end a hair below the whole.
            if reached >= wanted * (1 - 1e-12):
                break
        return bucket_bytes(bucket)


class Peaks:
    """All histograms that a run knows. What it learns counts at once; `take_changes` hands it on to be written."""

    def __init__(self, counts: Iterable[PeakCount] = (), now: float = math.inf) -> None:
        """counts: as they were written, in any order. None counts as newer than `now` (seconds since the epoch): one
        night whose clock was two years ahead would outweigh the next two years."""
        self._histograms: dict[PeakKey, Histogram] = {}
        self._changes: dict[tuple[PeakKey, int], tuple[float, int]] = {}
        newest = weight_at(now)
        for count in counts:
            self._add(count.key, count.bucket, min(count.weight, count.samples * newest), count.samples)

    def learn(self, key: PeakKey, peak_bytes: int, now: float) -> None:
        """A unit has ended that took so much at most, its worker included."""
        bucket, weight = bucket_of(peak_bytes), weight_at(now)
        self._add(key, bucket, weight, 1)
        before, samples = self._changes.get((key, bucket), (0.0, 0))
        self._changes[key, bucket] = before + weight, samples + 1

    def expect(self, key: PeakKey, worst_bytes: int) -> int:
        """What the next unit is expected to take at most; `worst_bytes` while too little is known of its kind."""
        known = self._expected(key)
        if known is not None:
            return known
        for octave in range(key.octave + 1, key.octave + 1 + _OCTAVES_UP):
            larger = self._expected(PeakKey(key.stage, key.kind, octave))
            if larger is not None:
                return min(worst_bytes, larger)
        return worst_bytes

    def take_changes(self) -> list[PeakCount]:
        """What was learned since the last call, to be added to what is written."""
        changes, self._changes = self._changes, {}
        return [
            PeakCount(key=key, bucket=bucket, weight=weight, samples=samples)
            for (key, bucket), (weight, samples) in changes.items()
        ]

    def _add(self, key: PeakKey, bucket: int, weight: float, samples: int) -> None:
        self._histograms.setdefault(key, Histogram()).add(bucket, weight, samples)

    def _expected(self, key: PeakKey) -> int | None:
        found = self._histograms.get(key)
        if found is None or found.samples < ENOUGH_SAMPLES:
            return None
        peak = found.percentile(SHARE)
        return max(math.ceil(peak * MARGIN), peak + LEAST_MARGIN_BYTES)
