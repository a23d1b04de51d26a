"""How much of the disk the copies for workers may take, and what workers write: may this unit's copy start now?

Rule: pure. Bytes that are spoken for are counted from the word "go" to the end of the unit, whether they are written
yet or not, and again in what is free: what was promised must fit even where nothing of it can be seen.

    ask -> GO      take(...) ... give_back(...)
        -> WAIT    the first to wait goes before all that could not start beside it
        -> NEVER   nothing else is out, and the disk would still have less than its reserve
        -> FULL    the same, and it is not the unit that is large: the disk has no room to work in
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum

from engine.document import MAX_PAGE_CHARS, MAX_PAGES, MAX_PARTS_BYTES, MAX_TEXT_CHARS
from engine.model import Stage

#: A document of the longest text allowed, whose characters take at most 4 bytes as UTF-8 (what stands for itself twice,
#: as quotes do, is one byte otherwise), and what stands between: 50,000 pages of 90 bytes, 1,000 parts, facts, notes.
DOCUMENT_JSON_BYTES = 4 * MAX_TEXT_CHARS + (32 << 20)
#: What the program `tesseract` is given lies in the outbox for a moment: a page of 256 million pixels, in colours.
PAGE_IMAGE_BYTES = 1 << 30
#: The same as characters, of which quotes and line breaks are written as two.
DOCUMENT_JSON_CHARS = 2 * MAX_TEXT_CHARS + (16 << 20)
#: A page's text as JSON: a million characters as six bytes each (control characters), and its few other fields.
PAGE_JSON_BYTES = 6 * MAX_PAGE_CHARS + (1 << 16)
#: Chunks as JSON: Chinese, where every character is a keyword of its own and one with its neighbour, takes 14.3 bytes
#: for each character [measured], English 2.1.
CHUNK_BYTES_A_CHAR = 16
#: Beyond that, for documents of 50,000 pages of a word each.
CHUNKS_BYTES = 8 << 20
#: Chunks of a document: the last of each of its pages, those of what is known of it beside its text, and of the text
#: one for so many characters. The shortest that are cut in the middle of a text have 105 [measured: signs, and breaks
#: where they hurt most]. A line of nothing takes 22 bytes in the file, and ten times as much in our memory.
CHUNKS_BESIDE, CHARS_A_CHUNK = MAX_PAGES + 10_000, 32
#: The longest chunk that a document may have, as document.Chunk bounds it, in bytes of up to 4 for a character.
CHUNK_LINE_BYTES = 4 * 500_000 + (1 << 16)
#: A vector of 1,024 numbers of 4 bytes; ours have 384 or fewer.
VECTOR_BYTES = 4096
#: With less room than this above its reserve a disk is full, and with more a unit that has no room is too large for it:
#: what most files of 20 MB take.
LEAST_BYTES = 64 << 20
#: Orders in a row that found no room on the disk, though it seemed to be there (a quota): more would only fail alike.
FULL_IN_A_ROW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a unit takes of the disk: in inbox and outbox, and in all, with what is kept of it beside them."""

    spool_bytes: int = 0
    disk_bytes: int = 0


def need_of(stage: Stage, size_bytes: int) -> Need:
    """size_bytes: of the files that are copied (extract, ocr), of the vectors (index); of chunk the characters, and of
    embed the number of texts, which are small."""
    match stage:
        case Stage.EXTRACT:
            # The copy; its attachments in the outbox, which are no more than it; and those laid by.
            return Need(spool_bytes=2 * size_bytes, disk_bytes=3 * size_bytes)
        case Stage.CHUNK:
            # The document and its chunks, as they mostly are; what they may be at most is up to outbox_limit.
            return Need(spool_bytes=8 * size_bytes, disk_bytes=8 * size_bytes)
        case Stage.INDEX:
            # The vectors, the FAISS file made of them, its draft beside the index, and the one that it replaces.
            return Need(spool_bytes=2 * size_bytes, disk_bytes=3 * size_bytes)
        case Stage.OCR:
            return Need(spool_bytes=size_bytes, disk_bytes=size_bytes)
        case _:
            return Need()


def outbox_limit(stage: Stage, orders: int, size_bytes: int) -> int:
    """Bytes that an honest worker may have in its outbox for a unit of so many orders; `size_bytes` as in need_of."""
    match stage:
        case Stage.EXTRACT:
            # Of each order the document, and its attachments as far as readers take them (document.parts_limit).
            return orders * (DOCUMENT_JSON_BYTES + MAX_PARTS_BYTES) + 4 * size_bytes
        case Stage.OCR:
            return orders * PAGE_JSON_BYTES + PAGE_IMAGE_BYTES
        case Stage.CHUNK:
            return chunks_limit(size_bytes) + (orders - 1) * CHUNKS_BYTES
        case Stage.INDEX:
            return 2 * size_bytes + (64 << 20)
        case _:
            return max(1, size_bytes) * VECTOR_BYTES + (1 << 20)


def chunks_limit(chars: int) -> int:
    """Bytes of the chunks of a document with so many characters."""
    return CHUNK_BYTES_A_CHAR * chars + CHUNKS_BYTES


def most_chunks(chars: int) -> int:
    """How many chunks a document with so many characters may have."""
    return CHUNKS_BESIDE + chars // CHARS_A_CHUNK


class Verdict(StrEnum):
    """May a unit's copy start?"""

    GO = "go"
    WAIT = "wait"
    NEVER = "never"
    FULL = "full"


class SpoolBudget:
    """What is spoken for of one run's spool, by unit, and who waits first."""

    def __init__(self, limit_bytes: int, reserve_bytes: int, least_bytes: int = LEAST_BYTES) -> None:
        """reserve_bytes: free space that the disk keeps whatever starts; least_bytes: see LEAST_BYTES."""
        self._limit, self._reserve, self._least = limit_bytes, reserve_bytes, least_bytes
        self._taken: dict[Hashable, Need] = {}
        self._first: tuple[Hashable, Need] | None = None

    @property
    def spool_bytes(self) -> int:
        """Bytes of inboxes and outboxes that are spoken for."""
        return sum(need.spool_bytes for need in self._taken.values())

    @property
    def disk_bytes(self) -> int:
        """Bytes of the disk that are spoken for."""
        return sum(need.disk_bytes for need in self._taken.values())

    def ask(self, asker: Hashable, need: Need, free_bytes: int) -> Verdict:
        """May a unit of that need start now? free_bytes: of the disk. WAIT for the first to wait means that others
        which start from now on leave it its room; when it is larger than the whole spool, they wait until it ran."""
        if not need.disk_bytes:
            return Verdict.GO
        if not self._taken and (self._first is None or self._first[0] == asker):
            # One may always go alone, whatever the limit; but never at the cost of the reserve.
            if free_bytes - need.disk_bytes >= self._reserve:
                return Verdict.GO
            self._first = None
            return Verdict.NEVER if free_bytes - self._reserve >= self._least else Verdict.FULL
        ahead = Need()
        if self._first is not None and self._first[0] != asker:
            ahead = self._first[1]
        if (
            self.spool_bytes + ahead.spool_bytes + need.spool_bytes <= self._limit
            and free_bytes - self.disk_bytes - ahead.disk_bytes - need.disk_bytes >= self._reserve
        ):
            return Verdict.GO
        if self._first is None or self._first[0] == asker:
            self._first = asker, need
        return Verdict.WAIT

    def take(self, unit: Hashable, asker: Hashable, need: Need) -> None:
        """A unit that may go begins."""
        self.keep(unit, need)
        self.forget(asker)

    def keep(self, name: Hashable, need: Need) -> None:
        """Something stays that has room already."""
        self._taken[name] = need

    def give_back(self, unit: Hashable) -> None:
        """It is over, and its files are removed. Unknown: nothing happens."""
        self._taken.pop(unit, None)

    def forget(self, asker: Hashable) -> None:
        """Who waited does not any more."""
        if self._first is not None and self._first[0] == asker:
            self._first = None
