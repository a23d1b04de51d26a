"""What observed peaks say of the next unit: near what was seen, soon up, slowly down, the same in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import PeakCount, PeakKey, Stage
from engine.policy.growth import LEAST_BURST_BYTES
from engine.policy.peaks import (
    ENOUGH_SAMPLES,
    FIRST_BYTES,
    HALF_LIFE_SECONDS,
    LANDMARK,
    LEAST_MARGIN_BYTES,
    MARGIN,
    MOST_BUCKETS,
    RATIO,
    Histogram,
    Peaks,
    after_running_out,
    bucket_bytes,
    bucket_of,
    octave_of,
    weight_at,
)

MIB = 1024**2
KEY = PeakKey(Stage.EXTRACT, "pdf", 20)
DAY = 86400.0
peaks_seen = st.integers(1, 64 << 30)
#: From before the landmark to thirty years after it.
moments = st.floats(LANDMARK - 300 * DAY, LANDMARK + 30 * 365 * DAY)
samples = st.lists(st.tuples(peaks_seen, moments), max_size=25)


def learned(seen: Sequence[tuple[int, float]], *, key: PeakKey = KEY) -> Peaks:
    """All that a run knows that has seen these (bytes, moment)."""
    peaks = Peaks()
    for peak, now in seen:
        peaks.learn(key, peak, now)
    return peaks


def histogram(counts: Sequence[PeakCount]) -> Histogram:
    """What these rows hold."""
    one = Histogram()
    for count in counts:
        one.add(count.bucket, count.weight, count.samples)
    return one


@given(st.integers(-5, 1 << 70))
def test_a_bucket_ends_at_most_a_twentieth_above_what_it_holds(peak: int) -> None:
    """No less than was seen and 5 % more at most, between the first bucket and the last."""
    bucket = bucket_of(peak)
    assert 0 <= bucket < MOST_BUCKETS
    if FIRST_BYTES <= peak <= bucket_bytes(MOST_BUCKETS - 1):
        # Two floats' worth of rounding in the logarithm.
        assert peak * (1 - 1e-12) <= bucket_bytes(bucket) <= peak * RATIO * (1 + 1e-12) + 1


@given(st.integers(0, 1 << 60), st.integers(0, 1 << 60))
def test_larger_is_never_filed_below(one: int, other: int) -> None:
    """Buckets and octaves are in the order of what falls into them; an octave spans a factor of two."""
    small, large = sorted((one, other))
    assert bucket_of(small) <= bucket_of(large)
    assert octave_of(small) <= octave_of(large)
    assert (octave_of(small) == octave_of(large)) == (small == large or (small > 0 and small ^ large < small & large))


@given(samples, st.data())
def test_adding_is_all_there_is(seen: list[tuple[int, float]], data: st.DataObject) -> None:
    """Two processes that write what they learned say the same together as one that learned it all, in any order."""
    cut = data.draw(st.integers(0, len(seen)))
    one, other = learned(seen[:cut]), learned(seen[cut:])
    rows = [*other.take_changes(), *one.take_changes()]
    assert one.take_changes() == []
    together, whole = histogram(rows), histogram(learned(seen).take_changes())
    assert together.samples == whole.samples == len(seen)
    assert together.weights == pytest.approx(whole.weights, rel=1e-9)
    again = Peaks(rows)
    assert again.expect(KEY, 7) == learned(data.draw(st.permutations(seen))).expect(KEY, 7)
    assert again.take_changes() == []


@pytest.mark.parametrize(("wrong", "right"), [(900, 90), (20, 200)])
@pytest.mark.parametrize("ahead", [2 * 365 * DAY, 60 * 365 * DAY])
def test_what_was_learned_by_a_wrong_clock_is_soon_outweighed(wrong: int, right: int, ahead: float) -> None:
    """Eight samples of the future weigh no more than eight of today."""
    now = LANDMARK + 100 * DAY
    peaks = learned([(wrong * MIB, now + ahead)] * ENOUGH_SAMPLES + [(right * MIB, now + DAY)] * 300)
    found = Peaks(peaks.take_changes(), now + 2 * DAY).expect(KEY, 7)
    assert right * MIB < found <= right * MIB * RATIO * MARGIN + 1


@given(samples.filter(bool), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_a_percentile_lies_within_what_was_seen(seen: list[tuple[int, float]], one: float, other: float) -> None:
    """Between the bucket of the smallest and that of the largest, larger for a larger share; all of it for 1."""
    found = histogram(learned(seen).take_changes())
    low, high = (bucket_bytes(bucket_of(end)) for end in (min(seen)[0], max(seen)[0]))
    small, large = (found.percentile(share) for share in sorted((one, other)))
    assert low <= small <= large <= high
    weights = found.weights.values()
    if min(weights) > 1e-6 * max(weights):
        # A sample as old as that says nothing any more, and is allowed not to.
        assert found.percentile(1.0) == high


@given(st.lists(peaks_seen, min_size=1, max_size=60))
def test_samples_of_one_age_have_the_percentile_of_a_list(seen: list[int]) -> None:
    """At least 95 % of them stay within it, and fewer than that within the bucket before."""
    found = histogram(learned([(peak, LANDMARK) for peak in seen]).take_changes())
    bound = found.percentile(0.95)
    assert sum(bucket_bytes(bucket_of(peak)) <= bound for peak in seen) >= 0.95 * len(seen) * (1 - 1e-9)
    assert sum(bucket_bytes(bucket_of(peak)) < bound for peak in seen) < 0.95 * len(seen)


@given(moments, st.floats(0, 400 * DAY))
def test_weight_halves_with_every_half_life(now: float, later: float) -> None:
    """What a sample counts beside a newer one depends on the time between them alone."""
    assert weight_at(now) / weight_at(now + later) == pytest.approx(2 ** (-later / HALF_LIFE_SECONDS), rel=1e-6)


@given(st.floats(allow_nan=False))
def test_no_clock_breaks_a_histogram(now: float) -> None:
    """A clock that says 1970, or the end of time, gives a weight that can be added and compared."""
    assert 0 < weight_at(now) < math.inf
    peaks = learned([(100 * MIB, now)] * 50)
    assert 100 * MIB <= peaks.expect(KEY, 1) <= 100 * MIB * RATIO * MARGIN + 2


def test_old_nights_are_forgotten() -> None:
    """After a release that takes twice as much, the first night decides; what took much long ago is let go of."""
    heavy = [(400 * MIB, LANDMARK)] * 100
    light = [(60 * MIB, LANDMARK + 4 * HALF_LIFE_SECONDS)] * 100
    assert learned(heavy + light[:8]).expect(KEY, 1) > 400 * MIB
    # A hundred of 1/16: a sixteenth of what the new ones weigh, and of that no more than 5 % may need more.
    later = [(60 * MIB, LANDMARK + 5 * HALF_LIFE_SECONDS)] * 100
    assert learned(heavy + later).expect(KEY, 1) < 80 * MIB
    assert learned([(60 * MIB, LANDMARK)] * 100 + [(400 * MIB, LANDMARK + HALF_LIFE_SECONDS)] * 3).expect(KEY, 1) > (
        400 * MIB
    )


@given(st.lists(peaks_seen, max_size=ENOUGH_SAMPLES - 1), st.integers(1, 1 << 40))
def test_few_samples_say_nothing(seen: list[int], worst: int) -> None:
    """Below eight the worst case stands."""
    assert learned([(peak, LANDMARK) for peak in seen]).expect(KEY, worst) == worst


@given(st.lists(peaks_seen, min_size=ENOUGH_SAMPLES, max_size=19), st.integers(1, 1 << 40))
def test_few_but_enough_are_all_within_what_is_expected(seen: list[int], worst: int) -> None:
    """Of fewer than twenty the largest counts, with 15 % on top, whatever the worst case was thought to be. A worker
    that still holds all of it when it is idle leaves the next unit what any unit may take."""
    largest = max(max(seen), FIRST_BYTES)
    expected = learned([(peak, LANDMARK) for peak in seen]).expect(KEY, worst)
    assert largest * MARGIN * (1 - 1e-9) <= expected
    assert expected <= max(largest * MARGIN * RATIO * (1 + 1e-9), largest * RATIO + LEAST_MARGIN_BYTES) + 2
    assert expected >= largest + LEAST_BURST_BYTES


def test_what_larger_files_take_is_enough_for_smaller_ones() -> None:
    """Never the other way round, never of another kind, and never more than the worst case."""
    peaks = learned([(100 * MIB, LANDMARK)] * 8)
    small = PeakKey(Stage.EXTRACT, "pdf", 18)
    assert 100 * MIB < peaks.expect(small, 500 * MIB) < 125 * MIB
    assert peaks.expect(small, 64 * MIB) == 64 * MIB
    for other in (
        PeakKey(Stage.EXTRACT, "pdf", 21),
        PeakKey(Stage.EXTRACT, "pdf", 10),
        PeakKey(Stage.EXTRACT, "docx", 20),
        PeakKey(Stage.OCR, "pdf", 20),
    ):
        assert peaks.expect(other, 500 * MIB) == 500 * MIB


@given(st.integers(0, 1 << 50))
def test_who_ran_out_is_taken_to_need_more(taken: int) -> None:
    """A fifth more, and a hundred MiB at least."""
    assert after_running_out(taken) >= taken + 100 * MIB
    assert after_running_out(taken) >= taken * 6 // 5


def test_running_out_raises_what_the_next_is_promised() -> None:
    """Once in twenty is enough: the next one of its kind gets more than the one that ran out had."""
    before = [(100 * MIB, LANDMARK)] * 15
    promised = learned(before).expect(KEY, 1)
    assert learned([*before, (after_running_out(promised), LANDMARK)]).expect(KEY, 1) >= promised + 100 * MIB


def test_nothing_is_said_of_no_samples() -> None:
    """A percentile of nothing is a mistake of the caller."""
    with pytest.raises(ValueError, match="without samples"):
        Histogram().percentile(0.95)
