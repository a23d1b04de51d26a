"""What a worker has read of an item so far, page by page in its outbox: one that dies loses the page that it was at.

Rule: a line for each page, and each line in one write(2) of its own as soon as the page is done: nothing is held back
that a signal could lose. Bounded. Taken in by engine/journal.py, which trusts none of it. Written only for items that
have cost a worker before: it takes two or three percent of the time that a text PDF takes.

    {"document": title, facts and so on, without pages, "pages": how many there are}
    {page 1}
    {page 2}
    ...
    {"full": true}       there was no room for more
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from typing import Any, Final

from engine.document import Document, Page
from engine.workers.reading import Material

#: Bytes of one journal: ten thousand pages of close print. A longer text is data; it is also held twice on the disk,
#: and whole in the memory of whoever takes it in.
MAX_JOURNAL_BYTES: Final = 32 << 20

#: Made once: `json.dumps` with words of its own makes one for each page.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def name_of(prefix: str) -> str:
    """What the journal of an order is called in the outbox."""
    return f"{prefix}.journal"


class Journal:
    """Of one item, while it is read."""

    def __init__(self, material: Material, head: Document, pages: int) -> None:
        """head: what is known of the document before its pages; pages: how many there will be."""
        self._file = (material.place.outbox / name_of(material.prefix)).open("wb", buffering=0)
        self._left = MAX_JOURNAL_BYTES
        self._write({"document": head.to_json(), "pages": pages})

    def add(self, page: Page) -> None:
        """The next page is done, or was left out. Raises OSError where the disk is full."""
        self._write(page.to_json())

    def close(self) -> None:
        """The document is written, or will not be."""
        self._file.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self._left <= 0:
            return
        line = _ENCODER.encode(entry).encode() + b"\n"
        if len(line) > self._left:
            # From here on nobody can tell which page is being read.
            self._left, line = 0, b'{"full":true}\n'
        else:
            self._left -= len(line)
        if self._file.write(line) != len(line):
            # What a full disk has room for; the rest would fail, and with it the document.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
