"""Which stage is next, and how much of it: nobody waits while something could be done, and units stay small."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import Stage
from engine.policy.units import (
    MOST_ON_THE_WAY,
    SHARES,
    UNIT_ORDERS,
    UNIT_SECONDS,
    WORTHWHILE_TEXTS,
    Backlog,
    next_stage,
    take,
    unit_seconds,
    whole_seconds,
)

_few = st.integers(0, 3) | st.integers(0, 1000)
backlogs = st.builds(Backlog, extract=_few, ocr=_few, chunk=_few, texts=_few, on_the_way=_few, coming=_few)
seconds = st.floats(0.0, 1.0) | st.floats(0.0, 1e6)
stages = st.sampled_from(sorted(UNIT_SECONDS))


def waiting(backlog: Backlog, stage: Stage) -> int:
    return {
        Stage.EXTRACT: backlog.extract,
        Stage.OCR: backlog.ocr,
        Stage.CHUNK: backlog.chunk,
        Stage.EMBED: backlog.texts,
    }[stage]


@given(backlogs)
def test_only_what_waits_is_begun(backlog: Backlog) -> None:
    """A stage that is named has something to do, and none begins an item too many."""
    stage = next_stage(backlog)
    assert stage is None or waiting(backlog, stage) > 0
    assert stage is not Stage.EXTRACT or backlog.on_the_way < MOST_ON_THE_WAY


@given(backlogs)
def test_nothing_is_next_only_if_nothing_can_start(backlog: Backlog) -> None:
    """No stage: nothing waits in the middle, new items may not begin, and texts are few with more to come."""
    if next_stage(backlog) is None:
        assert backlog.ocr == backlog.chunk == 0
        assert backlog.extract == 0 or backlog.on_the_way >= MOST_ON_THE_WAY
        assert backlog.texts == 0 or (backlog.coming > 0 and backlog.texts < WORTHWHILE_TEXTS)


@given(backlogs)
def test_texts_are_not_left_waiting(backlog: Backlog) -> None:
    """Once nothing else is coming and nothing else can start, the last few texts are embedded: no user hangs."""
    last = replace(backlog, extract=0, ocr=0, chunk=0, coming=0)
    assert next_stage(last) is (Stage.EMBED if backlog.texts else None)
    full = replace(last, extract=backlog.extract, on_the_way=MOST_ON_THE_WAY)
    assert next_stage(full) is (Stage.EMBED if backlog.texts else None)


@given(backlogs)
def test_a_user_is_done_in_the_end(backlog: Backlog) -> None:
    """Whatever waits, doing what is next, one after another, comes to the end of all of it."""
    left = replace(backlog, on_the_way=min(backlog.on_the_way, MOST_ON_THE_WAY - 1), coming=0)
    for _ in range(5000):
        match next_stage(left):
            case None:
                break
            case Stage.EXTRACT:
                left = replace(left, extract=left.extract - 1, chunk=left.chunk + 1)
            case Stage.OCR:
                left = replace(left, ocr=left.ocr - 1, chunk=left.chunk + (left.ocr == 1))
            case Stage.CHUNK:
                left = replace(left, chunk=left.chunk - 1, texts=left.texts + 1)
            case Stage.EMBED:
                left = replace(left, texts=max(0, left.texts - 256))
    assert (left.extract, left.ocr, left.chunk, left.texts) == (0, 0, 0, 0)


@given(backlogs)
def test_what_was_begun_is_finished_first(backlog: Backlog) -> None:
    """A batch that is worth it, then cutting, then pages, then new items."""
    order = [stage for stage in (Stage.CHUNK, Stage.OCR, Stage.EXTRACT) if waiting(backlog, stage)]
    if backlog.texts >= WORTHWHILE_TEXTS:
        assert next_stage(backlog) is Stage.EMBED
    elif order and order[0] is not Stage.EXTRACT:
        assert next_stage(backlog) is order[0]


def test_few_texts_wait_for_more() -> None:
    """While a unit runs that may bring some, and no longer."""
    assert next_stage(Backlog(texts=WORTHWHILE_TEXTS - 1, coming=1)) is None
    assert next_stage(Backlog(texts=WORTHWHILE_TEXTS - 1)) is Stage.EMBED
    assert next_stage(Backlog(texts=WORTHWHILE_TEXTS, coming=1)) is Stage.EMBED


@given(stages, st.lists(seconds, max_size=600))
def test_a_unit_keeps_its_limits(stage: Stage, predicted: list[float]) -> None:
    """At least one order; more than one only within the seconds and the number; never more than there are."""
    count = take(stage, predicted)
    assert 1 <= count <= max(1, len(predicted))
    assert count <= UNIT_ORDERS[stage]
    assert count == 1 or sum(predicted[:count]) <= UNIT_SECONDS[stage] * (1 + 1e-9)


@given(stages, st.lists(seconds, min_size=1, max_size=600))
def test_a_unit_is_as_large_as_it_may_be(stage: Stage, predicted: list[float]) -> None:
    """One order more would not fit."""
    count = take(stage, predicted)
    if count < min(len(predicted), UNIT_ORDERS[stage]):
        assert sum(predicted[: count + 1]) > UNIT_SECONDS[stage] * (1 - 1e-9)


@pytest.mark.parametrize("stage", sorted(UNIT_SECONDS))
def test_a_unit_looks_no_further_than_it_needs(stage: Stage) -> None:
    """A queue of any length may be handed over as it is; the first order alone may be too much."""

    def endless() -> object:
        while True:
            yield 0.0

    assert take(stage, endless()) == UNIT_ORDERS[stage]  # type: ignore[arg-type]
    assert take(stage, [UNIT_SECONDS[stage] * 10, 0.0]) == 1
    assert UNIT_SECONDS.keys() == UNIT_ORDERS.keys()


@given(stages, st.floats(0.0, 1e6), st.integers(0, 64))
def test_a_unit_is_a_share_of_what_is_left(stage: Stage, left: float, slots: int) -> None:
    """Whole while much is left; below that all that may run at once would take half of the rest."""
    size = unit_seconds(stage, left=left, slots=slots)
    if left >= whole_seconds(stage, slots):
        assert size == pytest.approx(UNIT_SECONDS[stage])
    else:
        assert size * SHARES * max(1, slots) == pytest.approx(left)


@given(stages, st.integers(1, 16))
def test_units_by_shares_come_to_an_end_within_a_logarithm(stage: Stage, slots: int) -> None:
    """From a whole unit for each slot down to a hundredth of one takes a few dozen, however small the last ones."""
    left, count = whole_seconds(stage, slots), 0
    while left > UNIT_SECONDS[stage] / 100:
        left -= unit_seconds(stage, left=left, slots=slots)
        count += 1
    assert count <= SHARES * slots * 10
