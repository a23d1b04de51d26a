"""The bytes of attachments that wait for their own turn, in the user's own folder.

Rule: one file for each part, named by the item it was found in and its number; removed when the part is settled. All
of it may vanish at any time: the mail is then read again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from engine.document import MAX_PART_BYTES
from engine.model import Fetched
from engine.sources import beneath
from engine.workers import results


class PartStore:
    """A folder of parts. Made when the first part comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, outbox: Path, file: str, most: int = MAX_PART_BYTES) -> tuple[str, int]:
        """Take a part of at most so many bytes from a worker's outbox: (sha256 in hex, bytes).

        Raises MalformedMessage.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        # In one step: a thread may be copying the part at this moment, and half of it would pass for the whole.
        draft = self._folder / f"{name}.draft"
        taken = results.take_file(outbox, file, draft, min(most, MAX_PART_BYTES))
        draft.replace(self._folder / name)
        return taken

    def fetch(self, name: str, target: Path) -> Fetched:
        """Copy a part. Raises FetchFailed: vanished when it is not there any more."""
        path = str(self._folder / Path(name).name)
        with beneath.open_single_for_fetch(path) as descriptor:
            # Written once and never again: its size is all that could give a change away.
            fetched = beneath.copy_file(
                descriptor, target, name, lambda status: str(status.st_size), max_size_bytes=MAX_PART_BYTES
            )
        return Fetched(fingerprint=type(fetched.fingerprint)(""), size_bytes=fetched.size_bytes, sha256=fetched.sha256)

    def holds(self, name: str) -> bool:
        """The part lies here."""
        return (self._folder / Path(name).name).is_file()

    def remove(self, name: str) -> None:
        """The part is settled."""
        (self._folder / Path(name).name).unlink(missing_ok=True)

    def clear(self) -> None:
        """No part waits any more."""
        shutil.rmtree(self._folder, ignore_errors=True)
