"""DOCX -> text in reading order: the body, then footnotes, endnotes, comments, headers, footers, diagrams and charts.

Rule: streams. Each XML part passes through expat, which builds no tree, so a part costs the text that it holds and
no more, however long it is. What Word keeps twice (text boxes for old versions, equal headers of many sections) or
has struck out is read once or not at all. No word is added that the document does not say.

    [package's relations] -> main part, properties
    [main part's relations] -> the other parts
    a part -> expat -> _Story: frames (cell in row in table, text box in paragraph) -> paragraphs and rows, a line each
"""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol
from urllib.parse import unquote
from xml.parsers import expat

from engine.document import Document, Page
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers.archive import blocks_of
from engine.workers.ole import file_inside
from engine.workers.reading import Budget, Material, Parts, tidy, told
from engine.workers.types import HEAD_BYTES, OLE, UNKNOWN, media_type_of, ole_media_type, ole_names

#: Parts of the package in the order in which they are read after the body, by the last word of their relation's type.
_STORIES: Final = ("footnotes", "endnotes", "comments", "header", "footer", "diagramData", "chart", "chartEx")
#: Of these a section has three each, and a letter to many people has a section for each of them.
_REPEATED: Final = frozenset({"header", "footer"})
#: What is kept inside as a file of its own: documents that Word shows as if they were part of this one, and objects.
_FILES: Final = frozenset({"aFChunk", "package", "oleObject"})
#: Bytes of such a file.
_FILE_BYTES: Final = 64 << 20
#: Parts of one kind that are read.
_MAX_STORIES: Final = 200
#: Relations of one part.
_MAX_RELATIONS: Final = 10_000
#: Bytes of the properties: they have some hundred words.
_PROPERTIES_BYTES: Final = 1 << 20
#: Characters of one property, and people whose comments are told.
_PROPERTY_CHARS, _MAX_AUTHORS = 4_000, 50

# Bounds of an XML part, for what expat keeps while it reads. The first two are as in libxml2.
_MAX_DEPTH: Final = 256
#: Bytes of one tag. Expat reads one that is not yet whole again with each block.
_MAX_TAG_BYTES: Final = 10_000_000
#: Different names of elements and attributes: expat forgets none. All of WordprocessingML has some 2,000.
_MAX_NAMES: Final = 20_000
#: Lines that are kept as such, before they become one text: a short one takes 20 times its letters.
_LOOSE_LINES: Final = 10_000

_RELATIONSHIP: Final = "http://schemas.openxmlformats.org/package/2006/relationships Relationship"
#: By prefix, its namespaces: as Word writes them, and those of ISO 29500 Strict.
_SPACES: Final = {
    "w": (
        "http://schemas.openxmlformats.org/wordprocessingml/2006/main",
        "http://purl.oclc.org/ooxml/wordprocessingml/main",
    ),
    "m": (
        "http://schemas.openxmlformats.org/officeDocument/2006/math",
        "http://purl.oclc.org/ooxml/officeDocument/math",
    ),
    "a": ("http://schemas.openxmlformats.org/drawingml/2006/main", "http://purl.oclc.org/ooxml/drawingml/main"),
    "c": ("http://schemas.openxmlformats.org/drawingml/2006/chart", "http://purl.oclc.org/ooxml/drawingml/chart"),
    "cx": ("http://schemas.microsoft.com/office/drawing/2014/chartex",),
    "mc": ("http://schemas.openxmlformats.org/markup-compatibility/2006",),
    "symex": ("http://schemas.microsoft.com/office/word/2015/wordml/symex",),
}
#: Whose characters are text.
_TEXTS: Final = frozenset({"w:t", "m:t", "a:t", "c:v", "cx:pt"})
#: What is gathered before it goes to what is around it; see _Story._close.
_FRAMES: Final = frozenset({"w:p", "w:tr", "w:tc", "w:txbxContent", "w:comment", "w:rt", "a:p", "c:v", "cx:pt"})
#: What is not text of the document: what is struck out or was moved away, drawings for old versions, numbers of charts.
_SKIPPED: Final = frozenset({"w:del", "w:moveFrom", "mc:Fallback", "c:numCache", "c:numLit", "cx:numDim"})
#: What stands for a character. Of mathematics as it is written on one line (Unicode Technical Note 28).
_SIGNS: Final = {
    "w:ptab": "\t",
    "w:br": "\n",
    "w:cr": "\n",
    "w:noBreakHyphen": "-",
    "m:den": "/",
    "m:sup": "^",
}
_OTHERS: Final = frozenset(
    {
        *("w:tab", "w:sym", "symex:symEx", "mc:AlternateContent", "mc:Choice", "m:f"),
        *("w:ddList", "w:result", "w:default", "w:listEntry", "w:fldChar"),
    }
)
#: By what expat calls an element, its name with the usual prefix.
_KNOWN: Final = {
    f"{space} {name.partition(':')[2]}": name
    for name in (*_TEXTS, *_FRAMES, *_SKIPPED, *_SIGNS, *_OTHERS)
    for space in _SPACES[name.partition(":")[0]]
}
#: Of these, whose end matters.
_ENDING: Final = {
    name: known for name, known in _KNOWN.items() if known in _TEXTS | _FRAMES | {"mc:AlternateContent", "m:f", "m:sup"}
}
#: The font Symbol (Adobe's Symbol encoding), whose codes Word writes as they are or as U+F000 and more.
_SYMBOL_FONT: Final[dict[int, str]] = dict(
    zip(
        (*range(0x41, 0x5B), *range(0x61, 0x7B), *b"\xa3\xa5\xac\xae\xb0\xb1\xb3\xb4\xb7\xb8\xb9"),
        "ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖαβχδεφγηιϕκλμνοπθρστυϖωξψζ≤∞←→°±≥×•÷≠",
        strict=True,
    )
)

_Report = Callable[[int, int], None]


def read(material: Material) -> Document:
    """One page, number 0. Raises StageFailed: damaged, bomb, encrypted."""
    archive = material.archive
    assert archive is not None, "a DOCX is a ZIP container"
    package = _Package(archive, material.place.progress)
    main, links = package.main_part()
    budget = Budget(limit=material.max_text_bytes)
    notes: list[str] = []
    authors: dict[str, None] = {}
    stories = [package.story(main, budget, authors)]
    repeated: set[str] = set()
    for kind, part in package.others(links, notes):
        if budget.left <= 0:
            budget.cut = True
            break
        try:
            text = package.story(part, budget, authors)
        except StageFailed as error:
            if error.failure.reason is Reason.BOMB:
                raise
            notes.append(f"partial: {kind} could not be read: {error}")
            continue
        if kind not in _REPEATED or text not in repeated:
            stories.append(text)
        if kind in _REPEATED:
            repeated.add(text)
    facts = package.properties()
    parts = package.files(links, material)
    facts["comments by"] = ", ".join(authors)
    text = budget.joined(stories)
    pictures = sum(kind == "image" for kind, _ in links)
    if pictures and not text.strip():
        notes.append(f"it has no text, but pictures, which are not read: {pictures}")
    return material.document(
        title=facts.pop("title", ""),
        pages=[Page(number=0, text=text)],
        parts=parts.written,
        facts=facts,
        notes=[*notes, *parts.notes(), *budget.notes()],
    )


class _Target(Protocol):
    """What expat tells of a part. `full`: it wants to hear no more. `depth`: how many elements are open."""

    full: bool
    depth: int

    def start(self, name: str, attributes: Mapping[str, str]) -> None: ...
    def end(self, name: str) -> None: ...
    def data(self, data: str) -> None: ...


class _Package:
    """The parts of an open package, found by their relations, whatever they are called and wherever they lie."""

    def __init__(self, archive: zipfile.ZipFile, report: _Report) -> None:
        self._archive, self._report = archive, report
        # Names of parts are compared without regard to case (ISO/IEC 29500-2, 6.2.2.3).
        self._names = {name.lower(): name for name in archive.namelist()}
        self._links = self._relations("")

    def main_part(self) -> tuple[str, list[tuple[str, str]]]:
        """The part with the body, word/document.xml unless the package says otherwise, and what it points to.

        Raises StageFailed(DAMAGED).
        """
        named = [target for kind, target in self._links if kind == "officeDocument"]
        for target in (*named, "word/document.xml"):
            if part := self._names.get(target.lower()):
                return part, self._relations(part)
        raise StageFailed(Reason.DAMAGED, "a DOCX without a document part")

    def others(self, links: Iterable[tuple[str, str]], notes: list[str]) -> Iterator[tuple[str, str]]:
        """(kind, part name) of what is read after the body; what is named and cannot be is noted."""
        by_kind: dict[str, dict[str, None]] = {kind: {} for kind in _STORIES}
        seen: set[str] = set()  # one part has one kind, and as many names as its letters can be written in
        for kind, target in links:
            if kind in by_kind and target.lower() not in seen:
                seen.add(target.lower())
                by_kind[kind][target] = None
        for kind, targets in by_kind.items():
            parts = [part for target in targets if (part := self._names.get(target.lower()))]
            if len(parts) < len(targets):
                notes.append(f"partial: {kind}: {len(targets) - len(parts)} of {len(targets)} parts are missing")
            if len(parts) > _MAX_STORIES:
                notes.append(f"partial: {kind}: only {_MAX_STORIES} of {len(parts)} parts were read")
            yield from ((kind, part) for part in parts[:_MAX_STORIES])

    def story(self, part: str, budget: Budget, authors: dict[str, None]) -> str:
        """The text of one XML part. Raises StageFailed."""
        story = _Story(budget.left, authors)
        self._parse(part, story)
        budget.cut = budget.cut or story.full
        return budget.take(tidy(story.text()))

    def files(self, links: Iterable[tuple[str, str]], material: Material) -> Parts:
        """Files that lie inside, laid into the outbox."""
        parts = Parts(material)
        wanted = {target.lower(): (kind, target) for kind, target in links if kind in _FILES}
        for number, (kind, name) in enumerate(wanted.values(), start=1):
            self._report(number, len(wanted))
            part = self._names.get(name.lower())
            if part is None or parts.is_full():
                parts.left_out += 1
                continue
            try:
                data = b"".join(blocks_of(self._archive, part, _FILE_BYTES))
            except StageFailed:
                parts.left_out += 1
                continue
            inside = file_inside(data) if kind == "oleObject" else None
            if inside is not None:
                name, data = inside[0] or name, inside[1]
            media_type = media_type_of(data[:HEAD_BYTES], name)
            if media_type == OLE:
                media_type = ole_media_type(ole_names(data))
            # Objects are formulas and buttons too, which are no files.
            if kind != "oleObject" or media_type not in (OLE, UNKNOWN):
                parts.add(name, media_type, data)
        return parts

    def properties(self) -> dict[str, str]:
        """Title, author, date and the like from the core properties; none where they cannot be read."""
        named = [target for kind, target in self._links if kind == "core-properties"]
        part = self._names.get((named or ["docProps/core.xml"])[0].lower())
        said = _Properties()
        try:
            if part is not None:
                self._parse(part, said, _PROPERTIES_BYTES)
        except StageFailed:
            return {}
        return {
            "title": said.of("title"),
            "author": said.of("creator"),
            "subject": said.of("subject"),
            "keywords": said.of("keywords"),
            "date": _moment(said.of("modified")) or _moment(said.of("created")),
        }

    def _relations(self, part: str) -> list[tuple[str, str]]:
        """What a part (or the package, "") points to, as (last word of the relation's type, part name)."""
        folder, name = posixpath.split(part)
        found = _Relations(folder)
        listed = self._names.get(posixpath.join(folder, "_rels", f"{name}.rels").lower())
        if listed is not None:
            try:
                self._parse(listed, found)
            except StageFailed as error:
                # The parts that were named before a damage are of use.
                if error.failure.reason is Reason.BOMB:
                    raise
        return found.links

    def _parse(self, part: str, target: _Target, limit_bytes: int | None = None) -> None:
        size, done = self._archive.getinfo(part).file_size, 0
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = target.start
        parser.EndElementHandler = target.end
        parser.CharacterDataHandler = target.data
        parser.EntityDeclHandler = _refuse_entities
        parser.StartNamespaceDeclHandler = _ignore  # so that prefixes are among the names that are counted
        try:
            for block in blocks_of(self._archive, part, *(() if limit_bytes is None else (limit_bytes,))):
                parser.Parse(block, False)
                done += len(block)
                self._report(done, size)
                if target.full:
                    return
                if target.depth > _MAX_DEPTH:
                    raise _nested_too_deep()
                if done - parser.CurrentByteIndex > _MAX_TAG_BYTES or len(parser.intern) > _MAX_NAMES:
                    raise StageFailed(Reason.BOMB, f"{part:.200} has a tag, or names, that no document needs")
            parser.Parse(b"", True)
        except (expat.ExpatError, ValueError, LookupError) as error:
            reason = Reason.BOMB if "amplification" in str(error) else Reason.DAMAGED
            raise StageFailed(reason, f"{part:.200} is not sound XML: {told(error)}") from error


def _refuse_entities(*declared: object) -> None:
    """No part of a package may declare any (ISO/IEC 29500-2, 6.2.5: no DTD); what does wants them to multiply."""
    raise StageFailed(Reason.BOMB, "an XML part that declares entities, as no document does")


def _nested_too_deep() -> StageFailed:
    return StageFailed(Reason.BOMB, f"an XML part nested more than {_MAX_DEPTH} deep")


def _ignore(*said: object) -> None:
    """What need not be heard."""


def _moment(text: str) -> str:
    """A property's time (W3CDTF) as ISO 8601 with an offset, UTC where it says none; "" when it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return ""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat(timespec="seconds")


class _Relations:
    """Target for .rels parts, where all is said in attributes."""

    def __init__(self, folder: str) -> None:
        self.links: list[tuple[str, str]] = []
        self.full, self.depth = False, 0
        self._folder = folder

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        self.depth += 1
        if name == _RELATIONSHIP and attributes.get("TargetMode") != "External":
            kind = attributes.get("Type", "").rpartition("/")[2]
            target = posixpath.join("/", self._folder, unquote(attributes.get("Target", "")))
            self.links.append((kind, posixpath.normpath(target).lstrip("/")))
            self.full = len(self.links) >= _MAX_RELATIONS

    def end(self, name: str) -> None:
        self.depth -= 1

    def data(self, data: str) -> None:
        """All is said in attributes."""


class _Properties:
    """Target for the core properties: a flat list of elements, told apart by their names alone."""

    def __init__(self) -> None:
        self.full, self.depth = False, 0
        self._pieces: dict[str, list[str]] = {}
        self._now: list[str] = []
        self._left = 10 * _PROPERTY_CHARS

    def of(self, name: str) -> str:
        """The text of one, "" where it is not there."""
        return "".join(self._pieces.get(name, [])).strip()

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        self.depth += 1
        known = name.rpartition(" ")[2]
        wanted = known in ("title", "creator", "subject", "keywords", "modified", "created")
        self._now = self._pieces.setdefault(known, []) if wanted else []

    def end(self, name: str) -> None:
        self.depth -= 1
        self._now = []

    def data(self, data: str) -> None:
        if self._left > 0:
            self._now.append(data[:_PROPERTY_CHARS])
            self._left -= len(data)


@dataclass(slots=True)
class _Frame:
    """What is being gathered: a paragraph's pieces, the lines of a cell or text box, the cells of a row.

    cells     lines of each cell of a row
    after     lines of what is anchored in a paragraph: they follow it
    readings  how words of it are pronounced (ruby); in their place they would take the words apart
    """

    name: str
    pieces: list[str] = field(default_factory=list)
    cells: list[list[str]] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    readings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Choice:
    """What was chosen in a form's list of old: the list stands in the field, which has no text of its own.

    at           how many entries come before it; None until that is said
    text_before  pieces of the paragraph before the field
    """

    text: str = ""
    at: int | None = None
    text_before: int = 0

    def hear(self, known: str, said: str) -> None:
        """Which entry it is, what it is where nothing was chosen, and the entries, in this order."""
        if known == "w:listEntry":
            self.at = (self.at or 0) - 1
            if self.at == -1:
                self.text = said
        elif self.at is None and said.isdecimal():
            self.at = int(said[:9])


def _add(lines: list[str], text: str) -> int:
    """A line more, unless it is empty and two such stand there: a million of them would take room and say nothing.
    Returns what its end takes of the limit: 1 or 0."""
    if not text and lines[-2:] == ["", ""]:
        return 0
    lines.append(text)
    return 1


class _Story:
    """Target for parts with text. It is kept until `limit_chars` are full, line breaks and tabs counted.

    authors: those of comments are added
    """

    def __init__(self, limit_chars: int, authors: dict[str, None]) -> None:
        self.full, self.depth = False, 0
        self._left = limit_chars
        self._authors = authors
        self._done: list[str] = []
        self._frames = [_Frame("story")]
        self._skipped_at = 0  # the depth of the element that is being skipped, 0 for none
        self._chosen: list[bool] = []  # for each alternative around, whether one of its choices was read
        self._labels: set[str] = set()  # of a chart, whose series repeat them
        self._in_text = False
        self._choice = _Choice()

    def text(self) -> str:
        """Lines so far, also of paragraphs that were not closed."""
        while len(self._frames) > 1:
            self._close()
        return "\n".join((*self._done, *self._frames[0].pieces))

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        self.depth += 1
        known = _KNOWN.get(name)
        if known is None or self._skipped_at:
            return
        if known in _TEXTS:
            self._in_text = True
        if known in _FRAMES:
            self._frames.append(_Frame(known))
            if len(self._frames) > _MAX_DEPTH:
                raise _nested_too_deep()
            if known == "w:comment" and len(self._authors) < _MAX_AUTHORS:
                self._authors[attributes.get(name.replace(" comment", " author"), "")[:_PROPERTY_CHARS]] = None
        elif known in _SKIPPED:
            self._skipped_at = self.depth
        elif known in _SIGNS:
            self._keep(_SIGNS[known])
        elif known in _OTHERS:
            self._start_other(known, name, attributes)

    def end(self, name: str) -> None:
        self.depth -= 1
        if self._skipped_at:
            if self.depth < self._skipped_at:
                self._skipped_at = 0
            return
        known = _ENDING.get(name)
        if known is None:
            return
        self._in_text = False
        if known in _FRAMES:
            self._close()
        elif known == "mc:AlternateContent":
            self._chosen.pop()
        elif known in ("m:f", "m:sup"):
            self._keep(" ")  # else it and what follows would be one word

    def data(self, data: str) -> None:
        if self._in_text:
            self._keep(data)

    def _start_other(self, known: str, name: str, attributes: Mapping[str, str]) -> None:
        space = name.rpartition(" ")[0]
        match known:
            case "w:tab" if not attributes:  # with attributes it defines a tab stop
                self._keep("\t")
            case "w:sym":
                self._keep(_sign(attributes.get(f"{space} char", ""), attributes.get(f"{space} font", "")))
            case "symex:symEx":
                self._keep(_sign(attributes.get(f"{space} char", ""), ""))
            case "w:ddList":
                self._choice = _Choice(text_before=len(self._frames[-1].pieces))
            case "w:result" | "w:default" | "w:listEntry":
                self._choice.hear(known, attributes.get(f"{space} val", ""))
            case "w:fldChar" if self._choice.text and attributes.get(f"{space} fldCharType") == "end":
                if len(self._frames[-1].pieces) == self._choice.text_before:
                    self._keep(self._choice.text)
                self._choice = _Choice()
            case "mc:AlternateContent":
                self._chosen.append(False)
            case "mc:Choice" if self._chosen:
                if self._chosen[-1]:
                    self._skipped_at = self.depth
                self._chosen[-1] = True

    def _keep(self, piece: str) -> None:
        self._left -= len(piece)
        if self._left < 0:
            piece, self.full = piece[: self._left], True
        if piece:
            self._frames[-1].pieces.append(piece)

    def _close(self) -> None:
        """Hand what a finished frame gathered to the one around it."""
        frame = self._frames.pop()
        outer = self._frames[-1]
        match frame.name:
            case "w:p":
                self._left -= _add(outer.pieces, "".join(frame.pieces))
                if frame.readings:
                    outer.pieces.append(" ".join(frame.readings))
                outer.pieces += frame.after
            case "w:tc":
                if outer.name == "w:tr":
                    outer.cells.append(frame.pieces)
                else:  # as no document has it
                    outer.pieces.append("\n".join(frame.pieces))
                self._left -= not frame.pieces  # of a cell without a paragraph nothing else is counted
                self.full = self.full or self._left < -_MAX_DEPTH  # as no text will ever say
            case "w:tr":
                self._close_row(outer, [*frame.cells, *([stray] for stray in frame.pieces)])
            case "w:txbxContent":
                self._anchored().extend(frame.pieces)
            case "a:p":
                _add(self._anchored(), "".join(frame.pieces))
            case "w:rt":
                paragraph = self._paragraph()
                (outer.pieces if paragraph is None else paragraph.readings).append("".join(frame.pieces))
            case "w:comment":
                _add(outer.pieces, " ".join(" ".join(frame.pieces).split()))
            case "c:v" | "cx:pt":
                label = "".join(frame.pieces)
                if label not in self._labels:
                    self._labels.add(label)
                    outer.pieces.append(label)
        if len(self._frames) == 1 and len(outer.pieces) > _LOOSE_LINES:
            self._done.append("\n".join(outer.pieces))
            outer.pieces.clear()

    def _close_row(self, outer: _Frame, cells: list[list[str]]) -> None:
        """The only cell of a row is a frame around text, which keeps its lines. They are handed on as they are: frames
        in frames, eighty deep, would take the time of joining and parting all of it eighty times."""
        if len(cells) == 1:
            for text in cells[0][:2] or [""]:
                _add(outer.pieces, text)
            outer.pieces += cells[0][2:]
        else:
            flat = (" ".join("\n".join(cell).split()) for cell in cells)
            _add(outer.pieces, "\t".join(flat).rstrip("\t"))

    def _paragraph(self) -> _Frame | None:
        return next((frame for frame in reversed(self._frames) if frame.name == "w:p"), None)

    def _anchored(self) -> list[str]:
        """Where lines go that stand beside a paragraph."""
        paragraph = self._paragraph()
        return self._frames[-1].pieces if paragraph is None else paragraph.after


def _sign(code: str, font: str) -> str:
    """A character by its number. What a font shows in a place of its own (arrows, boxes, telephones) is a blank."""
    try:
        number = int(code, 16)
        if font.lower() == "symbol":
            return _SYMBOL_FONT.get(number & 0xFF, " ")
        sign = chr(number)
    except (ValueError, OverflowError):
        return ""
    return sign if sign.isprintable() else " "
