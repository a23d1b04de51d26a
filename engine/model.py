"""The nouns of Nightmill: ids, enums and frozen records that every layer may name.

Rule: values only. Nothing here does anything, opens anything or knows where it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from engine.reasons import Reason

UserId = NewType("UserId", str)
SourceId = NewType("SourceId", int)
ItemId = NewType("ItemId", int)
RunId = NewType("RunId", int)
LeaseId = NewType("LeaseId", str)
#: Names an item within its source for ever: survives re-listing, never shown to people.
ItemKey = NewType("ItemKey", str)
#: Equal fingerprints mean "same as last time".
Fingerprint = NewType("Fingerprint", str)


class Lane(StrEnum):
    """The two classes of work. Interactive means that somebody is waiting."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class TokenKind(StrEnum):
    """What a token lets its holder use. All kinds count against the user's and the global budget."""

    CPU = "cpu"
    API = "api"
    DOWNLOAD = "download"


class Stage(StrEnum):
    """The steps of one item's way. Each has its own version (engine/versions.py)."""

    FETCH = "fetch"
    EXTRACT = "extract"
    OCR = "ocr"
    CHUNK = "chunk"
    EMBED = "embed"
    INDEX = "index"


class ItemState(StrEnum):
    """Where an item stands. Legal moves between these: engine/policy/lifecycle.py."""

    PENDING = "pending"
    INDEXED = "indexed"
    SKIPPED = "skipped"
    FAILED = "failed"
    QUARANTINED = "quarantined"


class Kind(StrEnum):
    """What an item is to the person who searches."""

    FILE = "file"
    MAIL = "mail"
    EVENT = "event"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One item as a source lists it. The coordinator knows nothing else of it until a worker has read it.

    key          stable name within the source (text without surrogates)
    fingerprint  changes when the content may have changed
    path         for people: what the hit list shows (undecodable bytes replaced)
    size_bytes   size of the raw bytes, 0 where unknown
    modified     seconds since the epoch, for "newest first"; 0.0 where unknown
    kind         what the source says it is; a file may turn out to be a mail
    locator      what `Source.fetch` needs to find the bytes again; JSON-able, private to the source
    skip         set where the source already knows that the item is not read, and `skip_detail` says more
    """

    key: ItemKey
    fingerprint: Fingerprint
    path: str
    size_bytes: int = 0
    modified: float = 0.0
    kind: Kind = Kind.FILE
    locator: Mapping[str, str | int | list[int]] = field(default_factory=dict)
    skip: Reason | None = None
    skip_detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What arrived in the spool: the fingerprint of the very bytes that were copied, their number and sha256 (hex)."""

    fingerprint: Fingerprint
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an item's attempt ended badly. A value, so that it can cross process boundaries and be stored.

    reason   code from the closed catalogue
    detail   one line for people, with what was found; never longer than 2,000 characters
    signal   the signal that ended the worker, 0 if none did
    """

    reason: Reason
    detail: str = ""
    signal: int = 0


@dataclass(frozen=True, slots=True)
class PeakKey:
    """Which units are alike in what memory they take (policy/peaks.py).

    kind    a word from the closed list of policy/estimates.py, never what a name or a file says
    octave  of what predicts their size: the bits that the number takes
    """

    stage: Stage
    kind: str
    octave: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakCount:
    """What is in one bucket of observed peaks, or is to be added to it.

    weight   of its samples together: newer ones weigh more; decides percentiles
    samples  how many there ever were
    """

    key: PeakKey
    bucket: int
    weight: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Top-level items of a user (or of all) by state; `attachments` are counted apart, as parts of their mails.

    Invariant: found == indexed + skipped + failed + pending.
    """

    found: int = 0
    indexed: int = 0
    skipped: int = 0
    failed: int = 0
    pending: int = 0
    partial: int = 0
    attachments: int = 0
    attachments_indexed: int = 0
    attachments_skipped: int = 0
    attachments_failed: int = 0
    attachments_pending: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFailure:
    """What stands in the place of a result of process_parallel: the item at `index` raised, or cost its worker's life.

    kind       the exception's class name; "WorkerDied" when the worker process ended under it
    message    what the exception says, or the signal or exit code that the worker ended with
    traceback  as Python prints it; "" for a worker that died
    """

    index: int
    kind: str
    message: str
    traceback: str = ""
