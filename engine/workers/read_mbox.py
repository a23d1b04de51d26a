"""An mbox file that lies among other files -> a part for each mail in it.

Rule: a mail at a time. Where one begins is decided by the source `mbox:`; what it says, by whoever reads the part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from engine.document import MAX_PARTS, Document, Page
from engine.errors import SourceUnavailable
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.sources.mailbox import MailSlice, split_mails, unquoted
from engine.workers.reading import Material, Parts
from engine.workers.types import MAIL

_BLOCK_BYTES = 1 << 20


def read(material: Material) -> Document:
    """One page, number 0, that says how many mails there are. Raises StageFailed(DAMAGED)."""
    parts, count = Parts(material), 0
    with open(material.path, "rb") as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        try:
            for count, mail in enumerate(split_mails(descriptor, size, material.name), start=1):
                if count <= MAX_PARTS:
                    parts.add_pieces(f"message {count}.eml", MAIL, unquoted(_pieces(descriptor, mail)))
                material.place.progress(mail.offset + mail.length, size)
        except SourceUnavailable as error:
            raise StageFailed(Reason.DAMAGED, str(error)) from error
    notes = []
    if count > MAX_PARTS:
        notes.append(
            f"partial: {count - MAX_PARTS} of {count} messages were left out; a source `mbox:` of this file reads all"
        )
    text = f"A mailbox of {count} message{'' if count == 1 else 's'}."
    return material.document(pages=[Page(number=0, text=text)], parts=parts.written, notes=notes)


def _pieces(descriptor: int, mail: MailSlice) -> Iterator[bytes]:
    at, end = mail.offset, mail.offset + mail.length
    while at < end and (block := os.pread(descriptor, min(_BLOCK_BYTES, end - at), at)):
        at += len(block)
        yield block
