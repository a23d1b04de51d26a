"""Search in one user's published index.

Rule: each search sees one published state from its beginning to its end, never waits for a writer, and changes
nothing. What a FAISS file leaves out (rows newer than it, or all of them when it is missing or damaged) is searched
exactly, so that speed depends on the file and results do not.

    words of the question --- FTS5, bm25 ------------------------+
                                                                 +-- reciprocal rank fusion over items --> hits
    vector --- FAISS file, less deleted + newer rows, exactly ---+

Numpy and FAISS are imported by the first search with a vector.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, TypeAlias

from indexes.errors import IndexDamaged
from indexes.exact_store import ExactStore
from indexes.faiss_store import FaissStore
from indexes.fusion import fuse, share
from indexes.paths import DATABASE, FAISS_PREFIX
from indexes.records import FaissFile, Filters, Hit, IndexStats
from indexes.schema import (
    WITH_VECTORS,
    count_vectors,
    faults,
    find_faiss,
    generation_of,
    model_of,
    open_for_reading,
)

Mode: TypeAlias = Literal["hybrid", "vector", "keyword"]

#: Items of each ranking that are fused; deeper ones hardly change the first ten.
_DEPTH: Final = 50
#: Chunks asked of FAISS for each item that is wanted, first and then once more, before all are scanned: several
#: chunks of one item are near together, and deleted ones are masked.
_OVER_FETCH: Final = (4, 32)
#: Words in more of the chunks than this cost much and tell little (measured: 109 ms against 33 ms over 100,000).
_COMMON_SHARE: Final = 0.05
#: Scoring so many rows takes a few milliseconds: below it no word is too common.
_COMMON_AT_LEAST: Final = 1000
#: A writer may replace the FAISS file between two steps of ours, though hardly twice in a row.
_RETRIES: Final = 2
#: Rows scanned at a time: 6 MB at 384 numbers a row.
_SCAN_ROWS: Final = 4096

#: What a ranking holds: (item, its best chunk), best first.
_Ranking: TypeAlias = list[tuple[int, int]]

#: Which items pass the filters; every parameter may be NULL.
_ALLOWED: Final = """
    (:sources IS NULL OR i.source IN (SELECT value FROM json_each(:sources)))
    AND (:kinds IS NULL OR i.kind IN (SELECT value FROM json_each(:kinds)))
    AND (:media_types IS NULL OR i.media_type IN (SELECT value FROM json_each(:media_types)))
    AND (:since IS NULL OR i.date >= :since) AND (:until IS NULL OR i.date < :until)"""
_ITEM_OF_CHUNK: Final = "SELECT item FROM chunks WHERE id = :chunk"
_ALLOWED_ITEM_OF_CHUNK: Final = (
    f"SELECT i.id FROM chunks c JOIN items i ON i.id = c.item WHERE c.id = :chunk AND {_ALLOWED}"  # noqa: S608 - constants
)
_VECTORS: Final = f"SELECT c.id, v.vector FROM chunks c {WITH_VECTORS}"  # noqa: S608 - constants
#: Items first: filters that allow little make little work.
_ALLOWED_VECTORS: Final = (
    f"SELECT c.id, v.vector FROM items i CROSS JOIN chunks c ON c.item = i.id {WITH_VECTORS} WHERE {_ALLOWED}"  # noqa: S608
)
_NEWER_VECTORS: Final = f"{_VECTORS} WHERE c.id > :last_chunk"


def open_reader(folder: Path) -> Reader:
    """The index in `folder`, for searches of one thread. Use it as a context manager.

    Raises NoIndex when there is none; NewerIndex, IndexDamaged, IndexFault when it cannot be used.
    """
    return Reader(folder, open_for_reading(folder / DATABASE))


class Reader:
    """Searches an index until it is closed. Methods raise IndexDamaged or IndexFault when the database is unusable."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._file = folder / DATABASE
        self._db = connection
        self._store: FaissStore | None = None
        self._store_file: FaissFile | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the files. Idempotent."""
        self._db.close()
        self._store = self._store_file = None

    @property
    def model(self) -> str:
        """The embedding model of the published vectors, "" for none: embed the question with it."""
        with faults(self._file):
            return model_of(self._db)

    def stats(self) -> IndexStats:
        """Counts of the published state, and the bytes on disk."""
        with self._snapshot():
            model = model_of(self._db)
            faiss = find_faiss(self._db)
            (items,) = self._db.execute("SELECT count(*) FROM items").fetchone()
            return IndexStats(
                items=items,
                chunks=self._count_chunks(),
                vectors=count_vectors(self._db, model),
                generation=generation_of(self._db),
                model=model,
                faiss_count=faiss.count if faiss else 0,
                bytes=self._bytes(),
            )

    def search(
        self,
        *,
        groups: Sequence[Sequence[str]] = (),
        vector: Sequence[float] | None = None,
        k: int = 10,
        mode: Mode = "hybrid",
        vector_weight: float = 0.5,
        filters: Filters | None = None,
        model: str | None = None,
    ) -> list[Hit]:
        """The `k` best items, best first, ties by the age of the item in the index.

        groups         for each word of the question the keyword tokens it may stand as in the index
        vector         of the question; length 1, like those in the index
        vector_weight  0 to 1: what the vector ranking counts in hybrid mode; the keyword ranking counts the rest
        model          that made `vector`. If another was published since it was asked for, the vector is not used.

        ValueError for a vector of the wrong length or numbers that are out of range.
        """
        if k < 0 or not 0 <= vector_weight <= 1:
            raise ValueError(f"k = {k}, vector_weight = {vector_weight}; must be at least 0, and 0 to 1")
        if k == 0:
            return []
        for may_retry in (True,) * _RETRIES + (False,):
            with self._snapshot():
                if mode == "keyword" or model not in (None, model_of(self._db)):
                    vector = None
                try:
                    store = None if vector is None else self._open_store()
                except FileNotFoundError:
                    if may_retry:
                        continue
                    store = None
                rankings = []
                if mode != "vector":
                    weight = 1.0 if vector is None else 1 - vector_weight
                    rankings.append((weight, self._by_keyword(groups, k, filters)))
                if vector is not None:
                    weight = 1.0 if mode == "vector" else vector_weight
                    rankings.append((weight, self._by_vector(vector, k, filters, store)))
                return self._hits(rankings, k)
        raise AssertionError("the last round returns or raises")

    # --- keywords ----------------------------------------------------------------------------------------------------

    def _by_keyword(self, groups: Sequence[Sequence[str]], k: int, filters: Filters | None) -> _Ranking:
        query = " OR ".join(self._telling(groups))
        if not query:
            return []
        rows = self._db.execute("SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank, rowid", (query,))
        return self._items_of((chunk for (chunk,) in rows), max(k, _DEPTH), filters)

    def _telling(self, groups: Sequence[Sequence[str]]) -> list[str]:
        """The words that are looked up, as FTS5 expressions: without those that stand nowhere or nearly everywhere."""
        limit = max(_COMMON_AT_LEAST, int(self._count_chunks() * _COMMON_SHARE))
        rare: list[str] = []
        common: list[str] = []
        for group in groups:
            alternatives = " OR ".join(_quoted(term) for term in dict.fromkeys(group) if _quoted(term))
            found = self._count_up_to(alternatives, limit + 1) if alternatives else 0
            if found:
                (rare if found <= limit else common).append(alternatives)
        return rare or common

    def _count_up_to(self, query: str, limit: int) -> int:
        (found,) = self._db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)", (query, limit)
        ).fetchone()
        return int(found)

    # --- vectors -----------------------------------------------------------------------------------------------------

    def _by_vector(self, query: Sequence[float], k: int, filters: Filters | None, store: FaissStore | None) -> _Ranking:
        depth = max(k, _DEPTH)
        if store is not None and self._store_file is not None:
            newer = self._scan(query, _NEWER_VECTORS, {"last_chunk": self._store_file.last_chunk})
            for factor in _OVER_FETCH:
                near = store.search(query, factor * depth)
                complete = len(near) == store.count
                # Beyond the last one of FAISS only FAISS knows what comes next: a newer row there has no rank yet.
                floor = float("-inf") if complete or not near else near[-1][1]
                merged = heapq.merge(near, (pair for pair in newer if pair[1] >= floor), key=_best_first)
                ranking = self._items_of((chunk for chunk, _ in merged), depth, filters)
                if complete or len(ranking) >= k:
                    return ranking
        everything = self._scan(query, _VECTORS if filters is None else _ALLOWED_VECTORS, _parameters(filters))
        return self._items_of((chunk for chunk, _ in everything), depth, filters)

    def _scan(
        self, query: Sequence[float], sql: str, parameters: dict[str, str | float | None]
    ) -> list[tuple[int, float]]:
        """All rows of `sql` as (chunk, inner product), best first, ties by chunk."""
        found: list[tuple[int, float]] = []
        rows = self._db.execute(sql, {**parameters, "model": model_of(self._db)})
        while block := rows.fetchmany(_SCAN_ROWS):
            ids, vectors = zip(*block, strict=True)
            store = ExactStore(ids, b"".join(vectors), len(vectors[0]) // 4)
            found.extend(store.search(query, store.count))
        found.sort(key=_best_first)
        return found

    def _open_store(self) -> FaissStore | None:
        """The FAISS file of this snapshot; None to search exactly. FileNotFoundError when it is gone by now."""
        faiss = find_faiss(self._db)
        if faiss is None or faiss != self._store_file:
            self._store = self._store_file = None
        if faiss is not None and self._store is None and (self.folder / faiss.name).stat().st_size == faiss.bytes:
            with contextlib.suppress(IndexDamaged):
                store = FaissStore(self.folder / faiss.name)
                if store.count == faiss.count:
                    self._store, self._store_file = store, faiss
        return self._store

    # --- items -------------------------------------------------------------------------------------------------------

    def _items_of(self, chunks: Iterable[int], wanted: int, filters: Filters | None) -> _Ranking:
        """The first `wanted` items of chunks that are given best first; unknown and filtered ones are left out."""
        sql = _ITEM_OF_CHUNK if filters is None else _ALLOWED_ITEM_OF_CHUNK
        parameters = _parameters(filters)
        best: dict[int, int] = {}
        for chunk in chunks:
            row = self._db.execute(sql, {**parameters, "chunk": chunk}).fetchone()
            if row is not None and row[0] not in best:
                best[row[0]] = chunk
                if len(best) == wanted:
                    break
        return list(best.items())

    def _hits(self, rankings: Sequence[tuple[float, _Ranking]], k: int) -> list[Hit]:
        """Fuse, and let for each item the chunk speak from the ranking that speaks most for the item."""
        speakers: dict[int, tuple[float, int]] = {}
        for weight, ranking in rankings:
            for rank, (item, chunk) in enumerate(ranking, start=1):
                says = share(weight, rank)
                if item not in speakers or says > speakers[item][0]:
                    speakers[item] = (says, chunk)
        fused = fuse([(weight, [item for item, _ in ranking]) for weight, ranking in rankings])
        return [self._hit(speakers[item][1], score) for item, score in fused[:k]]

    def _hit(self, chunk: int, score: float) -> Hit:
        source, key, kind, media_type, title, path, date, facts, page, passage, chunk_kind = self._db.execute(
            "SELECT i.source, i.key, i.kind, i.media_type, i.title, i.path, i.date, i.facts, c.page, c.text, c.kind "
            "FROM chunks c JOIN items i ON i.id = c.item WHERE c.id = ?",
            (chunk,),
        ).fetchone()
        return Hit(
            source=source,
            key=key,
            kind=kind,
            media_type=media_type,
            title=title,
            path=path,
            date=date,
            facts=json.loads(facts),
            page=page,
            passage=passage,
            chunk_kind=chunk_kind,
            score=score,
        )

    # --- how ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        """One published state: the first read within fixes it. A deferred transaction that never writes."""
        with faults(self._file):
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _count_chunks(self) -> int:
        (count,) = self._db.execute("SELECT count(*) FROM chunks").fetchone()
        return int(count)

    def _bytes(self) -> int:
        total = 0
        for pattern in (f"{DATABASE}*", f"{FAISS_PREFIX}*"):
            for file in self.folder.glob(pattern):
                with contextlib.suppress(FileNotFoundError):
                    total += file.stat().st_size
        return total


def _best_first(pair: tuple[int, float]) -> tuple[float, int]:
    return (-pair[1], pair[0])


def _parameters(filters: Filters | None) -> dict[str, str | float | None]:
    if filters is None:
        return {}
    return {
        "sources": json.dumps(filters.sources) if filters.sources else None,
        "kinds": json.dumps(filters.kinds) if filters.kinds else None,
        "media_types": json.dumps(filters.media_types) if filters.media_types else None,
        "since": filters.since,
        "until": filters.until,
    }


def _quoted(term: str) -> str:
    """A term as an FTS5 string, in which nothing has a meaning; "" when nothing is left of it.

    A zero byte would end the whole expression, and half a surrogate pair has no UTF-8.
    """
    clean = term.replace("\0", " ").encode("utf-8", "ignore").decode("utf-8").strip()
    return '"' + clean.replace('"', '""') + '"' if clean else ""
