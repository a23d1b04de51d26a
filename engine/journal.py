"""What is left of a document whose worker was lost: the pages that it had read, and which one it was at.

Rule: nothing in a worker's journal is trusted (engine/workers/journal.py says what it should hold). One that is not in
every point what an honest worker would have written counts as none. Decides nothing: policy/retries.py does.

    lost --> find --> [rescue] --> again, without the page --> noted
                         \\--> what was read, as the document
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from engine.document import MAX_NOTES, MAX_PAGES, MAX_TEXT_CHARS, Document, Page
from engine.errors import MalformedMessage
from engine.model import Failure, Stage
from engine.policy.retries import MOST_LEFT_OUT, Rescue, Verdict, rescue
from engine.printing import printable
from engine.way import Unit, prefix_of
from engine.workers import results
from engine.workers.journal import MAX_JOURNAL_BYTES, name_of

#: What ends the journal of a document that is too long for one.
_FULL = {"full": True}
#: Room for that line.
_FULL_BYTES = 100
#: The head, a line for each page, and perhaps the one above.
_MOST_LINES = MAX_PAGES + 2
#: Of what a failure says, in a note.
_DETAIL_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A document as far as it was read.

    document  with the pages that were read, the first ones of all
    pages     how many it has
    page      the number of the one that was being read; None: all had been, or nobody can tell
    """

    document: Document
    pages: int
    page: int | None

    @property
    def is_worth_keeping(self) -> bool:
        """There is a text in it, or a page that OCR may read."""
        return any(page.text.strip() or page.needs_ocr for page in self.document.pages)


class LostPages:
    """Pages that have cost workers, by the content that they belong to; for each, what came of it."""

    def __init__(self) -> None:
        self._pages: dict[str, dict[int, str]] = {}

    def pages_of(self, content: str) -> list[int]:
        """The numbers of those that are to be left out."""
        return sorted(self._pages.get(content, ()))

    def noted(self, content: str, document: Document) -> Document:
        """The document, with a note for each page that was left out."""
        return _noted(document, self._pages.get(content, {}))

    def find(self, unit: Unit, index: int, outbox: Path, failure: Failure) -> Unfinished | None:
        """What a worker that was lost, or had to give up, had read of the order. None: nothing."""
        item = unit.orders[index].item if unit.orders else None
        if unit.stage is not Stage.EXTRACT or item is None or failure.reason not in MOST_LEFT_OUT:
            return None
        return find_unfinished(outbox, prefix_of(unit, index), self.pages_of(item.content))

    def rescue(self, content: str, failure: Failure, unfinished: Unfinished) -> Verdict | Document:
        """What becomes of an item that was to be set aside: a further try, its end, or a document after all."""
        left_out = self._pages.get(content, {})
        page = unfinished.page
        step = rescue(
            failure.reason,
            page=page,
            pages=unfinished.pages,
            left_out=len(left_out),
            worth_keeping=unfinished.is_worth_keeping,
        )
        match step:
            case Rescue.LEAVE_OUT:
                assert page is not None
                self._pages[content] = {**left_out, page: _words_of(failure)}
                return Verdict(retry=True, alone=True)
            case Rescue.KEEP:
                return _kept(unfinished, failure, left_out)
            case Rescue.NONE:
                return Verdict(quarantine=True)


def find_unfinished(outbox: Path, prefix: str, left_out: Collection[int]) -> Unfinished | None:
    """What the worker had read of the order whose results begin with `prefix`. None: nothing that can be believed.

    left_out: the pages that it was told to leave out.
    """
    try:
        data = results.read_bytes(outbox, {"journal": name_of(prefix)}, "journal", MAX_JOURNAL_BYTES + _FULL_BYTES)
        return _parsed(data, left_out)
    except MalformedMessage:
        return None


def _noted(document: Document, left_out: Mapping[int, str]) -> Document:
    notes = (f"partial: page {number} could not be read: {left_out[number]}" for number in sorted(left_out))
    return replace(document, notes=(*notes, *document.notes)[:MAX_NOTES])


def _kept(unfinished: Unfinished, failure: Failure, left_out: Mapping[int, str]) -> Document:
    """What was read, as the document that it will have to be, with notes that say what it lacks."""
    read, words = len(unfinished.document.pages), _words_of(failure)
    if unfinished.page is None:
        document = _noted(unfinished.document, left_out)
        rest = f"partial: what follows page {read} could not be read: {words}"
    else:
        document = _noted(unfinished.document, {**left_out, unfinished.page: words})
        rest = f"partial: what follows page {unfinished.page} was left out"
    if unfinished.page == unfinished.pages:
        return document
    return replace(document, notes=(rest, *document.notes)[:MAX_NOTES])


def _words_of(failure: Failure) -> str:
    detail = printable(failure.detail, _DETAIL_CHARS)
    return f"{failure.reason.value}{f', {detail}' if detail else ''}"


def _parsed(data: bytes, left_out: Collection[int]) -> Unfinished:
    # Before it is taken apart: what is no journal may take a hundred times its size, and minutes.
    if data.count(b"\n") > _MOST_LINES:
        raise MalformedMessage(f"journal has more than {_MOST_LINES} lines")
    results.check_frame(data, "journal")
    # What follows the last end of a line is a line that was being written.
    head, *entries = (_table(line) for line in data.split(b"\n")[:-1]) if b"\n" in data else ({},)
    document, count = Document.from_json(head.get("document")), head.get("pages")
    if document.pages or document.parts:
        raise MalformedMessage("journal begins with a document that has pages or parts")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_PAGES:
        raise MalformedMessage("journal does not say how many pages there are")
    full = entries[-1:] == [_FULL]
    pages = tuple(Page.from_json(entry) for entry in (entries[:-1] if full else entries))
    if len(pages) > count or any(page.number != number for number, page in enumerate(pages, start=1)):
        raise MalformedMessage("journal does not hold one page after the other")
    if sum(len(page.text) for page in pages) > MAX_TEXT_CHARS:
        raise MalformedMessage(f"journal has more than {MAX_TEXT_CHARS} characters")
    page = len(pages) + 1
    # One that was not to be read cannot be the one: it is blamed once, whatever is said.
    known = not full and page <= count and page not in left_out
    return Unfinished(document=replace(document, pages=pages), pages=count, page=page if known else None)


def _table(line: bytes) -> Mapping[str, object]:
    try:
        table = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("a line of the journal is not JSON") from error
    if not isinstance(table, dict):
        raise MalformedMessage("a line of the journal is not a table")
    return table
