"""The time of a page, or of a file, is learned: near what was seen, whatever the guess was, and never outside of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.policy.pace import Pace, Scale

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


#: What orders are predicted to take, and what they took.
_predicted = st.floats(1e-3, 1e4)
_orders = st.lists(st.tuples(_predicted, _seconds), max_size=100)


@given(_orders)
def test_a_factor_lies_within_what_was_seen(seen: list[tuple[float, float]]) -> None:
    """Between the least and the most of all orders and the first guess, 1; and never further off than 32 times."""
    scale = Scale()
    for predicted, took in seen:
        scale.learn(predicted, took)
    factors = [1.0, *(took / predicted for predicted, took in seen)]
    assert min(32.0, min(factors)) * (1 - 1e-6) <= scale.factor <= max(1 / 32, max(factors)) * (1 + 1e-6)
    assert 1 / 32 <= scale.factor <= 32


@given(_orders, st.floats(0.05, 100.0), st.floats(1 / 32, 32.0))
def test_what_was_is_forgotten(before: list[tuple[float, float]], predicted: float, truth: float) -> None:
    """One kind of file, then another: in the end the factor is that of the other, whatever was before."""
    scale = Scale()
    for seconds, took in before:
        scale.learn(seconds, took)
    for _ in range(1200):
        scale.learn(predicted, predicted * truth)
    assert scale.factor == pytest.approx(truth, rel=0.01)


@given(_seconds)
def test_one_order_that_is_far_off_ends_nothing(took: float) -> None:
    """A file that is refused at once, or takes hours: the next prediction is no more than 32 times off, and
    300 ordinary ones bring it back."""
    scale = Scale()
    scale.learn(100.0, took)
    assert 1 / 32 <= scale.factor <= 32
    for _ in range(300):
        scale.learn(1.0, 1.0)
    assert scale.factor == pytest.approx(1.0, abs=0.05)


def test_long_orders_count_as_much_as_they_are_long() -> None:
    """Thirty small ones that take twice as long say less than one that takes a minute."""
    scale = Scale()
    for _ in range(30):
        scale.learn(0.001, 0.002)
    assert 1.0 < scale.factor < 1.6
    scale.learn(60.0, 60.0)
    assert scale.factor == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("predicted", "took"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, -1.0), (1.0, math.nan)]
)
def test_no_order_takes_less_than_nothing(predicted: float, took: float) -> None:
    """Nor is it predicted to: nothing would be known of how wrong that was."""
    with pytest.raises(ValueError, match="an order took"):
        Scale().learn(predicted, took)
