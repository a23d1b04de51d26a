"""What the tests of the stages `extract` and `ocr` share: a place of two folders, and files made in them."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from PIL import Image, ImageDraw, ImageFont

from engine.document import Document, Page
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers import extract

OLE_SECTOR = 512


class Desk:
    """A Place in a temporary folder, with an `extract` stage at it. `heard` counts the signs of life;
    `memory_bytes` is what a reader is told that it may still take."""

    def __init__(self, folder: Path, options: Mapping[str, Any] | None = None) -> None:
        self.inbox = folder / "inbox"
        self.outbox = folder / "outbox"
        self.inbox.mkdir(parents=True)
        self.outbox.mkdir()
        self.heard: list[tuple[int, int]] = []
        self.memory_bytes = sys.maxsize
        self.result: Mapping[str, Any] = {}
        self._stage = extract.open_stage(options or {"ocr": True})

    def progress(self, done: int, total: int) -> None:
        self.heard.append((done, total))

    def memory_left(self) -> int:
        return self.memory_bytes

    def read(self, data: bytes, name: str = "", kind: str = "file", **more: Any) -> Document:
        """The document of some bytes, checked as the coordinator would check it."""
        (self.inbox / "1").write_bytes(data)
        self.result = self._stage.run(
            {"file": "1", "name": name, "kind": kind, "prefix": "p7", "journal": True, **more}, self
        )
        assert set(self.result) == {"document", "pages", "needs_ocr", "media_type"}
        json.dumps(self.result)
        document = Document.from_json(json.loads((self.outbox / self.result["document"]).read_bytes()))
        for part in document.parts:
            assert (self.outbox / part.file).stat().st_size == part.size_bytes
        return document

    def refusal(self, data: bytes, name: str = "", kind: str = "file") -> tuple[Reason, str]:
        """(reason, detail) of bytes that cannot be read."""
        with pytest.raises(StageFailed) as raised:
            self.read(data, name, kind)
        failure = raised.value.failure
        assert failure.detail
        assert "\n" not in failure.detail
        assert str(self.inbox) not in failure.detail
        return failure.reason, failure.detail

    def part(self, document: Document, number: int) -> bytes:
        return (self.outbox / document.parts[number].file).read_bytes()


def text_of(document: Document) -> str:
    return "\n".join(page.text for page in document.pages)


def numbers(pages: tuple[Page, ...]) -> list[int]:
    """Of the pages that wait for OCR."""
    return [page.number for page in pages if page.needs_ocr]


def drawing(text: str, width: int = 900, height: int = 200, mode: str = "L") -> Image.Image:
    """A white picture with black letters of about 12 points at 200 dpi."""
    image = Image.new(mode, (width, height), "white")
    ImageDraw.Draw(image).multiline_text((40, 40), text, fill="black", font=ImageFont.load_default(34), spacing=16)
    return image


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def pdf_of(*pages: str | bytes | None, **saving: Any) -> bytes:
    """A PDF with a page for each: text, a picture that covers the page, or None for a blank one."""
    pdf = pymupdf.open()
    for content in pages:
        page = pdf.new_page(width=400, height=500)
        if isinstance(content, str):
            page.insert_textbox(pymupdf.Rect(20, 20, 380, 480), content, fontsize=11)
        elif content is not None:
            page.insert_image(pymupdf.Rect(10, 10, 390, 490), stream=content, keep_proportion=False)
    data: bytes = pdf.tobytes(**saving)
    pdf.close()
    return data


def raw_pdf(*objects: bytes) -> bytes:
    """A PDF of hand-written objects, numbered from 1; the first is the catalog."""
    out, offsets = b"%PDF-1.4\n", []
    for number, data in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n" % number + data + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    end = b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(out))
    return out + head + table + end


def stream_of(data: bytes) -> bytes:
    return b"<</Length %d>>stream\n" % len(data) + data + b"\nendstream"


def zip_of(entries: Mapping[str, bytes | str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


def ole_of(*names: str) -> bytes:
    """An OLE2 file that has nothing but a header, one FAT sector and a directory with these names."""
    header = bytearray(OLE_SECTOR)
    header[:8] = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
    header[30:32] = (9).to_bytes(2, "little")
    header[48:52] = (1).to_bytes(4, "little")
    header[76:512] = b"\xff" * 436
    header[76:80] = (0).to_bytes(4, "little")
    table = bytearray(b"\xff" * OLE_SECTOR)
    table[0:4] = (0xFFFFFFFD).to_bytes(4, "little")
    table[4:8] = (0xFFFFFFFE).to_bytes(4, "little")
    directory = bytearray(OLE_SECTOR)
    for at, name in zip(range(0, OLE_SECTOR, 128), names, strict=False):
        raw = name.encode("utf-16-le") + b"\0\0"
        directory[at : at + len(raw)] = raw
        directory[at + 64 : at + 66] = len(raw).to_bytes(2, "little")
        directory[at + 66] = 2
    return bytes(header + table + directory)
