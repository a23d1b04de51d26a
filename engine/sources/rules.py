"""What a source leaves out, by the parameters of its URI: too large, too old, excluded.

Rule: values in, verdict out. Nothing here opens or measures anything.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Final

from engine.reasons import Reason

#: 2 GB: larger than any document people write; virtual machines, films and backups, which hold no text, lie above.
DEFAULT_MAX_SIZE_BYTES: Final = 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which items of a source are not read.

    since           seconds since the epoch, None for no bound; items last changed before are TOO_OLD
    exclude         shell patterns, compared with the path within the source and with the last part of it
    max_size_bytes  larger items are TOO_LARGE
    own_folder      where we keep our own data (absolute): never read, not even listed; "" for nowhere
    """

    since: float | None = None
    exclude: tuple[str, ...] = ()
    max_size_bytes: int = DEFAULT_MAX_SIZE_BYTES
    own_folder: str = ""

    @cached_property
    def _patterns(self) -> re.Pattern[str] | None:
        if not self.exclude:
            return None
        return re.compile("|".join(fnmatch.translate(pattern) for pattern in self.exclude))

    def excluded(self, path: str, name: str) -> bool:
        """True where a pattern matches the path or its last part."""
        patterns = self._patterns
        return patterns is not None and (patterns.match(path) is not None or patterns.match(name) is not None)

    def verdict(self, *, size_bytes: int, modified: float) -> tuple[Reason, str] | None:
        """Why an item of this size and time (seconds since the epoch) is not read, or None."""
        if size_bytes > self.max_size_bytes:
            return Reason.TOO_LARGE, f"{size_bytes:,} bytes; max_size is {self.max_size_bytes:,}"
        if self.since is not None and modified < self.since:
            return Reason.TOO_OLD, f"last changed {_day(modified)}; since is {_day(self.since)}"
        return None


def _day(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()
    except (OverflowError, OSError, ValueError):
        return f"{seconds:.0f} s from 1970"
