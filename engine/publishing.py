"""What is ready goes into the index and what has left goes out of it, in one transaction; the ledger's copy follows.

Rule: the index's commit is the publish. A kill between it and the ledger leaves generations that differ, and the next
run makes the ledger agree with the index. While the embedding model changes, all waits for the end: an index never
mixes vectors of two models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from engine.model import ItemKey, ItemState, RunId, SourceId, UserId
from engine.plan import Plan
from engine.ports import Ledger, Move
from engine.way import Item, date_of, title_of
from indexes import records
from indexes.writer import Writer

#: Published together: a transaction costs little, and what is found a moment sooner is found a moment sooner.
PUBLISH_ITEMS, PUBLISH_SECONDS = 200, 5.0
#: Characters of chunks that are held in memory until they are published: of 32 open users 100 MB with their keywords.
#: What is beyond goes through the index's database, at three times the cost.
HELD_CHARS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What one publish came to: the items that can be found now, those whose chunks were gone, and how many left."""

    items: tuple[Item, ...]
    without_chunks: tuple[Item, ...]
    removed: int


class Publisher:
    """One user's items that are ready, and keys that are to leave."""

    def __init__(
        self,
        *,
        user: UserId,
        run: RunId,
        plan: Plan,
        ledger: Ledger,
        writer: Writer,
        removed: Collection[records.ItemKey],
        trial: bool,
        remove_nothing: bool,
        now: float,
    ) -> None:
        """removed: what has left already; trial: the index keeps its model, as not all items are read."""
        self._user, self._run, self._plan, self._ledger, self._writer = user, run, plan, ledger, writer
        self._trial, self._remove_nothing = trial, remove_nothing
        self._removals: set[records.ItemKey] = set() if remove_nothing else set(removed)
        self._published_at = now
        self.ready: list[Item] = []
        self._held_chars = 0

    def add(self, item: Item, chunks: tuple[records.Chunk, ...] | None = None) -> None:
        """The item is ready: its chunks as they were just cut, or None when they are in the index's database."""
        if chunks is not None:
            item.chunks = chunks
            self._held_chars += item.held_chars
            if self._held_chars > HELD_CHARS and self._waits_for_all:
                self.lay_by(item)
        self.ready.append(item)

    def lay_by(self, item: Item) -> None:
        """Put the chunks that are held of an item into the index's database."""
        if item.chunks is not None:
            self._writer.save_chunks(*item.key, item.cut_as(self._plan.chunking), item.chunks)
            self._held_chars -= item.held_chars
            item.chunks = None

    @property
    def _waits_for_all(self) -> bool:
        """Nothing is published before everything is: the embedding model changes."""
        return self._writer.model not in ("", self._plan.model)

    @property
    def has_removals(self) -> bool:
        """Something is still to leave the index."""
        return bool(self._removals)

    def remove(self, key: records.ItemKey) -> None:
        """The item is to leave the index, with the next publish."""
        if not self._remove_nothing:
            self._removals.add(key)

    def keep(self, key: records.ItemKey) -> None:
        """The item is asked for again: it leaves when it fails again."""
        self._removals.discard(key)

    def is_due(self, now: float, *, quiet: bool, last: bool) -> bool:
        """Enough has gathered, or some time has passed, or nothing more is coming (`quiet`; `last`: in this turn)."""
        if not (self.ready or self._removals):
            return False
        if self._waits_for_all and not quiet:
            return False
        late = now - self._published_at >= PUBLISH_SECONDS
        many = len(self.ready) >= PUBLISH_ITEMS or self._held_chars > HELD_CHARS
        return many or late or quiet or last

    def publish(self, now: float, is_live: Callable[[Item], bool]) -> Published:
        """Publish all that is ready; items that are not live any more are passed over."""
        ready, self.ready = self.ready, []
        published: list[Item] = []
        gone = sorted(self._removals - {item.key for item in ready})
        model = (self._writer.model or self._plan.model) if self._trial else self._plan.model
        removed = sum(self._writer.is_published(*key) for key in gone)
        generation = self._writer.publish(self._entries(filter(is_live, ready), published), gone, model)
        departed = [(SourceId(source), ItemKey(key)) for source, key in sorted(self._removals)]
        self._ledger.published(self._run, self._user, generation, _moves(published), departed)
        self._removals.clear()
        self._published_at = now
        self._held_chars = 0
        done = {item.key for item in published}
        return Published(
            items=tuple(published),
            without_chunks=tuple(item for item in ready if item.key not in done and is_live(item)),
            removed=removed,
        )

    def _entries(self, items: Iterator[Item], published: list[Item]) -> Iterator[records.Entry]:
        """One after the other, as the transaction takes them in: chunks of many items are never held together."""
        for item in items:
            chunks, item.chunks = item.chunks, None
            if chunks is None:
                read = self._writer.find_read(*item.key)
                chunks = read.chunks if read is not None else None
            if chunks is not None:
                published.append(item)
                yield self._entry(item, chunks)

    def _entry(self, item: Item, chunks: tuple[records.Chunk, ...]) -> records.Entry:
        record = item.record
        return records.Entry(
            source=int(record.source),
            key=str(record.key),
            fingerprint=str(record.fingerprint),
            content=item.content,
            extract=item.extract,
            chunking=self._plan.chunking,
            model=self._plan.model,
            kind=item.kind.value,
            media_type=item.media_type,
            title=title_of(item),
            path=record.path,
            date=date_of(item),
            facts=dict(item.facts),
            partial=item.partial,
            chunks=chunks,
        )


def _moves(items: Sequence[Item]) -> list[Move]:
    return [
        Move(
            item=item.record.id,
            state=ItemState.INDEXED,
            fingerprint=item.record.fingerprint,
            attempts=0,
            alone=False,
            partial=item.partial,
            media_type=item.media_type,
        )
        for item in items
    ]
