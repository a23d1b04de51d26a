"""Predictions: more for more, twice as much after a failure, and never less than protects an innocent item."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import Stage
from engine.policy import estimates
from engine.policy.estimates import MIB, Estimate

ENDINGS = (".pdf", ".docx", ".html", ".htm", ".eml", ".ics", ".png", ".jpg", ".tif", ".xyz", "")
Kind = Callable[[int], Estimate]

#: Every estimate as a function of one size.
BY_SIZE: dict[str, Kind] = {
    **{f"extract {ending}": (lambda n, e=ending: estimates.extraction(size_bytes=n, ending=e)) for ending in ENDINGS},
    "chunk": lambda n: estimates.chunking(chars=n),
    "embed builtin": lambda n: estimates.embedding(texts=n, embedder="builtin"),
    "embed fast": lambda n: estimates.embedding(texts=n, embedder="fast"),
    "embed unheard of": lambda n: estimates.embedding(texts=n, embedder="tomorrow's"),
    "index": lambda n: estimates.indexing(vectors=n, dim=384),
}
#: Every estimate that knows of failures, as a function of size and failures.
BY_FAILURES: dict[str, Callable[[int, int], Estimate]] = {
    "extract": lambda n, f: estimates.extraction(size_bytes=n, ending=".docx", failures=f),
    "ocr": lambda n, f: estimates.ocr_page(failures=f),
    "chunk": lambda n, f: estimates.chunking(chars=n, failures=f),
}
sizes = st.integers(0, 1 << 34)


@pytest.mark.parametrize("kind", sorted(BY_SIZE))
@given(one=sizes, other=sizes)
def test_more_is_never_expected_to_take_less(kind: str, one: int, other: int) -> None:
    """Seconds, memory, limit and deadline all grow with the size, or stay."""
    small, large = map(BY_SIZE[kind], sorted((one, other)))
    assert small.seconds <= large.seconds
    assert small.memory_bytes <= large.memory_bytes
    assert small.limit_bytes <= large.limit_bytes
    assert small.deadline <= large.deadline


@pytest.mark.parametrize("kind", sorted(BY_SIZE))
@given(size=sizes)
def test_an_estimate_protects(kind: str, size: int) -> None:
    """A minute of CPU at least, and twenty times what was predicted; a limit above the reservation; whole bytes."""
    estimate = BY_SIZE[kind](size)
    assert estimate.deadline >= max(60.0, 20 * estimate.seconds * (1 - 1e-9))
    assert estimate.seconds >= 0
    assert isinstance(estimate.memory_bytes, int)
    assert isinstance(estimate.limit_bytes, int)
    assert estimate.memory_bytes >= 96 * MIB
    own = estimate.memory_bytes - BY_SIZE[kind](0).memory_bytes
    assert estimate.limit_bytes == 0 or estimate.limit_bytes >= max(768 * MIB, 2 * own)


@pytest.mark.parametrize("kind", sorted(BY_FAILURES))
@given(size=sizes, failures=st.integers(0, 3))
def test_each_failure_doubles_what_an_item_may_use(kind: str, size: int, failures: int) -> None:
    """Its own memory, beyond an idle worker's, and its limit; what it is expected to take stays the same."""
    base = BY_FAILURES[kind](0, 0).memory_bytes if kind != "ocr" else 160 * MIB
    before, after = BY_FAILURES[kind](size, failures), BY_FAILURES[kind](size, failures + 1)
    assert after.limit_bytes == 2 * before.limit_bytes
    assert after.memory_bytes - base == 2 * (before.memory_bytes - base)
    assert (after.seconds, after.deadline) == (before.seconds, before.deadline)


@pytest.mark.parametrize("kind", sorted(BY_FAILURES))
@given(size=sizes, failures=st.integers(4, 10_000))
def test_doubling_ends(kind: str, size: int, failures: int) -> None:
    """After four failures it stays, or one item would ask for more than any machine has."""
    assert BY_FAILURES[kind](size, failures) == BY_FAILURES[kind](size, 4)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_costs_something(ending: str) -> None:
    """An empty file is not free, nor is its worker; one of a megabyte takes longer."""
    empty = estimates.extraction(size_bytes=0, ending=ending)
    assert empty.seconds > 0
    assert estimates.extraction(size_bytes=1_000_000, ending=ending).seconds > empty.seconds


def test_pages_and_vectors() -> None:
    """A page of OCR takes about a second; nothing is embedded in no time; a stage without a limit says so."""
    assert 0.1 < estimates.ocr_page().seconds < 5
    assert (
        estimates.embedding(texts=100, embedder="none").seconds
        < estimates.embedding(texts=100, embedder="fast").seconds
        < estimates.embedding(texts=100, embedder="builtin").seconds
    )
    assert estimates.embedding(texts=100, embedder="builtin").limit_bytes == 0
    assert estimates.indexing(vectors=10, dim=3).limit_bytes == 0


@given(st.integers(0, 10**7), st.integers(1, 4096))
def test_an_index_is_held_twice(vectors: int, dim: int) -> None:
    """Once by FAISS, once while it is read: four bytes a number."""
    own = (
        estimates.indexing(vectors=vectors, dim=dim).memory_bytes - estimates.indexing(vectors=0, dim=dim).memory_bytes
    )
    assert own == 8 * vectors * dim


def test_every_stage_has_a_size_of_its_worker() -> None:
    """No stage is reserved less than its libraries take; fetching has no worker."""
    assert set(estimates._BASE_BYTES) == set(Stage) - {Stage.FETCH}
