"""What a reader is given and what it gives back: the values shared by all kinds of the stage `extract`.

Rule: bounded and clean. Text that leaves a reader can be stored as UTF-8, has no control characters but line breaks
and tabs, and is never cut without a note.

    extract.py -- Material --> read_pdf | read_docx | read_image | read_text | read_mail | read_mbox | read_event
               <-- Document --
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from engine.document import MAX_FIELD_CHARS, MAX_PARTS, Document, Page, Part, cut_text, parts_limit, text_bytes
from engine.model import Kind
from engine.ports import Place, StageFailed
from engine.reasons import Reason
from engine.sizes import format_size
from engine.workers.writing import open_result

#: A title longer than this is a paragraph.
TITLE_CHARS: Final = 500
#: Resolution that pages are rendered at, and that pictures which say they are finer are reduced to. At 300 dpi noisy
#: pages take twice as long, and the errors are as many (48 pages: 2.66 % of the characters there, 2.65 % here).
PAGE_DPI: Final = 200
#: Pixels of one sheet. A4 at 200 dpi has 3.9 million, A3 at 300 dpi 17 million; giant pages get a lower resolution.
MAX_SHEET_PIXELS: Final = 20_000_000
#: Memory that decoding may leave to whatever comes after it: the document, its JSON, an error to report.
_SPARE_BYTES: Final = 8 << 20
#: Notes of one document; what more there is to say repeats itself.
MAX_NOTES: Final = 50

#: And soft hyphens (U+00AD): nobody sees one within a line, and nobody who searches for the word types it.
_CONTROL: Final[dict[int, str | None]] = {
    **dict.fromkeys(code for code in (*range(0x20), *range(0x7F, 0xA0), 0xAD) if code not in (0x09, 0x0A)),
    **dict.fromkeys((0x0B, 0x0C, 0x85), "\n"),
}
#: The same in UTF-8: those of one byte, and those of two.
_CONTROL_BYTES: Final = bytes(code for code in (*range(0x20), 0x7F) if code not in (0x09, 0x0A))
_CONTROL_PAIR = re.compile(rb"\xc2[\x80-\x9f\xad]")
_SURROGATE = re.compile("[\ud800-\udfff]")
#: Characters that are looked through at a time.
_SLICE_CHARS: Final = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """One item to be read.

    path            its bytes, in the worker's inbox
    name            the item's own name or path: a hint, and the title when nothing better is found
    media_type      what the content was found to be
    kind            what the source says it is
    prefix          of every name written into the outbox
    ocr             pages without text may be sent to OCR
    max_text_bytes  of the text of the whole document, as UTF-8
    archive         the item as an open ZIP container within all bounds of archive.py, where it is one
    later           pages that want OCR are to be named, but nobody reads them in this run
    journal         write down each page as it is read (journal.py): the item has cost a worker before
    skip            numbers of pages that are not to be touched: they have cost a worker its life
    """

    path: Path
    name: str
    media_type: str
    kind: Kind
    prefix: str
    ocr: bool
    max_text_bytes: int
    place: Place
    archive: zipfile.ZipFile | None = None
    later: bool = False
    journal: bool = False
    skip: frozenset[int] = frozenset()

    @property
    def is_looked_at(self) -> bool:
        """Somebody will read the pages that want OCR."""
        return self.ocr and not self.later

    def document(
        self,
        *,
        title: str = "",
        kind: Kind = Kind.FILE,
        pages: list[Page] | None = None,
        parts: list[Part] | None = None,
        facts: dict[str, str] | None = None,
        notes: list[str] | None = None,
    ) -> Document:
        """A document within all limits: titles and facts cut to one line, facts without value left out."""
        told = {name: line(value, MAX_FIELD_CHARS) for name, value in (facts or {}).items()}
        return Document(
            kind=kind,
            media_type=self.media_type,
            title=line(title, TITLE_CHARS) or line(_last_of(self.name), TITLE_CHARS) or "untitled",
            pages=tuple(pages or ()),
            parts=tuple(parts or ()),
            facts={name: value for name, value in told.items() if value},
            notes=tuple(line(note, MAX_FIELD_CHARS) for note in (notes or [])[:MAX_NOTES]),
        )


@dataclass(slots=True)
class Budget:
    """Bytes of UTF-8 that the text of the document may still take, which is as many characters at most. What was cut
    off is never silently so: it ends the document, and `notes` says it."""

    limit: int
    left: int = field(init=False)
    cut: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.left = self.limit

    def take(self, text: str) -> str:
        """As much of the cleaned text as fits."""
        text = clean(text)
        kept = cut_text(text, self.left)
        if len(kept) < len(text):
            # A letter that did not fit is no reason to take the next that does.
            self.cut, self.left = True, 0
        else:
            self.left -= text_bytes(kept)
        return kept

    def joined(self, texts: Iterable[str]) -> str:
        """Texts that were taken, with an empty line between each two; for these lines there is no more room than for
        anything else."""
        text = "\n\n".join(filter(None, texts))
        kept = cut_text(text, self.limit)
        self.cut = self.cut or len(kept) < len(text)
        return kept

    def notes(self, of: str = "") -> list[str]:
        """The note that the text was cut, if it was. of: how much there is, as in "the file has 31 MB"."""
        return [f"partial: the text was cut at {format_size(self.limit)}{of and f'; {of}'}"] if self.cut else []


@dataclass(slots=True)
class Parts:
    """Writes what was found inside an item into the outbox, as `<prefix>.part<N>`, at most MAX_PARTS of them."""

    material: Material
    written: list[Part] = field(default_factory=list)
    left_out: int = 0
    _room_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self._room_bytes = parts_limit(os.stat(self.material.path).st_size)

    def is_full(self) -> bool:
        """Whether nothing more is taken, so that it need not be unpacked first."""
        return len(self.written) >= MAX_PARTS or self._room_bytes <= 0

    def add(self, name: str, media_type: str, data: bytes) -> None:
        """`name` may be any text; one without is called "part N". A part may be empty: it is an item all the same."""
        self.add_pieces(name, media_type, [data])

    def add_pieces(self, name: str, media_type: str, pieces: Iterable[bytes]) -> None:
        """The same for bytes that are not in memory all at once."""
        if self.is_full():
            self.left_out += 1
            return
        number, size = len(self.written) + 1, 0
        file = f"{self.material.prefix}.part{number}"
        path = self.material.place.outbox / file
        with open_result(path) as out:
            for piece in pieces:
                size += len(piece)
                if size > self._room_bytes:
                    break
                out.write(piece)
        self._room_bytes -= size
        if self._room_bytes < 0:
            # What is left of the room is no measure for parts that come later: which fit would depend on their order.
            path.unlink()
            self.left_out += 1
            return
        shown = line(base_name(name), 255) or f"part {number}"
        kind = line(media_type, 255) or "application/octet-stream"
        self.written.append(Part(name=shown, media_type=kind, file=file, size_bytes=size))

    def notes(self) -> list[str]:
        """The note that some were left out, if they were."""
        return [f"{self.left_out} parts were left out: too many, too large or damaged"] if self.left_out else []


def sheet_pixels(width_points: float, height_points: float) -> int:
    """Of a page as it is rendered for OCR. It is measured in points of 1/72 inch, and may say any numbers."""
    pixels = abs(width_points * height_points) * (PAGE_DPI / 72) ** 2
    return int(pixels) if pixels < MAX_SHEET_PIXELS else MAX_SHEET_PIXELS


def ask_memory(place: Place, need_bytes: int, what: str) -> None:
    """Raises StageFailed(OUT_OF_MEMORY) when what is about to be done surely takes more memory than is left.

    what: as in "decoding 9000 x 9000 pixels".
    """
    left = place.memory_left()
    if need_bytes + _SPARE_BYTES > left:
        mb = 1_000_000
        message = f"{what} takes about {-(-need_bytes // mb)} MB of memory; {left // mb} MB are left"
        raise StageFailed(Reason.OUT_OF_MEMORY, message)


def clean(text: str) -> str:
    """Text without control characters, soft hyphens, lone surrogates and carriage returns."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if all(_is_clean(text[at : at + _SLICE_CHARS]) for at in range(0, len(text), _SLICE_CHARS)):
        return text
    return _SURROGATE.sub("\ufffd", text).translate(_CONTROL)


def _is_clean(text: str) -> bool:
    """Nearly all text is. In bytes, which takes a fifth of what expressions take over letters."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return False
    return len(data.translate(None, _CONTROL_BYTES)) == len(data) and _CONTROL_PAIR.search(data) is None


def line(text: str, limit: int) -> str:
    """The text on one line of at most `limit` characters; blanks collapsed, "…" where it was cut."""
    flat = " ".join(clean(text[: limit * 4]).split())
    return flat if len(flat) <= limit else flat[: limit - 1].rstrip() + "…"


def told(error: BaseException) -> str:
    """What an error of a library says, on one line, without the path of our own inbox and MuPDF's number of its kind,
    which tell nobody anything."""
    message = re.sub(r"""(?:file )?['"]?/[^'"\s]{2,}['"]?""", "the file", str(error))
    return line(re.sub(r"\bcode=\d+: ", "", message), 500) or type(error).__name__


def _last_of(path: str) -> str:
    """The last component of an item's own path; where items come from, a backslash is a letter like others."""
    return path.rstrip("/").rpartition("/")[2]


def base_name(name: str) -> str:
    """The last component of a path that a sender wrote, in either manner of writing."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].strip()


def tidy(text: str) -> str:
    """Blanks at line ends and more than one empty line in a row taken out."""
    # Begun where blanks begin, and never taken back: a million blanks cost a million steps, not their square.
    text = re.sub(r"(?<![^\S\n])[^\S\n]++\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")
