"""Pages in line for OCR: which of them make a unit, and how the sizes of units follow what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import Fingerprint, ItemId, ItemKey, ItemState, Kind, SourceId, Stage, UserId
from engine.pages import Paces, PageQueue
from engine.policy import estimates
from engine.policy.units import SHARES, UNIT_SECONDS
from engine.ports import ItemRecord
from engine.way import Item, Piece, Unit, extraction_of

SECONDS = 0.5


def document(number: int, pages: int, media_type: str = "application/pdf") -> Item:
    """An item of which so many pages wait."""
    record = ItemRecord(
        id=ItemId(number),
        source=SourceId(1),
        user=UserId("ann"),
        key=ItemKey(f"{number}.pdf"),
        parent=None,
        fingerprint=Fingerprint("1"),
        path=f"{number}.pdf",
        kind=Kind.FILE,
        size_bytes=1000 * number,
        modified=0.0,
        locator={},
        state=ItemState.PENDING,
    )
    return Item(record=record, media_type=media_type, pages_left=dict.fromkeys(range(1, pages + 1), 0))


def queue_of(documents: Iterable[Item], seconds: float = SECONDS) -> PageQueue:
    """All their pages, in order."""
    queue = PageQueue(Paces(lambda media_type: seconds))
    for item in documents:
        queue.add(item, sorted(item.pages_left))
    return queue


def take(
    queue: PageQueue,
    slots: int = 2,
    is_live: Callable[[Item], bool] = lambda item: True,
    is_suspect: Callable[[Item, int], bool] = lambda item, page: False,
) -> list[tuple[int, int]]:
    """(document, page) of the next unit, which is done at once."""
    taken = queue.take(slots=slots, is_live=is_live, is_suspect=is_suspect)
    for item, page in taken:
        item.pages_left.pop(page)
    return [(item.record.id, page) for item, page in taken]


def all_units(queue: PageQueue, slots: int = 2) -> list[list[tuple[int, int]]]:
    units = []
    while unit := take(queue, slots):
        units.append(unit)
    return units


@given(st.lists(st.integers(1, 60), max_size=12), st.integers(1, 8))
def test_every_page_is_taken_once_in_its_order(sizes: list[int], slots: int) -> None:
    """Whatever the documents: nothing is left out, nothing comes twice."""
    documents = [document(number, pages) for number, pages in enumerate(sizes, 1)]
    found = [page for unit in all_units(queue_of(documents), slots) for page in unit]
    assert found == [(number, page) for number, pages in enumerate(sizes, 1) for page in range(1, pages + 1)]


def test_a_long_scan_begins_with_whole_units_and_ends_with_pages() -> None:
    """The sizes never grow, and the last units are small: no core waits long for the other."""
    sizes = [len(unit) for unit in all_units(queue_of([document(1, 200)]))]
    assert sizes[0] == UNIT_SECONDS[Stage.OCR] / SECONDS
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-2:] == [1, 1]
    assert len(sizes) < 30


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_no_unit_takes_more_than_its_share_of_the_rest(slots: int) -> None:
    """One page aside: that cannot be divided."""
    queue = queue_of([document(1, 300)])
    left = 300
    while unit := take(queue, slots):
        assert len(unit) == 1 or len(unit) <= left / (SHARES * slots)
        assert len(unit) * SECONDS <= UNIT_SECONDS[Stage.OCR]
        left -= len(unit)


def test_small_documents_go_together_and_large_ones_are_not_begun_at_the_end_of_a_unit() -> None:
    """Whoever is begun within a unit after others is done within it: its file would be copied twice otherwise."""
    units = all_units(queue_of([document(number, 1) for number in range(1, 31)] + [document(31, 100)]))
    assert [number for number, _ in units[0]] == list(range(1, 13))
    first = next(unit for unit in units if any(number == 31 for number, _ in unit))
    assert {number for number, _ in first} == {31}


def test_suspects_go_alone_and_the_dead_not_at_all() -> None:
    """A page that has cost a worker takes none with it; those of an item that has ended are passed over."""
    ended, item = document(1, 3), document(2, 40)
    queue = queue_of([ended, item])
    is_live: Callable[[Item], bool] = lambda candidate: candidate is not ended  # noqa: E731
    is_suspect: Callable[[Item, int], bool] = lambda candidate, page: page == 3  # noqa: E731
    assert take(queue, 1, is_live, is_suspect) == [(2, 1), (2, 2)]
    assert take(queue, 1, is_live, is_suspect) == [(2, 3)]
    assert take(queue, 1, is_live, is_suspect)[0] == (2, 4)


def test_what_was_put_back_comes_first_and_what_was_dropped_never() -> None:
    """In the order of its pages."""
    item, other = document(1, 50), document(2, 1)
    queue = queue_of([item, other])
    for _, page in reversed([(entry, page) for entry, page in queue.take(slots=2, is_live=bool, is_suspect=_never)]):
        queue.put_back(item, page)
    assert take(queue)[:2] == [(1, 1), (1, 2)]
    queue.drop(item)
    assert (take(queue), len(queue)) == ([(2, 1)], 0)


def _never(item: Item, page: int) -> bool:
    return False


def test_the_pace_is_learned_and_decides_the_size() -> None:
    """Pages that take ten times as long make units of a tenth; those of another kind keep their own pace."""
    slow, picture = document(1, 500), document(2, 1, "image/png")
    queue = queue_of([slow, picture])
    before = len(take(queue))
    for _ in range(100):
        queue.learn(slow, 10 * SECONDS)
    assert len(take(queue)) == max(1, before // 10)
    assert queue.expect(picture) == SECONDS
    assert queue.expect(document(3, 1)) == pytest.approx(10 * SECONDS, rel=0.01)


def test_one_copy_is_made_of_each_file() -> None:
    """And the unit takes so much of the disk."""
    one, two = document(1, 3), document(2, 1)
    pieces = [
        Piece(item=item, page=page, estimate=extraction_of(item)) for item, page in ((one, 1), (one, 2), (two, 1))
    ]
    unit = Unit(number=1, user=UserId("ann"), stage=Stage.OCR, pieces=tuple(pieces))
    assert unit.copied == ((0, pieces[0]), (2, pieces[2]))
    assert unit.need.spool_bytes == 3000
    unit = Unit(number=2, user=UserId("ann"), stage=Stage.EXTRACT, pieces=tuple(pieces))
    assert [index for index, _ in unit.copied] == [0, 1, 2]
    assert Unit(number=3, user=UserId("ann"), stage=Stage.CHUNK, pieces=tuple(pieces)).copied == ()


def test_the_time_of_files_is_learned_by_kind_and_stage() -> None:
    """PDF that takes three times as long says nothing of pictures, nor of cutting, and is true of every size."""
    paces = Paces(lambda media_type: SECONDS)
    pdf, large = (estimates.extraction(size_bytes=size, ending=".pdf") for size in (1000, 10**7))
    others = [
        estimates.extraction(size_bytes=1000, ending=".png"),
        estimates.extraction(size_bytes=1000, ending=".strange"),
        estimates.chunking(chars=1000),
    ]
    before = [paces.expect(estimate) for estimate in (pdf, large, *others)]
    assert before == [estimate.seconds for estimate in (pdf, large, *others)]
    for _ in range(200):
        paces.learn(pdf, 3 * pdf.seconds)
    assert paces.expect(pdf) == pytest.approx(3 * pdf.seconds, rel=0.05)
    assert paces.expect(large) == pytest.approx(3 * large.seconds, rel=0.05)
    assert [paces.expect(estimate) for estimate in others] == before[2:]


@given(st.integers(0, 10**12), st.sampled_from(["", ".pdf", ".eml", ".zip"]), st.floats(0.0, 1e6))
def test_what_any_file_took_can_be_learned(size: int, ending: str, seconds: float) -> None:
    """Also of an empty one, and one that took nothing: what is predicted is never nothing."""
    paces = Paces(lambda media_type: SECONDS)
    for estimate in (estimates.extraction(size_bytes=size, ending=ending), estimates.chunking(chars=size)):
        paces.learn(estimate, seconds)
        assert 0.0 < paces.expect(estimate) <= 32 * estimate.seconds


def test_orders_that_nobody_learns_of_are_expected_as_predicted() -> None:
    """They have no kind, and leave nothing to others."""
    paces = Paces(lambda media_type: SECONDS)
    nameless = replace(estimates.chunking(chars=1000), key=None)
    paces.learn(nameless, 100.0)
    assert paces.expect(nameless) == nameless.seconds
