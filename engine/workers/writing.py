"""Open a result in the outbox to be written. For stages whose results come under the same names with each unit.

Rule: never O_TRUNC on a file that is there. ext4 takes it for somebody who replaces a file and fears for it, and writes
all of it to the disk when it is closed (ext4(5), auto_da_alloc): 2 ms for each small result, which is read and emptied
a moment later and would not have met the disk at all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def open_result(path: Path) -> BinaryIO:
    """For writing, from its beginning: a new file, or the one of that name, which clearing.py has mostly emptied."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, 0)
    return open(descriptor, "wb")
