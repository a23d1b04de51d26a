"""The time of a page is learned: near what was seen, whatever the guess was, and never outside of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.policy.pace import Pace

_seconds = st.floats(0.0, 1e4)


@given(_seconds, st.lists(_seconds, max_size=100))
def test_the_mean_lies_within_what_was_seen(guess: float, seen: list[float]) -> None:
    """Between the least and the most of guess and pages."""
    pace = Pace(guess)
    for seconds in seen:
        pace.learn(seconds)
    assert min([guess, *seen]) - 1e-6 <= pace.seconds <= max([guess, *seen]) + 1e-6


@given(_seconds, _seconds)
def test_a_wrong_guess_is_forgotten(guess: float, truth: float) -> None:
    """After a hundred pages that take the same, that is what is expected, within a hundredth of the mistake."""
    pace = Pace(guess)
    for _ in range(100):
        pace.learn(truth)
    assert abs(pace.seconds - truth) <= abs(guess - truth) / 100 + 1e-9


@given(_seconds, st.integers(0, 1000), _seconds)
def test_a_document_of_its_own_pace_is_believed_more_with_each_page(kind: float, pages: int, own: float) -> None:
    """Between what is known of the kind and of the document; after many pages the latter."""
    expected = Pace(kind).expect(pages, pages * own)
    assert min(kind, own) - 1e-6 <= expected <= max(kind, own) + 1e-6
    assert abs(expected - own) <= 2 * abs(kind - own) / (2 + pages) + 1e-6


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_no_page_takes_less_than_nothing(seconds: float) -> None:
    """A clock that went wrong is nobody's pace."""
    with pytest.raises(ValueError, match="a page took"):
        Pace(1.0).learn(seconds)
