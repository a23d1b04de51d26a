"""DOCX -> text in reading order: body, then footnotes, comments, headers and footers.

Rule: streams. The XML parts pass through a parser that builds no tree, so a part costs the text that it holds;
python-docx reads the properties. What Word keeps twice (text boxes for old versions) or has struck out is read once
or not at all.

    document.xml -> parser -> _Story -> paragraphs and rows, a line each
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lxml import etree

from engine.document import Document, Page
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers.archive import blocks_of, open_archive, refuse_bombs
from engine.workers.reading import Budget, Material, Parts, tidy, told
from engine.workers.types import HEAD_BYTES, media_type_of

#: Parts of the package in the order in which they are read after the body, and what stands before their text.
_STORIES: Final = (
    ("footnotes", "Footnotes"),
    ("endnotes", "Endnotes"),
    ("comments", "Comments"),
    ("header", "Header"),
    ("footer", "Footer"),
    ("diagramData", "Diagram"),
    ("chart", "Chart"),
)
#: What is kept inside as a file of its own: whole documents that Word shows as if they were part of this one.
_FILES: Final = frozenset({"aFChunk", "package"})
#: Bytes of such a file.
_FILE_BYTES: Final = 64 << 20
#: Headers and footers of one document: each section may have six.
_MAX_STORIES: Final = 200
#: Bytes of the properties, of which a tree is built, with 30 times its size: they have some hundred words.
_PROPERTIES_BYTES: Final = 1 << 20

_WORD_SPACES: Final = (
    "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}",
    "{http://purl.oclc.org/ooxml/wordprocessingml/main}",
)
_MATH_SPACES: Final = (
    "{http://schemas.openxmlformats.org/officeDocument/2006/math}",
    "{http://purl.oclc.org/ooxml/officeDocument/math}",
)
_DRAWING_SPACES: Final = (
    "{http://schemas.openxmlformats.org/drawingml/2006/main}",
    "{http://purl.oclc.org/ooxml/drawingml/main}",
)
_CHART_SPACES: Final = (
    "{http://schemas.openxmlformats.org/drawingml/2006/chart}",
    "{http://purl.oclc.org/ooxml/drawingml/chart}",
)
_FALLBACK: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_RELATIONSHIP: Final = "{http://schemas.openxmlformats.org/package/2006/relationships}Relationship"


def read(material: Material) -> Document:
    """One page, number 0. Raises StageFailed: damaged, bomb, encrypted."""
    with open_archive(material.path) as archive:
        refuse_bombs(archive)
        main = _main_part(archive)
        budget = Budget(limit=material.max_text_chars)
        notes: list[str] = []
        report = material.place.progress
        stories = [_story(archive, main, budget, report)]
        for part, heading in _other_parts(archive, main):
            if budget.left <= 0:
                budget.cut = True
                break
            try:
                text = _story(archive, part, budget, report)
            except (KeyError, StageFailed) as error:
                if isinstance(error, StageFailed) and error.failure.reason is Reason.BOMB:
                    raise
                notes.append(f"{heading.lower()} could not be read: {error}")
                continue
            entry = f"{heading}:\n{text}"
            if text and entry not in stories:
                stories.append(entry)
        facts = _properties(archive)
        parts = _files(archive, main, material)
    title = facts.pop("title", "")
    text = "\n\n".join(filter(None, stories))[: material.max_text_chars]
    return material.document(
        title=title,
        pages=[Page(number=0, text=text)],
        parts=parts.written,
        facts=facts,
        notes=[*notes, *parts.notes(), *budget.notes()],
    )


def _story(archive: zipfile.ZipFile, part: str, budget: Budget, report: Callable[[int, int], None]) -> str:
    """The text of one XML part. Raises KeyError when there is no such part; StageFailed."""
    story = _Story(budget.left)
    _parse(archive, part, story, report)
    if story.full:
        budget.cut = True
    return budget.take(tidy(story.text()))


def _parse(archive: zipfile.ZipFile, part: str, target: Any, report: Callable[[int, int], None]) -> None:
    size, done = archive.getinfo(part).file_size, 0
    parser: Any = etree.XMLParser(target=target, resolve_entities=False, no_network=True, huge_tree=False)
    try:
        for block in blocks_of(archive, part):
            parser.feed(block)
            done += len(block)
            report(done, size)
            if target.full:
                return
        parser.close()
    except (etree.LxmlError, AssertionError, ValueError) as error:
        bomb = re.search("entity|amplification|huge|[Dd]epth", str(error))
        reason = Reason.BOMB if bomb else Reason.DAMAGED
        raise StageFailed(reason, f"{part:.200} is not sound XML: {told(error)}") from error


def _main_part(archive: zipfile.ZipFile) -> str:
    """The part with the body: word/document.xml, unless the package says otherwise."""
    names = set(archive.namelist())
    for kind, target in _relations(archive, ""):
        if kind == "officeDocument" and target in names:
            return target
    if "word/document.xml" in names:
        return "word/document.xml"
    raise StageFailed(Reason.DAMAGED, "a DOCX without a document part")


def _other_parts(archive: zipfile.ZipFile, main: str) -> Iterator[tuple[str, str]]:
    names = set(archive.namelist())
    found = [(kind, target) for kind, target in _relations(archive, main) if target in names]
    for wanted, heading in _STORIES:
        for _, part in [entry for entry in dict.fromkeys(found) if entry[0] == wanted][:_MAX_STORIES]:
            yield part, heading


def _relations(archive: zipfile.ZipFile, part: str) -> list[tuple[str, str]]:
    """What a part (or the package, "") points to, as (last word of the relationship's type, part name)."""
    folder, name = posixpath.split(part)
    target = _Relations(folder)
    # The parts that were named before a damage are of use.
    with contextlib.suppress(KeyError, StageFailed):
        _parse(archive, posixpath.join(folder, "_rels", f"{name}.rels"), target, lambda done, total: None)
    return target.found


def _files(archive: zipfile.ZipFile, main: str, material: Material) -> Parts:
    parts = Parts(material)
    for kind, name in _relations(archive, main):
        if kind in _FILES:
            if parts.is_full():
                parts.left_out += 1
                continue
            try:
                data = b"".join(blocks_of(archive, name, _FILE_BYTES))
            except (KeyError, StageFailed):
                parts.left_out += 1
                continue
            parts.add(name, media_type_of(data[:HEAD_BYTES], name), data)
    return parts


def _properties(archive: zipfile.ZipFile) -> dict[str, str]:
    """Title, author, date and the like from the core properties; none where they cannot be read."""
    parts = [target for kind, target in _relations(archive, "") if kind == "core-properties"]
    try:
        data = b"".join(blocks_of(archive, parts[0] if parts else "docProps/core.xml", _PROPERTIES_BYTES))
    except (KeyError, StageFailed):
        return {}
    from docx.opc.constants import CONTENT_TYPE
    from docx.opc.packuri import PackURI
    from docx.opc.parts.coreprops import CorePropertiesPart

    try:
        part = CorePropertiesPart.load(PackURI("/docProps/core.xml"), CONTENT_TYPE.OPC_CORE_PROPERTIES, data, None)  # type: ignore[arg-type]
        said = part.core_properties
        modified = said.modified or said.created
        return {
            "title": said.title,
            "author": said.author,
            "subject": said.subject,
            "keywords": said.keywords,
            "date": modified.isoformat() + ("" if modified.tzinfo else "+00:00") if modified else "",
        }
    except (etree.LxmlError, ValueError, TypeError, AttributeError, OverflowError):
        return {}


class _Relations:
    """Target of the parser for .rels parts."""

    def __init__(self, folder: str) -> None:
        self.found: list[tuple[str, str]] = []
        self.full = False
        self._folder = folder

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == _RELATIONSHIP and attributes.get("TargetMode") != "External":
            kind = attributes.get("Type", "").rpartition("/")[2]
            target = posixpath.normpath(posixpath.join("/", self._folder, attributes.get("Target", "")))
            self.found.append((kind, target.lstrip("/")))
            self.full = len(self.found) >= 10_000

    def end(self, tag: str) -> None:
        """All is said in attributes."""

    def data(self, data: str) -> None:
        """All is said in attributes."""

    def close(self) -> None:
        """Nothing is left to do."""


@dataclass(slots=True)
class _Frame:
    """What is being gathered: a paragraph's pieces, a cell's or row's or text box's lines.

    after  text boxes anchored in a paragraph: they follow it
    """

    tag: str
    pieces: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


def _add(frame: _Frame, text: str) -> None:
    """A line more; where two empty ones stand, a third says nothing, and a million would take their room."""
    if text or frame.pieces[-2:] != ["", ""]:
        frame.pieces.append(text)


class _Story:
    """Target of the parser for parts with paragraphs. Text is kept until `limit_chars` are full."""

    def __init__(self, limit_chars: int) -> None:
        self.full = False
        self._left = limit_chars
        self._frames = [_Frame("story")]
        self._skipping = 0
        self._in_text = False

    def text(self) -> str:
        """Lines so far, also of paragraphs that were not closed."""
        while len(self._frames) > 1:
            self._close()
        return "\n".join(self._frames[0].pieces)

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if self._skipping:
            self._skipping += 1
            return
        space, _, name = tag.rpartition("}")
        space += "}"
        if tag == _FALLBACK:
            self._skipping = 1
        elif space in _WORD_SPACES:
            self._start_word(name, space, attributes)
        elif space in _DRAWING_SPACES and name == "p":
            self._frames.append(_Frame(name))
        elif name == "t" and space in (*_MATH_SPACES, *_DRAWING_SPACES):
            self._in_text = True
        elif space in _CHART_SPACES and name == "numCache":
            self._skipping = 1
        elif space in _CHART_SPACES and name == "v":
            self._frames.append(_Frame("p"))
            self._in_text = True

    def end(self, tag: str) -> None:
        if self._skipping:
            self._skipping -= 1
            return
        space, _, name = tag.rpartition("}")
        space += "}"
        closes = (
            (space in _WORD_SPACES and name in _FRAMES)
            or (space in _DRAWING_SPACES and name == "p")
            or (space in _CHART_SPACES and name == "v")
        )
        if closes and len(self._frames) > 1:
            self._close()
        if name in ("t", "v"):
            self._in_text = False

    def data(self, data: str) -> None:
        if self._in_text and not self._skipping:
            self._keep(data)

    def close(self) -> None:
        """Nothing is left to do."""

    def _start_word(self, name: str, space: str, attributes: Mapping[str, str]) -> None:
        match name:
            case "t":
                self._in_text = True
            case "tab" if self._frames[-1].tag == "p" and not attributes:
                self._keep("\t")  # with attributes it defines a tab stop
            case "ptab":
                self._keep("\t")
            case "br" | "cr":
                self._keep("\n")
            case "noBreakHyphen":
                self._keep("-")
            case "moveFrom":
                self._skipping = 1
            case "comment":
                author = attributes.get(f"{space}author", "")
                self._frames.append(_Frame(name))
                self._keep(f"{author}:" if author else "")
            case _ if name in _FRAMES:
                self._frames.append(_Frame(name))

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
        match frame.tag:
            case "p":
                _add(outer, "".join(frame.pieces))
                outer.pieces += frame.after
            case "tc":
                outer.pieces.append(" ".join(" ".join(frame.pieces).split()))
            case "tr":
                row = " | ".join(frame.pieces)
                _add(outer, row if row.strip(" |") else "")
            case "txbxContent":
                paragraph = next((each for each in reversed(self._frames) if each.tag == "p"), None)
                (outer.pieces if paragraph is None else paragraph.after).extend(frame.pieces)
            case "comment":
                _add(outer, " ".join(" ".join(frame.pieces).split()))
            case _:
                outer.pieces += frame.pieces


_FRAMES: Final = frozenset({"p", "tbl", "tr", "tc", "txbxContent", "comment"})
