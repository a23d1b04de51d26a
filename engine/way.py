"""What a run works with: items on their way, the units made of them, and what all of it cost.

Rule: records and what follows from them alone. Nothing here opens a file, asks for a token or remembers another item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePath

from engine.document import chunk_fields
from engine.model import Failure, Fetched, Fingerprint, ItemId, Kind, Stage, UserId
from engine.policy import estimates, spool
from engine.policy.estimates import Estimate
from engine.ports import Attempt, ItemRecord
from indexes import records


@dataclass(slots=True)
class Work:
    """What a run has really done, over all users. CPU seconds are those of workers, for one stage and for all."""

    extracted: int = 0
    ocr_pages: int = 0
    chunked: int = 0
    embedded: int = 0
    published: int = 0
    removed: int = 0
    items_indexed: int = 0
    items_skipped: int = 0
    items_failed: int = 0
    attempts_failed: int = 0
    ocr_cpu_seconds: float = field(default=0.0, compare=False)
    cpu_seconds: float = field(default=0.0, compare=False)


@dataclass(slots=True, eq=False)
class Item:
    """An item on its way: small, whatever the size of its document.

    pages_left  pages that wait for OCR -> their pixels, 0 where unknown
    pages_read  pages that OCR has read in this turn, which took pages_seconds of CPU time
    recognised_bytes  of the text that OCR has read on pages which wait for the others
    has_parts   the ledger knows attachments of it
    chunks      those that are held until they are published; None: they are in the index's database, if there are any
    """

    record: ItemRecord
    content: str = ""
    extract: str = ""
    media_type: str = ""
    kind: Kind = Kind.FILE
    title: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    chars: int = 0
    partial: bool = False
    pages_left: dict[int, int] = field(default_factory=dict)
    pages_read: int = 0
    pages_seconds: float = 0.0
    recognised_bytes: int = 0
    missing: set[bytes] = field(default_factory=set)
    chunks: tuple[records.Chunk, ...] | None = None
    has_parts: bool = False
    extraction: Estimate | None = None

    def cut_as(self, chunking: str) -> str:
        """Of what its chunks were cut, and how: what is kept of them is of use for the same document alone."""
        return f"{chunking}@{self.extract}"

    @property
    def held_chars(self) -> int:
        """Characters of the chunks that are held."""
        return sum(len(chunk.text) for chunk in self.chunks or ())

    @property
    def key(self) -> records.ItemKey:
        return int(self.record.source), str(self.record.key)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """What one order of a unit is about. `size_bytes`: of what it takes along, where no item says it (vectors)."""

    estimate: Estimate
    item: Item | None = None
    page: int = 0
    content: str = ""
    size_bytes: int = 0
    texts: tuple[tuple[bytes, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldFile:
    """A file that lies in a worker's inbox from the unit before: whose it is, what is in it, its name there."""

    user: UserId
    content: str
    name: str
    copy: Fetched

    @property
    def label(self) -> str:
        """No other file has the same."""
        return f"{self.user}/{self.content}"


@dataclass(slots=True, kw_only=True, eq=False)
class Unit:
    """What one lease works on.

    orders  the pieces that went to the worker, in the order of their indices
    held    what its worker has of it already
    """

    number: int
    user: UserId
    stage: Stage
    pieces: tuple[Piece, ...]
    orders: list[Piece] = field(default_factory=list)
    held: HeldFile | None = None

    @property
    def wanted_label(self) -> str:
        """Of the file that it would be spared copying; "": none. Only long scans are read by several units."""
        return f"{self.user}/{self.pieces[0].content}" if self.stage is Stage.OCR else ""

    def held_for(self, piece: Piece) -> HeldFile | None:
        """The file that the piece is read from, where the worker has it."""
        return self.held if self.held is not None and self.held.content == piece.content else None

    @property
    def copied(self) -> Sequence[tuple[int, Piece]]:
        """The pieces whose file is copied, with their indices. Pages of one item are read from one copy of it."""
        if self.stage is Stage.EXTRACT:
            return tuple(enumerate(self.pieces))
        if self.stage is not Stage.OCR:
            return ()
        first = {id(piece.item): (index, piece) for index, piece in reversed(tuple(enumerate(self.pieces)))}
        return tuple(sorted(first.values(), key=lambda entry: entry[0]))

    @property
    def needs_fetch(self) -> bool:
        """Bytes have to be copied before it can begin."""
        return self.stage in (Stage.EXTRACT, Stage.OCR)

    @property
    def need(self) -> spool.Need:
        """What it takes of the disk while it is worked on."""
        return spool.need_of(self.stage, self._size())

    @property
    def outbox_limit(self) -> int:
        """Bytes that an honest worker may have in its outbox."""
        return spool.outbox_limit(self.stage, len(self.pieces), self._size())

    def _size(self) -> int:
        """As policy/spool.py counts it."""
        match self.stage:
            case Stage.EXTRACT | Stage.OCR:
                return sum(piece.item.record.size_bytes for _, piece in self.copied if piece.item is not None)
            case Stage.CHUNK:
                return sum(piece.item.chars for piece in self.pieces if piece.item is not None)
            case Stage.INDEX:
                return sum(piece.size_bytes for piece in self.pieces)
            case _:
                return sum(len(piece.texts) for piece in self.pieces)

    @property
    def seconds(self) -> float:
        """Predicted CPU seconds."""
        return sum(piece.estimate.seconds for piece in self.pieces)

    @property
    def memory_bytes(self) -> int:
        """Predicted peak."""
        return max(piece.estimate.memory_bytes for piece in self.pieces)

    @property
    def ceiling_bytes(self) -> int:
        """What it may take in the end, worker included."""
        return max(piece.estimate.ceiling_bytes for piece in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What an attempt took: when it began (seconds since the epoch), wall and CPU seconds, peak memory."""

    began: float
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


def attempt_of(item: ItemId, stage: Stage, part: str, failure: Failure | None, cost: Cost) -> Attempt:
    """The ledger's record of one try at one stage of an item."""
    return Attempt(
        item=item,
        stage=stage,
        part=part,
        failure=failure,
        started=cost.began,
        seconds=cost.seconds,
        cpu_seconds=cost.cpu_seconds,
        peak_bytes=cost.peak_bytes,
    )


def extraction_of(item: Item) -> Estimate:
    """What extracting the item is expected to take, found out once."""
    if item.extraction is None:
        record = item.record
        is_mail = record.kind is Kind.MAIL
        ending = ending_of(record)
        item.extraction = estimates.extraction(size_bytes=record.size_bytes, ending=ending, is_mail=is_mail)
    return item.extraction


def guess_of(stage: Stage, item: Item) -> Estimate:
    """What extracting the item, or cutting its document, is expected to take before anything was learned."""
    return extraction_of(item) if stage is Stage.EXTRACT else estimates.chunking(chars=item.chars)


def ending_of(record: ItemRecord) -> str:
    """The ending of the name, which may decide how the same bytes are read (".csv"); mails and events have none."""
    match record.kind:
        case Kind.MAIL:
            return ".eml"
        case Kind.EVENT:
            return ".ics"
        case _:
            name = record.path.rpartition("/")[2]
            ending = name.rpartition(".")[2].lower() if "." in name else ""
            return f".{ending}" if ending.isalnum() and ending.isascii() and len(ending) <= 10 else ""


def part_fingerprint(sha256: str, name: str) -> Fingerprint:
    """Of an attachment: its bytes, and the ending that may decide how they are read."""
    return Fingerprint(f"{sha256}{PurePath(name).suffix[:10]}")


def kind_of(media_type: str) -> Kind:
    """What an attachment of this type is to the person who searches."""
    match media_type:
        case "message/rfc822":
            return Kind.MAIL
        case "text/calendar":
            return Kind.EVENT
        case _:
            return Kind.FILE


def title_of(item: Item) -> str:
    """What a hit shows: the document's own title, else the name of the item."""
    return item.title.strip() or item.record.path.rpartition("/")[2] or str(item.record.path)


def date_of(item: Item) -> float | None:
    """Seconds since the epoch: what the content says, else when the item was last changed."""
    for name in ("date", "start"):
        try:
            # RFC 9557 puts the name of the time zone behind the offset, in brackets.
            moment = datetime.fromisoformat(item.facts.get(name, "").partition("[")[0])
        except ValueError:
            continue
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return item.record.modified or None


def chunk_of(value: object) -> records.Chunk:
    """A chunk as a worker wrote it, as the index takes it. Raises MalformedMessage."""
    kind, text, keywords, page = chunk_fields(value)
    return records.Chunk(kind=kind, text=text, keywords=keywords, page=page)


def prefix_of(unit: Unit, index: int) -> str:
    """What the names of results of this order begin with. Those of many small files come again (clearing.py)."""
    return f"again{index}" if unit.stage is Stage.EXTRACT else f"u{unit.number}-{index}"


def file_name_of(unit: Unit, index: int) -> str:
    """The name of the order's file in the inbox."""
    return f"{prefix_of(unit, index)}.bytes"
