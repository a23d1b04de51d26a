"""What a stage is tried out on when its first worker has died: files of ours, which every stage that works can do.

Rule: small, and such that the libraries are used that a stage cannot do without: MuPDF to read and render, Tesseract,
the model, FAISS. How a stage does it is nobody's concern; that it lives on is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine.document import Document, Page
from engine.model import Kind, Stage

_TEXT: Final = "The heron stands on the quay."
_PREFIX: Final = "rehearsal"
_DIM: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """One order, and the files that it names: name in the inbox -> bytes."""

    order: Mapping[str, Any]
    files: Mapping[str, bytes]


def rehearsal_of(stage: Stage) -> Rehearsal:
    """An order for a worker of that stage."""
    name = f"{_PREFIX}.bytes"
    order: dict[str, Any] = {"file": name, "prefix": _PREFIX}
    match stage:
        case Stage.EXTRACT:
            return Rehearsal(order={**order, "name": "heron.pdf", "kind": Kind.FILE.value}, files={name: _pdf()})
        case Stage.OCR:
            return Rehearsal(order={**order, "media_type": "application/pdf", "page": 1}, files={name: _pdf()})
        case Stage.CHUNK:
            page = Page(number=1, text=_TEXT)
            document = Document(kind=Kind.FILE, media_type="text/plain", title="Heron", pages=(page,))
            return Rehearsal(order=order, files={name: json.dumps(document.to_json()).encode()})
        case Stage.EMBED:
            return Rehearsal(order=order, files={name: json.dumps([_TEXT]).encode()})
        case _:
            ids = f"{_PREFIX}.ids"
            vectors = struct.pack(f"<{_DIM}f", 1.0, *[0.0] * (_DIM - 1))
            return Rehearsal(order={**order, "ids": ids, "dim": _DIM}, files={name: vectors, ids: struct.pack("<q", 1)})


def _pdf() -> bytes:
    """One page with a line of text, in a font that every reader has."""
    line = f"BT /F 24 Tf 40 100 Td ({_TEXT}) Tj ET".encode()
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 420 200] /Contents 4 0 R "
        b"/Resources << /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(line), line),
    )
    pdf, places = b"%PDF-1.4\n", list[int]()
    for number, body in enumerate(objects, 1):
        places.append(len(pdf))
        pdf += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    count = len(objects) + 1
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (count, len(pdf))
    return pdf + b"xref\n0 %d\n" % count + table + trailer
