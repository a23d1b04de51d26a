"""The journal of pages: what a reader writes as it goes, and what is believed of it when the reader is gone."""

from __future__ import annotations

import errno
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.document import Document, Method, Page
from engine.journal import LostPages, Unfinished, find_unfinished
from engine.model import Failure, Kind
from engine.policy.retries import Verdict
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers import journal, read_pdf
from tests.unit.extraction import Desk, pdf_of

PAGES = tuple(f"page number {number} of the heron's log" for number in range(1, 7))
CRASH = Failure(reason=Reason.CRASHED, detail="its worker was ended by SIGSEGV", signal=11)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def torn_at(
    desk: Desk, number: int, monkeypatch: pytest.MonkeyPatch, pages: tuple[str, ...] = PAGES, **order: Any
) -> Unfinished | None:
    """What is found when reading a page has ended its worker."""
    data = pdf_of(*pages)

    def deadly(pdf: Any, index: int, *rest: Any) -> Page:
        if index + 1 == number:
            raise SystemExit
        return page(pdf, index, *rest)

    page = read_pdf._page
    with monkeypatch.context() as patch:
        patch.setattr(read_pdf, "_page", deadly)
        with pytest.raises(SystemExit):
            desk.read(data, "log.pdf", **order)
    return find_unfinished(desk.outbox, "p7", order.get("skip", ()))


def lines(desk: Desk) -> list[Any]:
    return [json.loads(line) for line in (desk.outbox / "p7.journal").read_bytes().splitlines()]


def test_each_page_is_there_as_soon_as_it_is_read(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever page ends the worker: those before it are found, and its number."""
    whole = desk.read(pdf_of(*PAGES), "log.pdf")
    for number in range(1, 7):
        found = torn_at(desk, number, monkeypatch)
        assert found is not None
        assert (found.page, found.pages, found.document.title) == (number, 6, whole.title)
        assert found.document.pages == whole.pages[: number - 1]
        assert found.is_worth_keeping == (number > 1)


def test_a_page_that_is_left_out_is_not_touched(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in the document, empty; the journal goes on behind it."""
    document = desk.read(pdf_of(*PAGES), "log.pdf", skip=[3])
    assert [page.number for page in document.pages if not page.text] == [3]
    assert document.pages[2].method is Method.NONE
    assert document.notes == ()
    found = torn_at(desk, 5, monkeypatch, skip=[3])
    assert found is not None
    assert (found.page, found.document.pages) == (5, document.pages[:4])
    assert len(desk.read(pdf_of(*PAGES), "log.pdf", skip=[1, 2, 3, 4, 5]).pages) == 6
    with pytest.raises(StageFailed, match="no page can be read"):
        desk.read(pdf_of(*PAGES), "log.pdf", skip=[1, 2, 3, 4, 5, 6])


def test_not_every_document_has_a_journal(desk: Desk) -> None:
    """There would be nothing to keep. Nor has one that has cost no worker yet: it would cost them all some time."""
    desk.read(pdf_of(*PAGES), "log.pdf", journal=False)
    assert not (desk.outbox / "p7.journal").exists()
    desk.read(pdf_of(PAGES[0]), "log.pdf")
    assert find_unfinished(desk.outbox, "p7", ()) is None
    assert not (desk.outbox / "p7.journal").exists()


def test_a_line_that_was_being_written_costs_that_line(desk: Desk) -> None:
    """A kill may fall into a write."""
    desk.read(pdf_of(*PAGES), "log.pdf")
    whole = (desk.outbox / "p7.journal").read_bytes()
    (desk.outbox / "p7.journal").write_bytes(whole[:-5])
    found = find_unfinished(desk.outbox, "p7", ())
    assert found is not None
    assert (found.page, len(found.document.pages)) == (6, 5)


def test_a_journal_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no more room, nobody can tell which page was being read; those before are kept."""
    monkeypatch.setattr(journal, "MAX_JOURNAL_BYTES", 600)
    desk.read(pdf_of(*PAGES), "log.pdf")
    assert lines(desk)[-1] == {"full": True}
    found = find_unfinished(desk.outbox, "p7", ())
    assert found is not None
    assert (found.page, found.pages) == (None, 6)
    assert 0 < len(found.document.pages) < 6
    rescued = LostPages().rescue("bytes", CRASH, found)
    assert isinstance(rescued, Document)
    assert rescued.pages == found.document.pages


def test_half_a_line_is_the_disks_fault(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full takes what it has room for: an error, as the next write would be, and not the file's."""

    class Nearly:
        def write(self, data: bytes) -> int:
            return len(data) - 1

        def close(self) -> None:
            pass

    def opened(path: Path, *how: Any, **more: Any) -> Any:
        return Nearly() if path.suffix == ".journal" else open_file(path, *how, **more)

    open_file = Path.open
    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OSError, match="No space") as raised:
        desk.read(pdf_of(*PAGES), "log.pdf")
    assert raised.value.errno == errno.ENOSPC


def _changed(at: int, **values: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda entries: [{**entry, **values} if index == at else entry for index, entry in enumerate(entries)]


DOCUMENT = Document(kind=Kind.FILE, media_type="application/pdf", title="x")


@pytest.mark.parametrize(
    "forge",
    [
        lambda entries: [],
        lambda entries: entries[1:],
        lambda entries: [entries[0], *entries[2:]],
        lambda entries: [entries[0], entries[2], entries[1]],
        lambda entries: [*entries, entries[-1]],
        lambda entries: [entries[0], {"full": True}, *entries[1:]],
        lambda entries: [*entries[:3], []],
        lambda entries: [*entries[:3], "page"],
        _changed(0, pages=5),
        _changed(0, pages=0),
        _changed(0, pages=True),
        _changed(0, pages=10**9),
        _changed(0, pages="6"),
        _changed(0, document=None),
        _changed(0, document={**DOCUMENT.to_json(), "pages": [Page(number=1, text="more").to_json()]}),
        _changed(
            0, document={**DOCUMENT.to_json(), "parts": [{"name": "", "media_type": "", "file": "a", "size_bytes": 0}]}
        ),
        _changed(0, document={**DOCUMENT.to_json(), "title": 7}),
        _changed(1, number=2),
        _changed(1, text=None),
        _changed(1, text="\ud800"),
        _changed(2, method="guess"),
        _changed(2, needs_ocr="yes"),
    ],
)
def test_a_journal_that_no_reader_writes_counts_as_none(desk: Desk, forge: Callable[[list[Any]], list[Any]]) -> None:
    """Whatever is wrong with it."""
    desk.read(pdf_of(*PAGES), "log.pdf")
    true = lines(desk)
    assert find_unfinished(desk.outbox, "p7", ()) is not None
    (desk.outbox / "p7.journal").write_text("".join(json.dumps(entry) + "\n" for entry in forge(true)))
    assert find_unfinished(desk.outbox, "p7", ()) is None


@pytest.mark.parametrize("data", [b"", b"\n", b"{\n", b"[" * 100_000 + b"\n", b"\xff\n", b"null\n", b"x" * 1000])
def test_what_is_no_journal_at_all_counts_as_none(desk: Desk, data: bytes) -> None:
    """Nor does it harm whoever looks."""
    (desk.outbox / "p7.journal").write_bytes(data)
    assert find_unfinished(desk.outbox, "p7", ()) is None


@pytest.mark.parametrize("what", [b"{}\n", b"\n", b"[],"])
def test_what_would_become_much_is_not_taken_apart(desk: Desk, what: bytes) -> None:
    """A journal of nothing but small things took fifty times its size in memory, and half a minute."""
    head = json.dumps({"document": DOCUMENT.to_json(), "pages": 6}).encode()
    end = b"[]]}\n" if what == b"[]," else b""
    data = head + b"\n" + (b'{"more":[' if end else b"") + what * ((8 << 20) // len(what)) + end
    (desk.outbox / "p7.journal").write_bytes(data)
    tracemalloc.start()
    assert find_unfinished(desk.outbox, "p7", ()) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(data)


def test_a_link_is_not_followed(desk: Desk) -> None:
    """Not even to a true journal."""
    desk.read(pdf_of(*PAGES), "log.pdf")
    (desk.outbox / "p7.journal").rename(desk.outbox.parent / "elsewhere")
    (desk.outbox / "p7.journal").symlink_to(desk.outbox.parent / "elsewhere")
    assert find_unfinished(desk.outbox, "p7", ()) is None


def test_no_page_is_blamed_twice(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that seems to have died of a page that it was not to read died of something else: else no end."""
    torn_at(desk, 4, monkeypatch)
    for left_out, blamed in (([2], 4), ([4], None)):
        found = find_unfinished(desk.outbox, "p7", left_out)
        assert found is not None
        assert (found.page, len(found.document.pages)) == (blamed, 3)


def test_what_is_lost_is_noted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page that was left out by its number and with the reason; in the end, what follows the last one."""
    lost = LostPages()
    for number in (2, 4, 5):
        found = torn_at(desk, number, monkeypatch, skip=lost.pages_of("bytes"))
        assert found is not None
        assert lost.rescue("bytes", CRASH, found) == Verdict(retry=True, alone=True)
    assert lost.pages_of("bytes") == [2, 4, 5]
    assert lost.pages_of("other bytes") == []
    told = "could not be read: crashed, its worker was ended by SIGSEGV"
    expected = tuple(f"partial: page {number} {told}" for number in (2, 4, 5))
    assert lost.noted("bytes", DOCUMENT).notes == expected
    assert lost.noted("other bytes", DOCUMENT) == DOCUMENT
    found = torn_at(desk, 6, monkeypatch, skip=[2, 4, 5])
    assert found is not None
    document = lost.rescue("bytes", CRASH, found)
    assert isinstance(document, Document)
    assert document.notes == (*expected, f"partial: page 6 {told}")
    assert [page.number for page in document.pages if page.text] == [1, 3]
    assert Document.from_json(document.to_json()) == document


def test_a_document_is_never_all_left_out(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing was read and nothing is left, the item is set aside as ever."""
    lost = LostPages()
    first = torn_at(desk, 1, monkeypatch, PAGES[:2])
    assert first is not None
    assert lost.rescue("bytes", CRASH, first) == Verdict(retry=True, alone=True)
    second = torn_at(desk, 2, monkeypatch, PAGES[:2], skip=[1])
    assert second is not None
    assert lost.rescue("bytes", CRASH, second) == Verdict(quarantine=True)
