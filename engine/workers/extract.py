"""Stage `extract`: the bytes of an item -> a document as JSON, its chunks, and the parts found inside it.

Rule: a thin dispatcher. The content says which reader is loaded, the name is a hint; one file per kind of reader
(read_*.py), imported when the first item of its kind comes, so that a worker of texts never loads a PDF library.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import re
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO, Final, Protocol, cast

from engine.document import MAX_TEXT_BYTES, Document
from engine.model import Kind
from engine.ports import Place, StageFailed
from engine.reasons import Reason
from engine.workers import types
from engine.workers.cutting import Cutter
from engine.workers.reading import Material
from engine.workers.writing import open_result

_TEXTS: Final = frozenset(
    {types.PLAIN, types.CSV, types.TSV, types.XML, types.HTML, types.JSON, "text/markdown", "image/svg+xml"}
)
_READERS: Final = {
    types.PDF: "read_pdf",
    types.DOCX: "read_docx",
    types.MAIL: "read_mail",
    types.MBOX: "read_mbox",
    types.CALENDAR: "read_event",
}
#: What programs open that unpack all of it. Other ZIP files may hold what they like: nobody looks inside.
_PACKED_DOCUMENTS: Final = (
    "application/vnd.openxmlformats-",
    "application/vnd.oasis.opendocument.",
    "application/epub+zip",
)
#: A package whose folders have other names than those that programs give them: it says itself what its main part is.
_PACKAGE: Final = "application/vnd.openxmlformats-package"
_WORD_PART: Final = re.compile(
    rb"wordprocessingml\.(document|template)\.main|ms-word\.(document|template)\.macroEnabled"
)
#: Some hundred bytes for each part.
_CONTENT_TYPES_BYTES: Final = 1 << 20


class _Reader(Protocol):
    def read(self, material: Material) -> Document: ...


#: Longer documents, as they are written, are cut by a unit of their own, whose memory and time are predicted by their
#: length. Bytes, not characters: a letter of Chinese takes three, and is as much work.
CUT_BYTES: Final = 2_000_000


def open_stage(options: Mapping[str, Any]) -> ExtractStage:
    """Options: {"ocr": pages without text may be sent to OCR, "max_text_bytes": of one document (optional),
    "cut": as those of the stage `chunk`, where documents are to be cut at once (optional),
    "later": OCR is off in this run, so that pages without text are named and not waited for (optional)}."""
    limit = int(options.get("max_text_bytes") or MAX_TEXT_BYTES)
    cut = options.get("cut")
    return ExtractStage(
        ocr=bool(options.get("ocr", True)),
        max_text_bytes=min(limit, MAX_TEXT_BYTES),
        cutter=Cutter(str(cut["measure"]), int(cut["max_tokens"])) if cut else None,
        later=bool(options.get("later")),
    )


class ExtractStage:
    """Nothing is loaded until an item asks for it."""

    def __init__(self, *, ocr: bool, max_text_bytes: int, cutter: Cutter | None, later: bool) -> None:
        self._ocr = ocr
        self._max_text_bytes = max_text_bytes
        self._cutter, self._later = cutter, later

    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        """Order: {"file": name in the inbox, "name": the item's own path, "kind": "file" | "mail" | "event" as the
        source says, "prefix": of the names written, "journal": write down each page as it is read,
        "skip": [numbers of pages not to be touched]}; the last two are optional.

        Writes `<prefix>.document.json` (Document.to_json), parts as `<prefix>.part<N>`, the journal, and, when it is
        whole and not too long, its chunks (Cutter.cut). Returns {"document": its name, "pages": how many, "needs_ocr":
        [numbers of pages], "media_type": as found}, and what Cutter.cut returns. Raises StageFailed.
        """
        path = place.inbox / str(order["file"])
        name, prefix = str(order.get("name") or ""), str(order["prefix"])
        kind = Kind(order.get("kind") or Kind.FILE)
        with ExitStack() as held:
            file = held.enter_context(open(path, "rb"))
            found, archive = _type_in(file, name, held)
            media_type = _as_the_source_says(kind, found)
            if kind is Kind.FILE and media_type == types.MAIL and _is_mailbox(file, name):
                media_type = types.MBOX
            reader = _reader_for(media_type, name)
            material = Material(
                path=path,
                name=name,
                media_type=media_type,
                kind=kind,
                prefix=prefix,
                ocr=self._ocr,
                later=self._later,
                max_text_bytes=self._max_text_bytes,
                place=place,
                archive=archive,
                journal=bool(order.get("journal")),
                skip=frozenset(order.get("skip") or ()),
            )
            document = _noted(reader.read(material), name)
        written = f"{prefix}.document.json"
        data = json.dumps(document.to_json(), ensure_ascii=False, separators=(",", ":")).encode()
        with open_result(place.outbox / written) as out:
            out.write(data)
        needs_ocr = [page.number for page in document.pages if page.needs_ocr]
        result = {
            "document": written,
            "pages": len(document.pages),
            "needs_ocr": needs_ocr,
            "media_type": document.media_type,
        }
        whole = self._later or not needs_ocr
        if self._cutter is not None and whole and len(data) <= CUT_BYTES:
            result |= self._cutter.cut(document, place, prefix)
        return result


def _type_in(file: BinaryIO, name: str, held: ExitStack) -> tuple[str, zipfile.ZipFile | None]:
    """(type, the ZIP container that it is, open for as long as `held`)."""
    head = file.read(types.HEAD_BYTES)
    if not head:
        raise StageFailed(Reason.EMPTY, "the file has 0 bytes")
    media_type = types.media_type_of(head, name)
    if media_type == types.ZIP:
        return _zip_type(file, held)
    if media_type == types.OLE:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return types.ole_media_type(types.ole_names(data)), None
    return media_type, None


def _zip_type(file: BinaryIO, held: ExitStack) -> tuple[str, zipfile.ZipFile]:
    """Raises StageFailed: damaged; bomb, also for documents that are not read: whoever opens them should know."""
    from engine.workers.archive import open_archive, refuse_bombs

    archive = held.enter_context(open_archive(file))
    media_type = types.zip_media_type(frozenset(archive.namelist()), _beginning(archive, "mimetype", 100))
    if media_type == _PACKAGE and _WORD_PART.search(_beginning(archive, "[Content_Types].xml", _CONTENT_TYPES_BYTES)):
        media_type = types.DOCX
    if media_type.startswith(_PACKED_DOCUMENTS):
        refuse_bombs(archive)
    return media_type, archive


def _is_mailbox(file: BinaryIO, name: str) -> bool:
    """Whether a file that begins as a mail is an mbox: it is called so, or a second mail follows somewhere."""
    file.seek(0)
    if not types.may_be_mailbox(file.read(types.HEAD_BYTES)):
        return False
    if types.named_type(name) == types.MBOX:
        return True
    from engine.sources.mailbox import split_mails

    size = os.fstat(file.fileno()).st_size
    mails = split_mails(file.fileno(), size, name or "the file")
    return next(mails, None) is not None and next(mails, None) is not None


def _beginning(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    """So many bytes of an entry, none where it cannot be read."""
    from engine.workers.archive import READ_METHODS

    try:
        info = archive.getinfo(name)
        if info.compress_type not in READ_METHODS:
            return b""
        with archive.open(info) as entry:
            return entry.read(size)
    except (KeyError, OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, EOFError):
        return b""


def _as_the_source_says(kind: Kind, media_type: str) -> str:
    """A source's word counts between texts: it knows mails and events, even those that do not look like any."""
    if media_type in _TEXTS or media_type in (types.MAIL, types.CALENDAR):
        return {Kind.MAIL: types.MAIL, Kind.EVENT: types.CALENDAR, Kind.FILE: media_type}[kind]
    return media_type


def _reader_for(media_type: str, name: str) -> _Reader:
    """The module that reads the type. Raises StageFailed: unsupported_type, unknown_type, encrypted."""
    if media_type == types.UNKNOWN:
        said = types.named_type(name)
        hint = f"the name says {said}, but the content is not" if said else "the name says nothing either"
        raise StageFailed(Reason.UNKNOWN_TYPE, f"binary content of no known type; {hint}")
    if media_type == types.ENCRYPTED_OFFICE:
        raise StageFailed(Reason.ENCRYPTED, "an Office file that opens only with a password")
    if media_type in types.IMAGES:
        module = "read_image"
    elif media_type in _TEXTS:
        module = "read_text"
    elif media_type in _READERS:
        module = _READERS[media_type]
    else:
        lie = f" (the name says {types.named_type(name)})" if types.name_lies(name, media_type) else ""
        raise StageFailed(Reason.UNSUPPORTED_TYPE, media_type + lie)
    return cast(_Reader, importlib.import_module(f"engine.workers.{module}"))


def _noted(document: Document, name: str) -> Document:
    if not types.name_lies(name, document.media_type):
        return document
    note = f"the name says {types.named_type(name)}, the content is {document.media_type}"
    return Document(
        kind=document.kind,
        media_type=document.media_type,
        title=document.title,
        pages=document.pages,
        parts=document.parts,
        facts=document.facts,
        notes=(note, *document.notes),
    )
