"""Predictions: more for more, on the safe side until something was learned, and never beyond the machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import Stage
from engine.policy import estimates
from engine.policy.estimates import MIB, Estimate
from engine.policy.peaks import LANDMARK, Peaks
from engine.reasons import Reason

ENDINGS = (".pdf", ".docx", ".html", ".htm", ".eml", ".ics", ".png", ".jpg", ".tif", ".xyz", "")
Kind = Callable[[int], Estimate]

#: Every estimate as a function of one size.
BY_SIZE: dict[str, Kind] = {
    **{f"extract {ending}": (lambda n, e=ending: estimates.extraction(size_bytes=n, ending=e)) for ending in ENDINGS},
    "extract a mail": lambda n: estimates.extraction(size_bytes=n, ending=".eml", is_mail=True),
    "ocr pdf": lambda n: estimates.ocr_page(media_type="application/pdf", pixels=n + 1),
    "ocr image": lambda n: estimates.ocr_page(media_type="image/png", pixels=n + 1),
    "chunk": lambda n: estimates.chunking(chars=n),
    "embed builtin": lambda n: estimates.embedding(texts=n, embedder="builtin"),
    "embed fast": lambda n: estimates.embedding(texts=n, embedder="fast"),
    "embed unheard of": lambda n: estimates.embedding(texts=n, embedder="tomorrow's"),
    "index": lambda n: estimates.indexing(vectors=n, dim=384),
}
kinds = st.sampled_from(sorted(BY_SIZE))
sizes = st.integers(0, 1 << 34)
budgets = st.integers(256 * MIB, 1 << 40) | st.just(0)


@given(kinds, sizes, sizes)
def test_more_is_never_expected_to_take_less(kind: str, one: int, other: int) -> None:
    """Seconds, memory in every sense and deadline all grow with the size, or stay."""
    small, large = map(BY_SIZE[kind], sorted((one, other)))
    assert small.seconds <= large.seconds
    assert small.memory_bytes <= large.memory_bytes
    assert small.ceiling_bytes <= large.ceiling_bytes
    assert small.least_bytes <= large.least_bytes
    assert small.deadline <= large.deadline


@given(kinds, sizes)
def test_an_estimate_protects(kind: str, size: int) -> None:
    """A minute of CPU at least, and twenty times what was predicted; room above the promise; whole bytes."""
    estimate = BY_SIZE[kind](size)
    assert estimate.deadline >= max(60.0, 20 * estimate.seconds * (1 - 1e-9))
    assert estimate.seconds >= 0
    assert 0 < estimate.least_bytes <= estimate.memory_bytes <= estimate.ceiling_bytes
    assert estimate.memory_bytes >= 64 * MIB
    assert estimate.ceiling_bytes >= 2048 * MIB
    assert {type(count) for count in (estimate.memory_bytes, estimate.ceiling_bytes, estimate.least_bytes)} == {int}


@given(kinds, sizes, budgets, st.booleans(), st.lists(st.integers(1, 1 << 36), max_size=10))
def test_a_promise_is_within_ceiling_and_budget(
    kind: str, size: int, budget: int, alone: bool, seen: list[int]
) -> None:
    """Whatever was learned; who runs alone is promised all that it may ever take, and nothing else changes."""
    estimate = BY_SIZE[kind](size)
    peaks = Peaks()
    for peak in seen:
        assert estimate.key is not None
        peaks.learn(estimate.key, peak, LANDMARK)
    fitted = estimates.fitted(estimate, peaks=peaks, budget_bytes=budget, alone=alone)
    assert fitted.memory_bytes <= fitted.ceiling_bytes <= estimate.ceiling_bytes
    assert not budget or fitted.ceiling_bytes <= budget
    assert not alone or fitted.memory_bytes == fitted.ceiling_bytes == min(estimate.ceiling_bytes, budget or 1 << 60)
    assert (fitted.seconds, fitted.deadline, fitted.key) == (estimate.seconds, estimate.deadline, estimate.key)


def test_what_was_learned_takes_the_place_of_the_worst_case() -> None:
    """Below as well as above it, of units that are alike."""
    worst = estimates.extraction(size_bytes=2_000_000, ending=".docx")
    assert worst.key is not None
    for peak in (95 * MIB, 900 * MIB):
        peaks = Peaks()
        for _ in range(8):
            peaks.learn(worst.key, peak, LANDMARK)
        found = estimates.fitted(worst, peaks=peaks, budget_bytes=0)
        assert peak < found.memory_bytes < 1.25 * peak
        other = estimates.extraction(size_bytes=2_000_000, ending=".pdf")
        assert estimates.fitted(other, peaks=peaks, budget_bytes=0) == other


def test_a_worker_that_has_read_other_kinds_is_promised_its_libraries() -> None:
    """A kind that was only seen in new workers would else be over its promise in any other, before it begins."""
    text = estimates.extraction(size_bytes=1000, ending=".txt")
    assert text.key is not None
    peaks = Peaks()
    for _ in range(100):
        peaks.learn(text.key, 24 * MIB, LANDMARK)
    assert 80 * MIB <= estimates.fitted(text, peaks=peaks, budget_bytes=0).memory_bytes < text.memory_bytes


@given(kinds, sizes, budgets)
def test_only_what_can_never_fit_is_refused(kind: str, size: int, budget: int) -> None:
    """Whose least is within the budget may be tried; a refusal has both numbers and the setting's name."""
    estimate = BY_SIZE[kind](size)
    refusal = estimates.refusal(estimate, budget)
    assert (refusal is None) == (budget == 0 or estimate.least_bytes <= budget)
    if refusal is not None:
        assert refusal.reason is Reason.OUT_OF_MEMORY
        assert f"{estimate.least_bytes // MIB:,} MiB" in refusal.detail
        assert f"{budget // MIB:,} MiB" in refusal.detail
        assert "NIGHTMILL_MEMORY_LIMIT" in refusal.detail


def test_an_index_that_cannot_be_held_is_refused() -> None:
    """A million vectors of 384 numbers are 1.5 GB; a file of any size that is read piece by piece is tried."""
    gibibyte = 1 << 30
    assert estimates.refusal(estimates.indexing(vectors=1_000_000, dim=384), gibibyte) is not None
    assert estimates.refusal(estimates.indexing(vectors=100_000, dim=384), gibibyte) is None
    assert estimates.refusal(estimates.extraction(size_bytes=1 << 40, ending=".pdf"), gibibyte) is None


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_costs_something(ending: str) -> None:
    """An empty file is not free, nor is its worker; one of a megabyte takes longer."""
    empty = estimates.extraction(size_bytes=0, ending=ending)
    assert empty.seconds > 0
    assert estimates.extraction(size_bytes=1_000_000, ending=ending).seconds > empty.seconds


@given(st.text("abcdfilmnopstwxyz3", max_size=5))
def test_what_people_call_their_files_is_not_kept(ending: str) -> None:
    """Peaks outlive a user: an ending that is not on the list is just another one."""
    key = estimates.extraction(size_bytes=100, ending=f".{ending}").key
    assert key is not None
    assert key.kind in {"other", *estimates._KINDS.values()}
    assert key.kind != ending or f".{ending}" in estimates._KINDS


def test_a_page_that_does_not_say_its_size_is_the_largest() -> None:
    """Documents of older releases do not say it."""
    unknown = estimates.ocr_page(media_type="application/pdf")
    a4 = estimates.ocr_page(media_type="application/pdf", pixels=3_900_000)
    assert a4.memory_bytes < unknown.memory_bytes
    assert a4.key != unknown.key


def test_pages_and_vectors() -> None:
    """A page of OCR takes about a second; nothing is embedded in no time."""
    assert 0.1 < estimates.ocr_page(media_type="image/png").seconds < 5
    assert (
        estimates.embedding(texts=100, embedder="none").seconds
        < estimates.embedding(texts=100, embedder="fast").seconds
        < estimates.embedding(texts=100, embedder="builtin").seconds
    )


def test_every_stage_has_a_size_of_its_worker() -> None:
    """No stage is reserved less than its libraries take; fetching has no worker."""
    assert set(estimates._BASE_BYTES) == set(Stage) - {Stage.FETCH}
