"""What extraction finds in an item: a document of pages, the parts inside it, and the chunks cut from it.

Rule: these records come from workers that have read hostile files. `from_json` trusts nothing: it checks every type,
name and bound, and raises MalformedMessage; what it returns may be stored and shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, TypeVar

from engine.errors import MalformedMessage
from engine.model import Kind
from engine.sizes import format_size

#: Text kept of one document, in bytes of UTF-8. The longest novels have 4 million; beyond 20 it is data, not reading.
#: Settings may lower it (NIGHTMILL_MAX_TEXT). What it means for memory and disk is counted with this number.
MAX_TEXT_BYTES = 20_000_000
#: The same as characters: the most that so many bytes may hold.
MAX_TEXT_CHARS = MAX_TEXT_BYTES
#: Text of one page that OCR read; the densest printed pages hold some 20,000.
MAX_PAGE_CHARS = 1_000_000
#: Pages of one document; the thickest printed catalogues end near 10,000.
MAX_PAGES = 50_000
#: Below this a page read by OCR is marked. Clean print has 90 and more, receipts that can be understood 70 to 85; of
#: pages below 60 hardly a word in two is right.
LOW_CONFIDENCE = 60.0
#: Parts (attachments) of one document.
MAX_PARTS = 1_000
#: Bytes of one part. Mail servers refuse far smaller ones.
MAX_PART_BYTES = 2_000_000_000
#: Bytes of all parts of one item, unless the item is a quarter of that itself: one stream may stand there under a
#: thousand names.
MAX_PARTS_BYTES = 64 << 20
#: Characters of any short field: titles, names, facts.
MAX_FIELD_CHARS = 4_000
#: Facts of one document; the kinds that are read have about ten.
MAX_FACTS = 100
#: Notes of one document.
MAX_NOTES = 100
#: Characters of one chunk, and of its keywords.
MAX_CHUNK_CHARS, MAX_KEYWORDS_CHARS = 100_000, 400_000

#: What a terminal obeys, or takes for the end of a line. Direction marks stay: names in some scripts need them.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WORD = re.compile(r"\w+")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Method(StrEnum):
    """How a page's text was had."""

    TEXT = "text"
    OCR = "ocr"
    NONE = "none"


class ChunkKind(StrEnum):
    """What a vector stands for (DESIGN.md, "What is embedded")."""

    EMAIL_SUM = "email_sum"
    EMAIL_CONTEXT = "email_context"
    EMAIL_TITLE = "email_title"
    SCHEDULE_CONTEXT = "schedule_context"
    FILE_SUM = "file_sum"
    FILE_CHUNK = "file_chunk"


_CHUNK_KINDS: Final = frozenset(kind.value for kind in ChunkKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page, or the whole of a document that has none (number 0). `confidence` is 0 to 100, for OCR only.

    pixels  of a page that needs OCR: of the picture, or of the sheet that it is rendered to; 0: unknown
    label   the number that is printed on the page, or that the file gives it: "iv", "12"; "": none is known
    header  how many of the first lines of `text` are a running header, as it stands on other pages too
    footer  how many of the last lines are a running footer, or the page's number
    """

    number: int
    text: str
    method: Method = Method.TEXT
    confidence: float | None = None
    needs_ocr: bool = False
    pixels: int = 0
    label: str = ""
    header: int = 0
    footer: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, read back by `from_json`. Field by field: `asdict` takes many times as long."""
        return {
            "number": self.number,
            "text": self.text,
            "method": self.method,
            "confidence": self.confidence,
            "needs_ocr": self.needs_ocr,
            "pixels": self.pixels,
            "label": self.label,
            "header": self.header,
            "footer": self.footer,
        }

    @staticmethod
    def from_json(value: object) -> Page:
        """Raises MalformedMessage for anything that `to_json` would not have written."""
        return _page(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An attachment that a worker laid into its outbox as `file`; it becomes an item of its own."""

    name: str
    media_type: str
    file: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Text and structure taken from an item.

    media_type  found in the content, not in the name
    title       what a hit shows; never empty after extraction
    facts       short texts by name: date (ISO 8601), sender, recipients, author, location, start, end, rrule, ...
    notes       what the reader should know: "partial: the text was cut at 20 MB", "name says .doc, content is html"
    """

    kind: Kind
    media_type: str
    title: str
    pages: tuple[Page, ...] = ()
    parts: tuple[Part, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, read back by `from_json`."""
        return {
            "kind": self.kind,
            "media_type": self.media_type,
            "title": self.title,
            "pages": tuple(page.to_json() for page in self.pages),
            "parts": tuple(asdict(part) for part in self.parts),
            "facts": dict(self.facts),
            "notes": self.notes,
        }

    @staticmethod
    def from_json(value: object) -> Document:
        """Raises MalformedMessage for anything that `to_json` would not have written."""
        table = _table(value, "document")
        pages = tuple(_page(entry) for entry in _list(table, "pages", MAX_PAGES))
        if sum(text_bytes(page.text) for page in pages) > MAX_TEXT_BYTES:
            raise MalformedMessage(f"document has more than {MAX_TEXT_BYTES} bytes of text")
        facts = _table(table.get("facts", {}), "facts")
        if len(facts) > MAX_FACTS:
            raise MalformedMessage(f"document has more than {MAX_FACTS} facts")
        parts = tuple(_part(entry) for entry in _list(table, "parts", MAX_PARTS))
        if len({part.file for part in parts}) < len(parts):
            raise MalformedMessage("two parts have the same file")
        return Document(
            kind=_enum(Kind, table.get("kind")),
            media_type=_short(table, "media_type"),
            title=_short(table, "title"),
            pages=pages,
            parts=parts,
            facts={_short({"name": key}, "name"): _short(facts, key) for key in facts},
            notes=tuple(_short({"note": note}, "note") for note in _list(table, "notes", MAX_NOTES)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A slice of a document that becomes one vector.

    text      what is embedded and shown as passage
    keywords  its keyword tokens, separated by single spaces (engine/text.py makes and explains them)
    page      the page it begins on, 0 where there are no pages
    """

    kind: ChunkKind
    text: str
    keywords: str
    page: int = 0

    def to_json(self) -> list[Any]:
        """JSON-able form, read back by `chunk_fields`: a list, as there are many of them."""
        return [self.kind, self.text, self.keywords, self.page]


def chunk_fields(value: object) -> tuple[str, str, str, int]:
    """(kind, text, keywords, page) of `Chunk.to_json`. Raises MalformedMessage for anything else."""
    if not isinstance(value, list) or len(value) != 4:
        raise MalformedMessage("chunk is not a list of 4")
    kind, text, keywords, page = value
    # There are many of them, and nearly all are of this kind.
    if (
        (type(kind), type(text), type(keywords), type(page)) == (str, str, str, int)
        and kind in _CHUNK_KINDS
        and (text.isascii() and keywords.isascii())
        and (len(text) <= MAX_CHUNK_CHARS and len(keywords) <= MAX_KEYWORDS_CHARS and 0 <= page < 2**53)
    ):
        return kind, text, keywords, page
    return (
        _enum(ChunkKind, kind).value,
        _checked(text, "chunk.text", MAX_CHUNK_CHARS),
        _checked(keywords, "chunk.keywords", MAX_KEYWORDS_CHARS),
        _whole(page, "chunk.page"),
    )


def text_bytes(text: str) -> int:
    """Bytes of the text as UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def cut_text(text: str, limit_bytes: int) -> str:
    """The beginning of the text that takes at most so many bytes as UTF-8, in whole characters."""
    if text.isascii() or 4 * len(text) <= limit_bytes:
        return text[:limit_bytes]
    kept = text[:limit_bytes]  # no character takes less than a byte
    data = kept.encode()
    return kept if len(data) <= limit_bytes else data[:limit_bytes].decode(errors="ignore")


def low_confidence(pages: Sequence[Page]) -> str:
    """A note of the pages that OCR itself was not sure of; "" where there are none."""
    unsure = [page for page in pages if page.confidence is not None and page.confidence < LOW_CONFIDENCE and page.text]
    if not unsure:
        return ""
    listed = ", ".join(str(page.number) for page in unsure[:20]) + (", ..." if len(unsure) > 20 else "")
    mean = sum(page.confidence or 0.0 for page in unsure) / len(unsure)
    return f"low confidence: page{'s' if len(unsure) > 1 else ''} {listed} (mean {mean:.0f} of 100)"


def cut_to_limit(document: Document, limit_bytes: int) -> Document:
    """The document with as much text as one may have, and a note where that is not all: how much there was, and which
    page is the first to lack some."""
    left, pages, cut_on = limit_bytes, [], -1
    for page in document.pages:
        kept = cut_text(page.text, left)
        if len(kept) < len(page.text):
            left, cut_on = 0, cut_on if cut_on >= 0 else page.number
            page = replace(page, text=kept, header=page.header if kept else 0, footer=0)
        else:
            left -= text_bytes(kept)
        pages.append(page)
    if cut_on < 0:
        return document
    whole = sum(text_bytes(page.text) for page in document.pages)
    where = f" on page {cut_on}" if cut_on else ""
    note = f"partial: the text was cut at {format_size(limit_bytes)}{where}; in all it has {format_size(whole)}"
    return replace(document, pages=tuple(pages), notes=(*document.notes[: MAX_NOTES - 1], note))


def parts_limit(size_bytes: int) -> int:
    """Bytes of all parts of an item of that size: in mails they are smaller, in other files they may be packed."""
    return max(MAX_PARTS_BYTES, 4 * size_bytes)


def merge_page(page: Page, recognised: Page | None) -> Page:
    """A page with what OCR found, and the label that the file gives it; where OCR failed or found nothing, what was
    there before is better than nothing."""
    if not page.needs_ocr:
        return page
    if recognised is None or recognised.method is Method.NONE or (page.text and not recognised.text):
        return replace(page, needs_ocr=False)
    is_sure = recognised.confidence is None or recognised.confidence >= LOW_CONFIDENCE
    text = _with_what_was_missed(recognised.text, page.text, is_sure)[:MAX_PAGE_CHARS]
    return replace(recognised, text=text, label=page.label)


def _with_what_was_missed(read: str, layer: str, is_sure: bool) -> str:
    """What OCR read, and after it the lines of the text layer that it did not: pale or small ones, those on pictures,
    those of another language.

    Of a layer that says what the page shows OCR finds most words; any other is left out, unless OCR itself is not sure.
    """
    found = set(_WORD.findall(read.casefold()))
    lines = [(line, [word in found for word in _WORD.findall(line.casefold())]) for line in layer.split("\n")]
    words = sum(len(hits) for _, hits in lines)
    if not words or (is_sure and 2 * sum(sum(hits) for _, hits in lines) < words):
        return read
    missed = [line for line, hits in lines if 2 * sum(hits) < len(hits)]
    return "\n".join((read, *missed))


def _page(value: object) -> Page:
    table = _table(value, "page")
    confidence = table.get("confidence")
    if confidence is not None and (
        isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0 <= confidence <= 100
    ):
        raise MalformedMessage("page.confidence is not a number from 0 to 100")
    needs_ocr = table.get("needs_ocr", False)
    if not isinstance(needs_ocr, bool):
        raise MalformedMessage("page.needs_ocr is not a truth value")
    return Page(
        number=_count(table, "number"),
        text=_text(table, "text", MAX_TEXT_CHARS),
        method=_enum(Method, table.get("method")),
        confidence=None if confidence is None else float(confidence),
        needs_ocr=needs_ocr,
        pixels=_count(table, "pixels"),
        label=_short({"label": table.get("label", "")}, "label"),
        header=_count(table, "header"),
        footer=_count(table, "footer"),
    )


def _part(value: object) -> Part:
    table = _table(value, "part")
    file = _short(table, "file")
    if not _FILE_NAME.fullmatch(file):
        raise MalformedMessage(f"part.file {file[:100]!r} is not a plain file name")
    return Part(
        name=_short(table, "name"),
        media_type=_short(table, "media_type"),
        file=file,
        size_bytes=_count(table, "size_bytes"),
    )


def _table(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MalformedMessage(f"{name} is not a table")
    return value


def _list(table: Mapping[str, Any], name: str, limit: int) -> list[object]:
    value = table.get(name, [])
    if not isinstance(value, list | tuple) or len(value) > limit:
        raise MalformedMessage(f"{name} is not a list of at most {limit}")
    return list(value)


def _text(table: Mapping[str, Any], name: str, limit: int) -> str:
    return _checked(table.get(name), name, limit)


def _checked(value: object, name: str, limit: int) -> str:
    if not isinstance(value, str) or len(value) > limit:
        raise MalformedMessage(f"{name} is not a text of at most {limit} characters")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MalformedMessage(f"{name} cannot be written as UTF-8") from error
    return value


def _short(table: Mapping[str, Any], name: str) -> str:
    """One line: control characters, which a mail's subject may hold, become blanks."""
    return _CONTROLS.sub(" ", _text(table, name, MAX_FIELD_CHARS))


def _count(table: Mapping[str, Any], name: str) -> int:
    return _whole(table.get(name, 0), name)


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise MalformedMessage(f"{name} is not a count")
    return value


_E = TypeVar("_E", bound=StrEnum)


def _enum(kind: type[_E], value: object) -> _E:
    # Only a text is looked up and shown: the repr of a deeply nested list would end in a RecursionError.
    if not isinstance(value, str):
        raise MalformedMessage(f"{kind.__name__} is not a text")
    try:
        return kind(value)
    except ValueError:
        raise MalformedMessage(f"{value[:100]!r} is no {kind.__name__}") from None
