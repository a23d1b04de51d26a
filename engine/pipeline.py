"""One user's items on their way through the stages, from pending in the ledger to published in the index.

Rule: what a stage has found is committed before the next stage begins, so that a kill repeats no finished unit. Decides
little: what comes next is policy/units.py, what follows a failure policy/retries.py. Starts no worker and asks for no
token; it forms units, turns them into orders, and takes in how each order ended. Assumes no place for the scheduler.

    pending --> extract --> [ocr, page by page] --> chunk --> embed --> ready --> published
       ^           |                                            (texts whose vectors are known go straight on)
       +-- parts --+
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from engine.document import (
    MAX_NOTES,
    MAX_PAGE_CHARS,
    MAX_TEXT_BYTES,
    Document,
    Method,
    Page,
    cut_to_limit,
    low_confidence,
    merge_page,
    text_bytes,
)
from engine.errors import MalformedMessage
from engine.journal import LostPages, Unfinished
from engine.model import (
    Failure,
    Fetched,
    ItemId,
    ItemKey,
    ItemState,
    Listed,
    RunId,
    SourceId,
    Stage,
    UserId,
)
from engine.pages import Paces, PageQueue
from engine.parts import PartStore
from engine.plan import Plan
from engine.policy import estimates, spool, units
from engine.policy.estimates import Estimate
from engine.policy.peaks import Peaks, after_running_out
from engine.policy.retries import OWN_DOING, SPARED_ALLOWED, Verdict, after_failure, keeps_published, worth_another_run
from engine.ports import Attempt, Clock, FetchFailed, ItemRecord, Ledger, Move, Source
from engine.publishing import Publisher
from engine.reasons import CATALOGUE, Reason
from engine.telemetry import ItemSettled, Notice, Reporter
from engine.way import (
    Cost,
    HeldFile,
    Item,
    Piece,
    Unit,
    Work,
    attempt_of,
    chunk_of,
    ending_of,
    file_name_of,
    guess_of,
    kind_of,
    part_fingerprint,
    prefix_of,
    title_of,
)
from engine.workers import results
from indexes import records
from indexes.writer import Writer, text_hash

#: Pending items read from the ledger at a time, and how few may be left before more are read.
WINDOW_ITEMS, WINDOW_LOW = 256, 64
#: Attempts that went well are written down together: a transaction costs the ledger as much as twenty of them.
FLUSH_ATTEMPTS, FLUSH_SECONDS = 128, 1.0
#: Attachments within attachments. Real mails are forwarded three or four times over.
MOST_NESTED = 5
#: Attachments of attachments, of one listed item in one run: a mailbox of a thousand mails with twenty each.
MOST_BENEATH = 20_000
#: Names of attachments are parts of paths, and those of messages.
_PART_NAME_CHARS = 255
#: Separates the key of a mail from the number of its part. No path holds two slashes in a row.
PART_MARK = "//"
#: A name is only a hint to the worker, and a message has to hold those of a whole unit.
_HINT_CHARS = 1000
#: A FAISS file of a million vectors of 384 numbers has 1.5 GB.
_MOST_FAISS_BYTES = 64 << 30


@dataclass(slots=True, kw_only=True, eq=False)
class Kept:
    """What a run remembers of a user from one turn to the next, where neither index nor ledger says it. All is small.

    Failures are counted over the whole run, so that resting gives nobody a further try.

    kills    how often a piece was killed from outside: an item, a page of it, a text
    page_troubles  why the last page of an item was given up
    taken    items that a trial reads
    fresh    items that are read again though they are known
    lost     pages that are not read again, since they have cost workers
    held     parts whose bytes are gone, by the mail that is read again for them
    beneath  how many attachments were found in the attachments of a listed item, and in theirs
    waiting  items of which everything is there, and that can be published only when the rest of the user is there too
    spared   how often a worker was killed before it began the first order of its unit, by what that was about
    """

    kills: dict[Hashable, int] = field(default_factory=dict)
    page_failures: dict[tuple[ItemId, int], int] = field(default_factory=dict)
    page_troubles: dict[ItemId, Failure] = field(default_factory=dict)
    text_failures: dict[bytes, int] = field(default_factory=dict)
    index_failures: int = 0
    lost: LostPages = field(default_factory=LostPages)
    taken: set[ItemId] = field(default_factory=set)
    fresh: set[ItemId] = field(default_factory=set)
    held: dict[ItemId, ItemId] = field(default_factory=dict)
    beneath: dict[tuple[SourceId, str], int] = field(default_factory=dict)
    waiting: set[ItemId] = field(default_factory=set)
    spared: Counter[Hashable] = field(default_factory=Counter)

    def after_failure(self, piece: Hashable, failure: Failure, before: int, *, alone: bool) -> tuple[int, Verdict]:
        """(failed attempts of its own, what becomes of it) of a piece that had so many of its own before this one."""
        if failure.reason is Reason.KILLED:
            self.kills[piece] = kills = self.kills.get(piece, 0) + 1
            return before, after_failure(failure, attempts=kills, alone=alone)
        return before + 1, after_failure(failure, attempts=before + 1, alone=alone)

    def narrowed(self, record: ItemRecord, document: Document) -> Document:
        """What was read, without the attachments that are too many: of all attachments of one listed item together no
        more than MOST_BENEATH have their own taken up. Documents that hold each other a thousand times, five deep,
        would have no end."""
        if record.parent is None or not document.parts:
            return document
        root = (record.source, record.key.partition(PART_MARK)[0])
        known = self.beneath.get(root, 0)
        parts = document.parts[: max(0, MOST_BENEATH - known)]
        self.beneath[root] = known + len(parts)
        if len(parts) == len(document.parts):
            return document
        note = f"partial: after {MOST_BENEATH} attachments of attachments no more of them are read"
        return replace(document, parts=parts, notes=(*document.notes[: MAX_NOTES - 1], note))

    def forget_places(self) -> None:
        """Somebody else has worked on the user meanwhile: where its items stood then says nothing now."""
        self.fresh.clear()
        self.held.clear()
        self.waiting.clear()


class UserPipeline:
    """One user's work for as long as its index is open: a turn. Not for use by two threads, `fetch` aside."""

    def __init__(
        self,
        *,
        user: UserId,
        run: RunId,
        plan: Plan,
        ledger: Ledger,
        writer: Writer,
        sources: Mapping[SourceId, Source],
        removed: Collection[records.ItemKey],
        parts: PartStore,
        clock: Clock,
        reporter: Reporter,
        work: Work,
        kept: Kept,
        peaks: Peaks,
        paces: Paces,
        budget: Callable[[], int],
        slots: Callable[[], int],
        spool_bytes: int,
        has_parts: bool,
        most_items: int | None = None,
        remove_nothing: bool = False,
        leave_parts: bool = False,
        only: Collection[SourceId] = (),
    ) -> None:
        """has_parts: the ledger knows attachments of this user's items. kept: from the turn before.

        peaks, paces: what is known of the memory that units take, and of the time of pages, of all users of the run.
        budget: bytes that all units together may be promised now; 0: no limit. slots: units of the user that may run
        at once. spool_bytes: that files and results of all units together may take.
        only: work on the items of these sources; empty for all.
        most_items, remove_nothing: a trial, which reads so many items and takes none out of the index.
        leave_parts: attachments become no items.
        """
        self.user = user
        self._run, self._plan, self._ledger, self._writer = run, plan, ledger, writer
        self._sources, self._parts, self._clock, self._reporter, self._work = sources, parts, clock, reporter, work
        self._kept, self._has_parts, self._most_items, self._only = kept, has_parts, most_items, only
        self._leave_parts = leave_parts
        # Results may take as much as the files.
        self._most_bytes = min(units.UNIT_BYTES, spool_bytes // 2)
        self._peaks, self._budget, self._slots = peaks, budget, slots
        #: Pending items that a trial does not read.
        self._left_out: set[ItemId] = set()
        self._items: dict[ItemId, Item] = {}
        self._to_extract: deque[Item] = deque()
        self._paces, self._to_ocr = paces, PageQueue(paces)
        self._to_chunk: deque[Item] = deque()
        self._texts: dict[bytes, str] = {}
        self._wanted: dict[bytes, list[Item]] = {}
        self._publisher = Publisher(
            user=user,
            run=run,
            plan=plan,
            ledger=ledger,
            writer=writer,
            removed=removed,
            trial=most_items is not None,
            remove_nothing=remove_nothing,
            now=clock.monotonic(),
        )
        self._attempts: list[Attempt] = []
        self._moves: list[Move] = []
        self._numbers = 0
        self._open_units: set[Unit] = set()
        self._exhausted = False
        self._noted_at = -math.inf
        #: What is to be written down cannot wait.
        self._is_urgent = False
        #: The ledger's counts of this user may have changed. Cleared by whoever has read them.
        self.moved = False
        self._index_asked = False
        self._exported: records.Exported | None = None

    # --- forming units ---

    def next_unit(self) -> Unit | None:
        """The next unit that may start, taken off the queues; None: there is nothing to begin now."""
        self._refill()
        stage = units.next_stage(self._backlog())
        if stage is None:
            return self._index_unit() if self._is_through() else None
        match stage:
            case Stage.EXTRACT:
                pieces = self._take(self._to_extract, stage)
            case Stage.OCR:
                pieces = self._take_pages()
            case Stage.CHUNK:
                pieces = self._take(self._to_chunk, stage)
            case _:
                pieces = self._take_texts()
        # Without pieces the queue held only items that are no longer on their way: look again.
        return self._unit(stage, pieces) if pieces else self.next_unit()

    def put_back(self, unit: Unit) -> None:
        """The unit will not be done now (nobody lent a token): its pieces are queued again."""
        self._open_units.discard(unit)
        for piece in reversed(unit.pieces):
            self._requeue(unit.stage, piece)
        if unit.stage is Stage.INDEX:
            self._index_asked = False

    def refuse(self, unit: Unit, failure: Failure) -> None:
        """The unit can never start, as the disk is now; the next run may fare better."""
        self._open_units.discard(unit)
        for piece in unit.pieces:
            if unit.stage is Stage.INDEX:
                self._failed(unit, piece, failure, Cost(began=self._clock.now()))
            elif piece.item is not None and self._is_live(piece.item):
                self._fetch_failed(piece.item, failure)

    @property
    def idle(self) -> bool:
        """Nothing is left to do or to wait for."""
        return self._is_through() and self._index_asked and not self._open_units

    def _is_through(self) -> bool:
        """Every item that could be taken up has been settled and published."""
        return self._exhausted and not self._items and not self._open_units and not self._publisher.has_removals

    def _backlog(self) -> units.Backlog:
        return units.Backlog(
            extract=len(self._to_extract),
            ocr=len(self._to_ocr),
            chunk=len(self._to_chunk),
            texts=len(self._texts),
            on_the_way=len(self._items) - len(self._to_extract) - len(self._publisher.ready),
            coming=sum(unit.stage in (Stage.EXTRACT, Stage.OCR, Stage.CHUNK) for unit in self._open_units),
        )

    def _refill(self) -> None:
        """Take up pending items, and put those of whom something is known already where they belong."""
        # What is known already goes straight on, past this queue: it counts too, or all pending ones come at once.
        while (
            not self._exhausted
            and len(self._to_extract) < WINDOW_LOW
            and len(self._items) - len(self._publisher.ready) < units.MOST_ON_THE_WAY + WINDOW_LOW
        ):
            # What has been settled since the last time must not be taken up again.
            self.flush()
            waiting = self._kept.waiting
            beyond = [*self._items, *self._kept.held, *self._left_out, *waiting]
            found = self._ledger.pending(self.user, limit=WINDOW_ITEMS, beyond=beyond, sources=self._only)
            self._exhausted = len(found) < WINDOW_ITEMS and not waiting
            if len(found) < WINDOW_ITEMS:
                # What waits for the rest of the user is taken up last, and once: not with every turn.
                waiting.clear()
            with_parts = self._ledger.with_parts([record.id for record in found]) if self._has_parts else ()
            for record in found:
                if not self._may_take(record):
                    self._left_out.add(record.id)
                    continue
                item = Item(record=record, kind=record.kind, has_parts=record.id in with_parts)
                self._items[record.id] = item
                # Asked for again since it was to leave the index: it does when it fails again.
                self._publisher.keep(item.key)
                self._resume(item)

    def _may_take(self, record: ItemRecord) -> bool:
        """A trial stops after so many items; their attachments belong to them."""
        if self._most_items is None or record.parent is not None:
            return True
        taken = self._kept.taken
        if len(taken) < self._most_items:
            taken.add(record.id)
        return record.id in taken

    def _is_live(self, item: Item | None) -> bool:
        """The item is still on its way, and this is it: it was not settled, taken out, or taken up anew."""
        return item is None or self._items.get(item.record.id) is item

    def _resume(self, item: Item) -> None:
        read = self._writer.find_read(*item.key)
        if read is None or read.fingerprint != item.record.fingerprint or item.record.id in self._kept.fresh:
            self._to_extract.append(item)
            return
        item.content = read.content
        document = self._known_document(item)
        if document is None or (document.parts and not item.has_parts):
            # Not known, or its attachments are not (a ledger that was lost): read again.
            self._kept.fresh.add(item.record.id)
            self._to_extract.append(item)
        elif read.chunks is not None and read.chunking == item.cut_as(self._plan.chunking) and not item.pages_left:
            self._have_chunks(item, read.chunks, kept=True)
        else:
            self._go_on(item)

    def _known_document(self, item: Item) -> Document | None:
        """What was found in these bytes before, if it is up to date; the item's own fields are filled in from it."""
        for version in self._plan.extracts:
            known = self._writer.find_document(item.content, version)
            if known is not None:
                try:
                    document = Document.from_json(json.loads(known))
                except MalformedMessage:
                    # Kept by a release that was content with less: read again.
                    return None
                self._describe(item, document, version)
                return document
        return None

    def _describe(self, item: Item, document: Document, version: str) -> None:
        item.extract, item.media_type, item.kind = version, document.media_type, document.kind
        item.title, item.facts = document.title, document.facts
        item.chars = sum(len(page.text) for page in document.pages)
        wanting = {page.number: page.pixels for page in document.pages if page.needs_ocr}
        unread = bool(wanting) and not self._plan.ocr
        known = _recognised_pages(self._writer, item.content) if wanting and not unread else {}
        item.pages_left = {} if unread else {name: pixels for name, pixels in wanting.items() if name not in known}
        item.recognised_bytes = sum(text_bytes(page.text) for page in known.values())
        item.partial = unread or any(note.startswith("partial:") for note in document.notes)

    def _unit(self, stage: Stage, pieces: Sequence[Piece]) -> Unit:
        self._numbers += 1
        unit = Unit(number=self._numbers, user=self.user, stage=stage, pieces=tuple(pieces))
        self._open_units.add(unit)
        return unit

    def _take(self, queue: deque[Item], stage: Stage) -> list[Piece]:
        """The next orders of a queue; an item that was suspect once goes alone, one that can never be done fails."""
        while queue and not (self._is_live(queue[0]) and self._can_fit(queue[0], stage, guess_of(stage, queue[0]))):
            queue.popleft()
        if not queue:
            return []
        guesses = [guess_of(stage, item) for item in _first(queue, units.UNIT_ORDERS[stage])]
        count = 1 if queue[0].record.alone else units.take(stage, map(self._paces.expect, guesses))
        pieces: list[Piece] = []
        size = 0
        for guess in guesses[:count]:
            alone = queue[0].record.alone
            size += queue[0].record.size_bytes if stage is Stage.EXTRACT else 0
            if pieces and (alone or size > self._most_bytes or self._refusal(guess) is not None):
                break
            item = queue.popleft()
            if self._is_live(item):
                fitted = replace(self._fitted(guess, alone=alone), seconds=self._paces.expect(guess))
                pieces.append(Piece(item=item, estimate=fitted))
        return pieces

    def _fitted(self, estimate: Estimate, *, alone: bool = False) -> Estimate:
        return estimates.fitted(estimate, peaks=self._peaks, budget_bytes=self._budget(), alone=alone)

    def _refusal(self, estimate: Estimate) -> Failure | None:
        return estimates.refusal(estimate, self._budget())

    def _can_fit(self, item: Item, stage: Stage, estimate: Estimate) -> bool:
        """False: no machine with this budget can do it, and the item has failed, before anything was tried."""
        failure = self._refusal(estimate)
        if failure is None:
            return True
        self._attempts.append(attempt_of(item.record.id, stage, "", failure, Cost(began=self._clock.now())))
        self._settle(item, ItemState.FAILED, failure)
        return False

    def _take_pages(self) -> list[Piece]:
        """Pages of one item, or of several small ones."""
        pages = self._to_ocr.take(slots=self._slots(), is_live=self._is_live, is_suspect=self._is_suspect)
        return [self._piece_of(item, page) for item, page in pages]

    def _is_suspect(self, item: Item, page: int) -> bool:
        return item.record.alone or (item.record.id, page) in self._kept.page_failures

    def _piece_of(self, item: Item, page: int) -> Piece:
        guess = estimates.ocr_page(media_type=item.media_type, pixels=item.pages_left.get(page, 0))
        estimate = self._fitted(guess, alone=self._is_suspect(item, page))
        estimate = replace(estimate, seconds=self._to_ocr.expect(item))
        return Piece(item=item, page=page, content=item.content, estimate=estimate)

    def _take_texts(self) -> list[Piece]:
        """One order of many texts; a text that failed before goes alone."""
        chosen: list[tuple[bytes, str]] = []
        one = estimates.embedding(texts=1, embedder=self._plan.embedder).seconds
        most = units.take(Stage.EMBED, (one for _ in self._texts))
        for known, text in list(self._texts.items())[:most]:
            suspect = known in self._kept.text_failures
            if suspect and chosen:
                break
            chosen.append((known, text))
            if suspect:
                break
        for known, _ in chosen:
            del self._texts[known]
        estimate = estimates.embedding(texts=len(chosen), embedder=self._plan.embedder)
        alone = any(known in self._kept.text_failures for known, _ in chosen)
        return [Piece(texts=tuple(chosen), estimate=self._fitted(estimate, alone=alone))]

    def _index_unit(self) -> Unit | None:
        if self._index_asked:
            return None
        self._index_asked = True
        plan = self._writer.faiss_plan()
        if plan is None:
            return None
        estimate = estimates.indexing(vectors=plan.count, dim=self._plan.dim)
        refusal = self._refusal(estimate)
        if refusal is not None:
            self._say_no_faiss(refusal)
            return None
        estimate = self._fitted(estimate, alone=self._kept.index_failures > 0)
        return self._unit(Stage.INDEX, [Piece(estimate=estimate, size_bytes=plan.count * self._plan.dim * 4)])

    def _say_no_faiss(self, failure: Failure) -> None:
        said = f"{self.user}: the FAISS file was not built ({failure.detail}); search scans instead"
        self._reporter.say(Notice(said))

    # --- a unit begins ---

    def fetch(self, unit: Unit, inbox: Path) -> list[Fetched | Failure]:
        """Copy the bytes that a unit needs, as `unit.copied` says, but what is held. Runs on any thread."""
        return [
            held.copy if (held := unit.held_for(piece)) else self._fetch_one(piece, inbox / file_name_of(unit, index))
            for index, piece in unit.copied
        ]

    def file_to_hold(self, unit: Unit, copies: Sequence[Fetched | Failure]) -> HeldFile | None:
        """The file of which the worker is likely to read more pages: a long scan takes many units."""
        if unit.stage is not Stage.OCR or not copies:
            return None
        (index, piece), copy = unit.copied[-1], copies[-1]
        item = piece.item
        if item is None or not self._is_live(item) or not item.pages_left or isinstance(copy, Failure):
            return None
        if copy.sha256 + ending_of(item.record) != piece.content:
            return None
        held = unit.held_for(piece)
        name = held.name if held is not None else file_name_of(unit, index)
        return HeldFile(user=self.user, content=piece.content, name=name, copy=copy)

    def _fetch_one(self, piece: Piece, target: Path) -> Fetched | Failure:
        assert piece.item is not None
        record = piece.item.record
        try:
            if record.parent is not None:
                return self._parts.fetch(str(record.locator["part"]), target)
            source = self._sources.get(record.source)
            if source is None:
                return Failure(reason=Reason.SOURCE_UNREADABLE, detail="its source could not be opened")
            return source.fetch(record.locator, target)
        except FetchFailed as error:
            return error.failure
        except (KeyError, TypeError, ValueError) as error:
            return Failure(reason=Reason.VANISHED, detail=f"its place is not known any more: {error}")

    def orders(self, unit: Unit, inbox: Path, fetched: Sequence[Fetched | Failure]) -> list[Mapping[str, Any]]:
        """What the worker is told. An empty list: nothing is left to do, and the unit has ended."""
        match unit.stage:
            case Stage.EXTRACT:
                orders = list(self._extract_orders(unit, inbox, fetched))
            case Stage.OCR:
                orders = list(self._ocr_orders(unit, fetched))
            case Stage.CHUNK:
                orders = list(self._chunk_orders(unit, inbox))
            case Stage.EMBED:
                name = f"{prefix_of(unit, 0)}.texts.json"
                _write(inbox / name, json.dumps([text for _, text in unit.pieces[0].texts]).encode())
                orders = [{"file": name, "prefix": prefix_of(unit, 0)}]
                unit.orders = list(unit.pieces)
            case _:
                self._exported = self._writer.export_vectors(inbox / "ids.i64", inbox / "vectors.f32")
                orders = [
                    {"file": "vectors.f32", "ids": "ids.i64", "dim": self._plan.dim, "prefix": prefix_of(unit, 0)}
                ]
                unit.orders = list(unit.pieces)
        if not orders:
            self.end_unit(unit)
        return orders

    def _extract_orders(
        self, unit: Unit, inbox: Path, fetched: Sequence[Fetched | Failure]
    ) -> Iterator[Mapping[str, Any]]:
        for index, (piece, copy) in enumerate(zip(unit.pieces, fetched, strict=True)):
            item = piece.item
            assert item is not None
            if not self._is_live(item):
                continue
            if isinstance(copy, Failure):
                self._fetch_failed(item, copy)
                continue
            if copy.fingerprint and copy.fingerprint != item.record.fingerprint:
                item.record = replace(item.record, fingerprint=copy.fingerprint)
            item.content = copy.sha256 + ending_of(item.record)
            if item.record.id not in self._kept.fresh:
                document = self._known_document(item)
                # Attachments lie nowhere but in the mail itself, so a mail is taken apart again.
                if document is not None and not document.parts:
                    self._writer.save_read(*item.key, item.record.fingerprint, item.content)
                    self._take_parts(item, document, inbox)
                    self._go_on(item)
                    continue
            unit.orders.append(piece)
            yield {
                "file": file_name_of(unit, index),
                "name": item.record.path[-_HINT_CHARS:],
                "kind": item.record.kind.value,
                "prefix": prefix_of(unit, index),
                "journal": item.record.alone,
                "skip": self._kept.lost.pages_of(item.content),
            }

    def _ocr_orders(self, unit: Unit, fetched: Sequence[Fetched | Failure]) -> Iterator[Mapping[str, Any]]:
        files = {
            item: held.name if (held := unit.held_for(piece)) else file_name_of(unit, index)
            for (index, piece), copy in zip(unit.copied, fetched, strict=True)
            if (item := piece.item) is not None and self._is_as_it_was(item, piece.content, copy)
        }
        for index, piece in enumerate(unit.pieces):
            if piece.item in files:
                unit.orders.append(piece)
                yield {
                    "file": files[piece.item],
                    "media_type": piece.item.media_type,
                    "page": piece.page,
                    "prefix": prefix_of(unit, index),
                }

    def _is_as_it_was(self, item: Item, content: str, copy: Fetched | Failure) -> bool:
        """The copy holds the bytes whose pages are to be read. If not, the item has failed or is read anew."""
        if not self._is_live(item) or content != item.content:
            return False  # Settled, or being read anew: these pages are nobody's.
        if isinstance(copy, Failure):
            self._to_ocr.drop(item)
            self._fetch_failed(item, copy)
            return False
        if copy.sha256 + ending_of(item.record) == item.content:
            return True
        # Written to since it was extracted: what is known of it belongs to other bytes.
        self._to_ocr.drop(item)
        if copy.fingerprint:
            item.record = replace(item.record, fingerprint=copy.fingerprint)
        item.content = ""
        item.pages_left = {}
        self._to_extract.append(item)
        return False

    def _chunk_orders(self, unit: Unit, inbox: Path) -> Iterator[Mapping[str, Any]]:
        for index, piece in enumerate(unit.pieces):
            item = piece.item
            assert item is not None
            document = self._writer.find_document(item.content, item.extract)
            if document is None:
                # Gone since: read it again.
                self._to_extract.append(item)
                continue
            table = json.loads(document)
            table["title"] = title_of(item)
            _write(inbox / file_name_of(unit, index), json.dumps(table).encode())
            unit.orders.append(piece)
            yield {"file": file_name_of(unit, index), "prefix": prefix_of(unit, index)}

    # --- an order ends ---

    def ended(
        self,
        unit: Unit,
        index: int,
        outbox: Path,
        result: Mapping[str, Any],
        failure: Failure | None,
        cost: Cost,
    ) -> Failure | None:
        """Take in how one order ended. A Failure in return means that the worker lied and must be stopped."""
        piece = unit.orders[index]
        if failure is None:
            try:
                self._take_result(unit, piece, result, outbox, cost)
            except MalformedMessage as error:
                failure = lie = Failure(reason=Reason.PROTOCOL, detail=str(error))
                self._failed(unit, piece, failure, cost)
                return lie
            self._note(unit, piece, None, cost)
        else:
            self._failed(unit, piece, failure, cost, self._kept.lost.find(unit, index, outbox, failure))
        return None

    def lost(
        self,
        unit: Unit,
        blamed: int | None,
        failure: Failure,
        untouched: Sequence[int],
        cost: Cost,
        *,
        outbox: Path,
    ) -> None:
        """The worker is gone: the blamed order has failed, the others go back to their queues as they were."""
        orders = unit.orders or list(unit.pieces)
        if blamed is None and failure.reason is Reason.KILLED and unit.orders and len(untouched) == len(orders):
            # So it seems; but one that writes on its slate what it likes, and kills itself, may do so for ever.
            first, *others = untouched
            name = _name_of(unit.stage, orders[first])
            self._kept.spared[name] += 1
            if self._kept.spared[name] > SPARED_ALLOWED:
                blamed, untouched = first, others
        for index in reversed(untouched):
            if index < len(orders):
                self._requeue(unit.stage, orders[index])
        if blamed is not None and blamed < len(orders):
            self._failed(unit, orders[blamed], failure, cost, self._kept.lost.find(unit, blamed, outbox, failure))
        elif not untouched and not unit.orders:
            for piece in reversed(unit.pieces):
                self._requeue(unit.stage, piece)
        self.end_unit(unit)

    def end_unit(self, unit: Unit) -> None:
        """All orders of the unit have been taken in."""
        self._open_units.discard(unit)

    def _take_result(self, unit: Unit, piece: Piece, result: Mapping[str, Any], outbox: Path, cost: Cost) -> None:
        if not self._is_live(piece.item):
            return
        match unit.stage:
            case Stage.EXTRACT:
                self._extracted(piece.item, result, outbox)
            case Stage.OCR:
                most = spool.PAGE_JSON_BYTES
                page = Page.from_json(results.read_json(outbox, result, "page", most=most, most_chars=most))
                text = page.text[:MAX_PAGE_CHARS]
                self._recognised(piece, replace(page, number=piece.page, text=text, needs_ocr=False))
                self._work.ocr_pages += 1
                if piece.item is not None:
                    self._to_ocr.learn(piece.item, cost.cpu_seconds)
            case Stage.CHUNK:
                self._chunked(piece.item, result, outbox)
            case Stage.EMBED:
                self._embedded(piece, result, outbox)
            case _:
                self._indexed(unit, result, outbox)

    def _extracted(self, item: Item | None, result: Mapping[str, Any], outbox: Path) -> None:
        assert item is not None
        most, most_chars = spool.DOCUMENT_JSON_BYTES, spool.DOCUMENT_JSON_CHARS
        document = Document.from_json(results.read_json(outbox, result, "document", most=most, most_chars=most_chars))
        chunks = None
        if "chunks" in result:
            chars = sum(len(page.text) for page in document.pages)
            chunks = self._read_chunks(result, outbox, chars)
        self._have_document(item, self._kept.lost.noted(item.content, document), outbox, chunks)

    def _have_document(
        self, item: Item, document: Document, outbox: Path, chunks: tuple[records.Chunk, ...] | None = None
    ) -> None:
        """chunks: as they were cut from this very document; None: they are still to be cut."""
        document = self._kept.narrowed(item.record, _fit(item.record, document))
        self._take_parts(item, document, outbox)
        wants_ocr = any(page.needs_ocr for page in document.pages)
        version = self._plan.extracts[1 if wants_ocr else 0]
        self._writer.save_read(*item.key, item.record.fingerprint, item.content)
        if self._writer.find_document(item.content, version) is None or item.record.id in self._kept.fresh:
            # A twin's document may have pages already; saving it again would drop them.
            self._writer.save_document(item.content, version, json.dumps(document.to_json()).encode())
        self._kept.fresh.discard(item.record.id)
        if self._kept.lost.pages_of(item.content):
            # Those tries were of its pages: the stages that follow begin to count anew.
            item.record = replace(item.record, attempts=0)
        self._describe(item, document, version)
        self._work.extracted += 1
        if chunks is not None and not (wants_ocr and self._plan.ocr):
            self._have_chunks(item, chunks)
        else:
            self._go_on(item)

    def _take_parts(self, item: Item, document: Document, outbox: Path) -> None:
        """Attachments become items: their bytes are laid by first, then the ledger hears of them.

        Those that were there before and are not any more are gone, whatever the item was then.
        """
        record = item.record
        if self._leave_parts:
            return
        listed: list[Listed] = []
        # Of all together no more than an outbox may hold: files of nothing but holes take no room there, and all here.
        left = spool.outbox_limit(Stage.EXTRACT, 1, record.size_bytes)
        for number, part in enumerate(document.parts):
            name = f"{record.id}-{number}"
            sha256, size = self._parts.add(name, outbox, part.file, left)
            left -= size
            listed.append(
                Listed(
                    key=ItemKey(f"{record.key}{PART_MARK}{number}"),
                    fingerprint=part_fingerprint(sha256, part.name),
                    path=f"{record.path}/{part.name[:_PART_NAME_CHARS] or f'part {number + 1}'}",
                    size_bytes=size,
                    modified=record.modified,
                    kind=kind_of(part.media_type),
                    locator={"part": name},
                )
            )
        if listed or item.has_parts:
            item.has_parts = bool(listed)
            self._note_parts(record, listed)
        self._release_parts(record.id)

    def _note_parts(self, record: ItemRecord, listed: Sequence[Listed]) -> None:
        self._has_parts = True
        outcome = self._ledger.add_parts(record.id, listed)
        for key in outcome.gone:
            self._publisher.remove((int(record.source), str(key)))
        if outcome.gone or outcome.changed:
            # Taken up already, as they were before: the ledger hands them out again, if they are still there.
            for child in [child for child in self._items.values() if child.record.parent == record.id]:
                del self._items[child.record.id]
        if outcome.gone or outcome.changed or outcome.new:
            self._exhausted = False
            self.moved = True

    def _release_parts(self, mail: ItemId) -> None:
        """The mail was read, or never will be in this run: its parts go on, or fail, by themselves."""
        if mail in self._kept.held.values():
            self._kept.held = {part: parent for part, parent in self._kept.held.items() if parent != mail}
            self._exhausted = False

    def _recognised(self, piece: Piece, page: Page) -> None:
        item = piece.item
        assert item is not None
        if piece.content != item.content or page.number not in item.pages_left:
            return  # Of bytes that are no longer the item's, or known from a twin of it by now.
        if item.recognised_bytes > MAX_TEXT_BYTES:
            # More than a document may have, of which all pages are put together at once: the rest would be cut off.
            page = replace(page, text="")
        item.recognised_bytes += text_bytes(page.text)
        self._writer.save_pages(item.content, {page.number: json.dumps(page.to_json()).encode()})
        del item.pages_left[page.number]
        self._kept.page_failures.pop((item.record.id, page.number), None)
        if not item.pages_left and item.record.id in self._items:
            self._go_on(item)

    def _go_on(self, item: Item) -> None:
        """A document is there: its pages to OCR, if some are left; else the whole of it to be cut."""
        if item.pages_left:
            self._to_ocr.add(item, sorted(item.pages_left))
            return
        if item.extract == self._plan.extracts[1] and self._plan.ocr and not self._merge_pages(item):
            return
        self._to_chunk.append(item)

    def _merge_pages(self, item: Item) -> bool:
        """Put recognised pages into their document. False: nothing could be read, and the item has failed."""
        pages = _recognised_pages(self._writer, item.content)
        stored = self._writer.find_document(item.content, item.extract)
        if stored is None:
            return True
        document = Document.from_json(json.loads(stored))
        left = {page.number: page.pixels for page in document.pages if page.needs_ocr and page.number not in pages}
        if left:
            # A twin with the same bytes was extracted meanwhile, and its document took the place of ours.
            item.pages_left = left
            self._to_ocr.add(item, sorted(left))
            return False
        if not pages:
            return True
        lost = sorted(number for number, page in pages.items() if page.method is Method.NONE)
        merged = tuple(merge_page(page, pages.get(page.number)) for page in document.pages)
        notes = document.notes
        if lost:
            notes = (*notes[: MAX_NOTES - 2], f"partial: the pages {', '.join(map(str, lost[:20]))} could not be read")
            trouble = self._kept.page_troubles.pop(item.record.id, None)
            if len(lost) == len(document.pages) and not any(page.text.strip() for page in merged):
                self._settle_unread(item, len(lost), trouble)
                return False
        unsure = low_confidence(merged)
        if unsure:
            notes = (*notes[: MAX_NOTES - 2], unsure)
        whole = cut_to_limit(replace(document, pages=merged, notes=notes), self._plan.max_text_bytes)
        self._writer.save_document(item.content, item.extract, json.dumps(whole.to_json()).encode())
        self._describe(item, whole, item.extract)
        return True

    def _settle_unread(self, item: Item, pages: int, trouble: Failure | None) -> None:
        """None of its pages could be read. What became of the only one is what became of the item."""
        if pages == 1 and trouble is not None:
            self._settle(item, ItemState.QUARANTINED if trouble.reason in OWN_DOING else ItemState.FAILED, trouble)
            return
        why = f": {trouble.reason}: {trouble.detail}" if trouble is not None else ""
        failure = Failure(reason=Reason.OCR_FAILED, detail=f"no page could be read{why}")
        self._settle(item, ItemState.FAILED, failure)

    def _chunked(self, item: Item | None, result: Mapping[str, Any], outbox: Path) -> None:
        assert item is not None
        self._have_chunks(item, self._read_chunks(result, outbox, item.chars))

    def _read_chunks(self, result: Mapping[str, Any], outbox: Path, chars: int) -> tuple[records.Chunk, ...]:
        """The chunks of a document of so many characters."""
        lines = results.read_json_lines(
            outbox, result, "chunks", most=spool.chunks_limit(chars), most_of_a_line=spool.CHUNK_LINE_BYTES
        )
        most = spool.most_chunks(chars)
        chunks = tuple(map(chunk_of, islice(lines, most + 1)))
        if len(chunks) > most:
            raise MalformedMessage(f"there are more than {most} chunks of {chars} characters")
        self._work.chunked += 1
        return chunks

    def _have_chunks(self, item: Item, chunks: tuple[records.Chunk, ...], *, kept: bool = False) -> None:
        """kept: they are in the index's database already, for an item that waits for others may wait long."""
        if self._plan.dim:
            texts = {text_hash(chunk.text): chunk.text for chunk in chunks}
            item.missing = self._writer.unknown(self._plan.model, list(texts))
            for known in item.missing:
                if known not in self._wanted:
                    self._texts[known] = texts[known]
                self._wanted.setdefault(known, []).append(item)
        if not item.missing:
            self._publisher.add(item, None if kept else chunks)
        elif not kept:
            self._writer.save_chunks(*item.key, item.cut_as(self._plan.chunking), chunks)

    def _embedded(self, piece: Piece, result: Mapping[str, Any], outbox: Path) -> None:
        count, dim = len(piece.texts), self._plan.dim
        if (result.get("count"), result.get("dim"), result.get("model")) != (count, dim, self._plan.model):
            raise MalformedMessage("the vectors are not those that were asked for")
        raw = results.read_bytes(outbox, result, "vectors", count * dim * 4)
        if len(raw) != count * dim * 4:
            raise MalformedMessage("the vectors are not whole")
        numbers = array("f", raw)
        if not math.isfinite(math.fsum(map(abs, numbers))):
            raise MalformedMessage("the vectors are not whole")
        hashes = [known for known, _ in piece.texts]
        self._writer.add_vectors(self._plan.model, hashes, raw, dim)
        self._work.embedded += count
        for known in hashes:
            self._kept.text_failures.pop(known, None)
            for item in self._wanted.pop(known, ()):
                item.missing.discard(known)
                if not item.missing and item.record.id in self._items:
                    self._publisher.add(item)

    def _indexed(self, unit: Unit, result: Mapping[str, Any], outbox: Path) -> None:
        name = result.get("faiss")
        target = self._writer.folder / "vectors.draft"
        target.unlink(missing_ok=True)
        results.take_file(outbox, str(name), target, min(unit.outbox_limit, _MOST_FAISS_BYTES))
        assert self._exported is not None
        if result.get("count") != self._exported.count:
            target.unlink()
            raise MalformedMessage("the FAISS file does not hold the vectors that were given")
        if not self._writer.adopt_faiss(target, self._exported):
            target.unlink()

    # --- failures ---

    def _fetch_failed(self, item: Item, failure: Failure) -> None:
        record = item.record
        if record.id not in self._items:
            return  # Settled meanwhile, by another unit of its pages.
        if record.parent is not None and failure.reason is Reason.VANISHED and self._may_read_again(record):
            if self._parts.holds(str(record.locator["part"])):
                # Laid by since the copy failed: the mail was being read at that moment.
                self._to_extract.append(item)
                return
            # Its bytes are gone from the folder of parts (erased, or lost): the mail that holds them is read again.
            mail = self._items.get(record.parent)
            if mail is not None and mail.extract:
                # Past its extraction already: it begins anew, else nobody would lay the bytes by.
                del self._items[record.parent]
            self._moves.append(Move(item=record.parent, state=ItemState.PENDING))
            self._moves.append(Move(item=record.id, state=ItemState.PENDING, attempts=1))
            self._kept.fresh.add(record.parent)
            self._kept.held[record.id] = record.parent
            del self._items[record.id]
            self.flush()
            self._exhausted = False
            return
        now = self._clock.now()
        self._attempts.append(attempt_of(record.id, Stage.EXTRACT, "", failure, Cost(began=now)))
        skip = CATALOGUE[failure.reason].skip
        self._settle(item, ItemState.SKIPPED if skip else ItemState.FAILED, failure)

    def _may_read_again(self, part: ItemRecord) -> bool:
        """Once, and only where the mail itself is not set aside."""
        if part.attempts:
            return False
        assert part.parent is not None
        mail = self._ledger.find_item(part.parent)
        return mail is not None and mail.state is not ItemState.QUARANTINED

    def _failed(
        self, unit: Unit, piece: Piece, failure: Failure, cost: Cost, unfinished: Unfinished | None = None
    ) -> None:
        self._work.attempts_failed += not CATALOGUE[failure.reason].skip
        self._note(unit, piece, failure, cost, unfinished.page if unfinished else None)
        if not self._is_live(piece.item):
            return
        match unit.stage:
            case Stage.OCR:
                self._page_failed(unit, piece, failure)
            case Stage.EMBED:
                self._texts_failed(piece, failure)
            case Stage.INDEX:
                self._kept.index_failures += 1
                self._index_asked = self._kept.index_failures > 1
                if self._index_asked:
                    self._say_no_faiss(failure)
            case _:
                self._item_failed(unit, piece, failure, unfinished)

    def _item_failed(self, unit: Unit, piece: Piece, failure: Failure, unfinished: Unfinished | None) -> None:
        item = piece.item
        assert item is not None
        alone = len(unit.orders) == 1
        attempts, verdict = self._kept.after_failure(item.record.id, failure, item.record.attempts, alone=alone)
        if verdict.quarantine and unfinished is not None:
            rescued = self._kept.lost.rescue(item.content, failure, unfinished)
            if isinstance(rescued, Document):
                self._have_document(item, rescued, Path())
                return
            verdict = rescued
        item.record = replace(item.record, attempts=attempts, alone=verdict.alone)
        if verdict.retry:
            self._moves.append(
                Move(item=item.record.id, state=ItemState.PENDING, attempts=attempts, alone=verdict.alone)
            )
            self._requeue(unit.stage, piece)
        elif CATALOGUE[failure.reason].skip:
            self._settle(item, ItemState.SKIPPED, failure)
        else:
            self._settle(item, ItemState.QUARANTINED if verdict.quarantine else ItemState.FAILED, failure)

    def _page_failed(self, unit: Unit, piece: Piece, failure: Failure) -> None:
        item = piece.item
        assert item is not None
        if item.record.id not in self._items or piece.content != item.content:
            return
        name = (item.record.id, piece.page)
        before, alone = self._kept.page_failures.get(name, 0), len(unit.orders) == 1
        self._kept.page_failures[name], verdict = self._kept.after_failure(name, failure, before, alone=alone)
        if verdict.retry:
            self._to_ocr.add(item, [piece.page])
            return
        if worth_another_run(failure.reason):
            # Not the page's fault: another run may read it, and goes on with the pages that are there.
            self._settle(item, ItemState.FAILED, failure)
            return
        self._kept.page_troubles[item.record.id] = failure
        self._recognised(piece, Page(number=piece.page, text="", method=Method.NONE))

    def _texts_failed(self, piece: Piece, failure: Failure) -> None:
        """Nobody knows which text it was: each is tried again by itself, and only then given up."""
        alone = len(piece.texts) == 1
        for known, text in piece.texts:
            before = self._kept.text_failures.get(known, 0)
            self._kept.text_failures[known], verdict = self._kept.after_failure(known, failure, before, alone=alone)
            if not alone or verdict.retry:
                self._texts[known] = text
                continue
            detail = f"{failure.reason}: {failure.detail}"
            for item in self._wanted.pop(known, ()):
                if item.record.id in self._items:
                    self._settle(item, ItemState.FAILED, Failure(reason=Reason.EMBEDDING_FAILED, detail=detail))

    def _requeue(self, stage: Stage, piece: Piece) -> None:
        if stage is Stage.EMBED:
            self._texts.update(piece.texts)
        elif piece.item is None or piece.item.record.id not in self._items:
            return
        elif stage is Stage.EXTRACT:
            self._to_extract.appendleft(piece.item)
        elif stage is Stage.OCR:
            if piece.content == piece.item.content and piece.page in piece.item.pages_left:
                self._to_ocr.put_back(piece.item, piece.page)
        elif stage is Stage.CHUNK:
            self._to_chunk.appendleft(piece.item)

    def _settle(self, item: Item, state: ItemState, failure: Failure) -> None:
        """The item has ended without being indexed."""
        record = item.record
        self._to_ocr.drop(item)
        self._items.pop(record.id, None)
        self._moves.append(
            Move(
                item=record.id,
                state=state,
                failure=failure,
                fingerprint=record.fingerprint,
                attempts=record.attempts,
                alone=record.alone,
                media_type=item.media_type or None,
            )
        )
        # The bytes of an attachment go at once.
        self._is_urgent = self._is_urgent or state is not ItemState.SKIPPED or record.parent is not None
        if record.parent is None:
            self._work.items_skipped += state is ItemState.SKIPPED
            self._work.items_failed += state is not ItemState.SKIPPED
        if not keeps_published(failure.reason):
            self._publisher.remove(item.key)
        self._release_parts(record.id)
        self._forget_part(record)
        self._reporter.say(
            ItemSettled(user=self.user, path=record.path, state=state, reason=failure.reason, detail=failure.detail)
        )

    def _forget_part(self, record: ItemRecord) -> None:
        if record.parent is not None and "part" in record.locator:
            self._parts.remove(str(record.locator["part"]))

    # --- commits ---

    def flush(self) -> None:
        """Tell the ledger of attempts and moves, and of what was learned meanwhile of the memory that units take."""
        if self._attempts or self._moves:
            attempts, self._attempts = self._attempts, []
            moves, self._moves = self._moves, []
            # What was learned rides along: without an attempt there is nothing that is worth a transaction of its own.
            self._ledger.settle(self._run, attempts, moves, self._peaks.take_changes())
            self._is_urgent = False
            self.moved = self.moved or bool(moves)

    def flush_if_due(self) -> None:
        """Called after each turn of the coordinator's loop in which something of this user has ended.

        What went well may wait a moment: it is in the index already, and a kill costs a line of the ledger's history.
        So may what is skipped, which costs next to nothing to find out again. What failed may not: it has to be counted
        whoever is killed.
        """
        now = self._clock.monotonic()
        late = now - self._noted_at >= FLUSH_SECONDS
        if late or self._is_urgent or len(self._attempts) >= FLUSH_ATTEMPTS:
            self._noted_at = now
            self.flush()

    def rest(self) -> None:
        """The turn is over and nothing of it runs: all that is there is committed, and what can be is published.

        The next turn goes on from what index and ledger say, and from `kept`.
        """
        self.flush()
        self.publish_if_due(last=True)
        self.lay_by()
        self._kept.waiting.update(item.record.id for item in self._publisher.ready)

    def lay_by(self) -> None:
        """What is ready and cannot be published yet is kept for whoever goes on."""
        for item in self._publisher.ready:
            self._publisher.lay_by(item)

    def publish_if_due(self, *, last: bool = False) -> None:
        """Publish what is ready, when enough has gathered or some time has passed or nothing more is coming."""
        quiet = not self._open_units and units.next_stage(self._backlog()) is None and self._exhausted
        now = self._clock.monotonic()
        if not self._publisher.is_due(now, quiet=quiet, last=last):
            return
        self.flush()
        done = self._publisher.publish(now, self._is_live)
        self.moved = True
        # Their chunks are gone since: cut again.
        self._to_chunk.extend(done.without_chunks)
        self._work.published += len(done.items)
        self._work.removed += done.removed
        for item in done.items:
            self._items.pop(item.record.id, None)
            self._forget_part(item.record)
            self._work.items_indexed += item.record.parent is None
            self._reporter.say(
                ItemSettled(user=self.user, path=item.record.path, state=ItemState.INDEXED, reason=None, detail="")
            )

    # --- attempts ---

    def _note(self, unit: Unit, piece: Piece, failure: Failure | None, cost: Cost, page: int | None = None) -> None:
        """Write the attempt down. An order of texts belongs to many items; its failure is told of one of them.

        page: the one of an extraction that was being read when it ended.
        """
        page = piece.page if unit.stage is Stage.OCR else page
        part = f"page {page}" if page is not None else ""
        self._learn(piece.estimate, failure, cost)
        self._work.cpu_seconds += cost.cpu_seconds
        self._work.ocr_cpu_seconds += cost.cpu_seconds if unit.stage is Stage.OCR else 0.0
        if failure is not None and not CATALOGUE[failure.reason].skip:
            self._is_urgent = True
        if piece.item is not None:
            self._attempts.append(attempt_of(piece.item.record.id, unit.stage, part, failure, cost))
            if unit.stage in (Stage.EXTRACT, Stage.CHUNK) and (failure is None or CATALOGUE[failure.reason].skip):
                self._paces.learn(guess_of(unit.stage, piece.item), cost.cpu_seconds)
        elif failure is not None and piece.texts:
            for item in self._wanted.get(piece.texts[0][0], ())[:1]:
                self._attempts.append(attempt_of(item.record.id, unit.stage, part, failure, cost))

    def _learn(self, estimate: Estimate, failure: Failure | None, cost: Cost) -> None:
        """What the order took says what others of its kind will take.

        One that failed for another reason was not read, and says nothing. One that ran out of its whole ceiling is to
        be set aside; were it counted, a few such files would make everybody's small ones large.
        """
        if estimate.key is None:
            return
        now = self._clock.now()
        if failure is None and cost.peak_bytes:
            self._peaks.learn(estimate.key, cost.peak_bytes, now)
        elif (
            failure is not None
            and failure.reason is Reason.OUT_OF_MEMORY
            and estimate.memory_bytes < estimate.ceiling_bytes
        ):
            needed = after_running_out(cost.peak_bytes or estimate.memory_bytes)
            self._peaks.learn(estimate.key, needed, now)


def _name_of(stage: Stage, piece: Piece) -> Hashable:
    """What the order is about, whatever unit it is in."""
    if piece.item is None:
        return stage, *(known for known, _ in piece.texts[:1])
    return stage, piece.item.record.id, piece.page


def _recognised_pages(writer: Writer, content: str) -> dict[int, Page]:
    """What OCR has read of a content so far, by number."""
    return {number: Page.from_json(json.loads(body)) for number, body in writer.pages(content).items()}


def _write(target: Path, data: bytes) -> None:
    with open(target, "xb") as file:
        file.write(data)


def _first(queue: deque[Item], count: int) -> list[Item]:
    return [queue[index] for index in range(min(count, len(queue)))]


def _fit(record: ItemRecord, document: Document) -> Document:
    """The document as it is kept, by content: without a title that is only the name of this item, and without
    attachments that lie too deep."""
    if document.title == record.path.rpartition("/")[2]:
        document = replace(document, title="")
    if document.parts and record.key.count(PART_MARK) >= MOST_NESTED:
        note = f"partial: attachments more than {MOST_NESTED} deep were not read"
        document = replace(document, parts=(), notes=(*document.notes[: MAX_NOTES - 1], note))
    return document
