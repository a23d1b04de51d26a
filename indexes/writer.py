"""Everything that changes a user's index.

Rule: one writer at a time, by lock; each method is one transaction, and between two of them a crash may come. What is
searchable changes in one method only: `publish`. This file needs neither numpy nor FAISS: vectors pass as bytes.

    save_read, save_document, save_pages, save_chunks, add_vectors      as the work arrives, seen by no reader
                                  |
                               publish        one transaction: the next generation
                                  |
    faiss_plan -> export_vectors -> (a worker builds the file) -> adopt_faiss
                                  |
                                tidy          what nobody needs any more
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import sqlite3
import stat
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Final

from indexes import lock
from indexes.errors import IndexDamaged, IndexFault
from indexes.lock import is_locked as is_locked
from indexes.paths import DATABASE, FAISS_PREFIX, FAISS_SUFFIX
from indexes.records import Chunk, Entry, Exported, FaissFile, FaissPlan, ItemKey, Published, Read
from indexes.schema import WITH_VECTORS, count_vectors, faults, find_faiss, generation_of, model_of, open_for_writing

#: Half of a sha256: two of a user's texts never share it by chance.
TEXT_HASH_BYTES: Final = 16
#: A FAISS file is not built anew for fewer changes: scanning 64 vectors takes microseconds.
REBUILD_AT_LEAST: Final = 64
#: How long the end of a user's work waits for readers: all other users wait too.
CLOSE_MS: Final = 200
#: Text at this level takes a third of its room; the best level saves little more and costs three times the CPU.
_COMPRESSION: Final = 1
#: Rows held in memory while vectors are exported: 1.5 MB at 384 numbers a row.
_EXPORT_ROWS: Final = 1024
#: Free pages are given back when they are more than 2 MB and more than a quarter of the file; else they are reused.
_FREE_PAGES: Final = 256
#: Chunks whose words are held in memory while items are published: some megabytes.
_WORDS_AT_ONCE: Final = 5_000
#: All that ever lies in the folder for FAISS, drafts and half-made copies included.
_FAISS_FILES: Final = "vectors*"
#: Words of chunks by their ids, by the item that has them.
_Words = dict[int, list[tuple[int, str]]]
#: The clean copy while the database is rewritten.
_SHREDDED: Final = "shredded.db"


def text_hash(text: str) -> bytes:
    """The name of a text under which its vectors are kept: the first 16 bytes of its sha256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:TEXT_HASH_BYTES]


def open_writer(folder: Path, *, lock_fd: int | None = None) -> Writer:
    """Lock the index in `folder`, create or migrate it. Use it as a context manager, within one thread.

    `lock_fd` is a lock that the caller holds already (`lock.take`) and keeps: the writer does not release it.
    Raises IndexBusy when somebody else writes it; NewerIndex, IndexDamaged, IndexFault when it cannot be used.
    """
    if lock_fd is not None:
        return Writer(folder, open_for_writing(folder / DATABASE), None)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise IndexFault(f"{folder} cannot be made: {error.strerror}; mind the disk and the permissions") from None
    own_lock = lock.take(folder)
    try:
        return Writer(folder, open_for_writing(folder / DATABASE), own_lock)
    except BaseException:
        os.close(own_lock)
        raise


class Writer:
    """The one that may change an index, until it is closed. All methods raise IndexFault when the disk says no."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, own_lock: int | None) -> None:
        self.folder = folder
        self._file = folder / DATABASE
        self._db = connection
        self._own_lock = own_lock
        self._closed = False
        self._in_batch = False

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Copy the log into the database, so that `stamp` stays as it is, and release the lock. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            # What cannot be copied (a full disk, a reader that does not end) stays in the log, where nothing is lost.
            with contextlib.suppress(sqlite3.Error):
                # Nobody waits for a search that stands still: the log is then part of the stamp.
                self._db.execute(f"PRAGMA busy_timeout = {CLOSE_MS}")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._db.close()
        finally:
            if self._own_lock is not None:
                os.close(self._own_lock)

    @property
    def generation(self) -> int:
        """Number of the published state; 0 before the first."""
        with faults(self._file):
            return generation_of(self._db)

    @property
    def model(self) -> str:
        """The embedding model of the published vectors; "" for none."""
        with faults(self._file):
            return model_of(self._db)

    def published(self) -> dict[ItemKey, Published]:
        """All published items, with what decides whether they are up to date."""
        with faults(self._file):
            return {
                # Versions repeat with every item: one string each.
                (source, key): Published(
                    fingerprint=fingerprint,
                    extract=sys.intern(extract),
                    chunking=sys.intern(chunking),
                    model=sys.intern(model),
                )
                for source, key, fingerprint, extract, chunking, model in self._db.execute(
                    "SELECT source, key, fingerprint, extract, chunking, model FROM items"
                )
            }

    def is_published(self, source: int, key: str) -> bool:
        """The item can be found now."""
        with faults(self._file):
            found = self._db.execute("SELECT 1 FROM items WHERE source = ? AND key = ?", (source, key)).fetchone()
        return found is not None

    # --- what was read -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Several changes in one transaction: all of them are kept, or none if anything in it fails."""
        if self._in_batch:
            raise RuntimeError("a batch is open already")
        with self._transaction():
            self._in_batch = True
            try:
                yield
                self._require_whole_batch()
            finally:
                self._in_batch = False

    def find_read(self, source: int, key: str) -> Read | None:
        """As what an item was last read, with the chunks that wait to be published."""
        with faults(self._file):
            row = self._db.execute(
                "SELECT fingerprint, content, chunking, chunks FROM reads WHERE source = ? AND key = ?", (source, key)
            ).fetchone()
        if row is None:
            return None
        fingerprint, content, chunking, packed = row
        chunks = None if packed is None else self._unpack_chunks(packed)
        return Read(fingerprint=fingerprint, content=content, chunking=chunking, chunks=chunks)

    def save_read(self, source: int, key: str, fingerprint: str, content: str) -> None:
        """An item was read as this content. Chunks that were cut from another content are dropped."""
        with self._transaction():
            self._db.execute(
                """INSERT INTO reads (source, key, fingerprint, content) VALUES (?, ?, ?, ?)
                ON CONFLICT (source, key) DO UPDATE SET
                    chunking = CASE WHEN content = excluded.content THEN chunking END,
                    chunks = CASE WHEN content = excluded.content THEN chunks END,
                    fingerprint = excluded.fingerprint, content = excluded.content""",
                (source, key, fingerprint, content),
            )

    def forget_reads(self) -> None:
        """Nothing of what was read before is to be used again; what is published stays."""
        with self._transaction():
            for table in ("reads", "documents", "pages"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - one of three constants

    def save_chunks(self, source: int, key: str, chunking: str, chunks: Sequence[Chunk]) -> None:
        """The chunks of an item, until they are published. ValueError when the item was not saved as read before."""
        packed = _pack(json.dumps([[c.kind, c.text, c.keywords, c.page] for c in chunks], ensure_ascii=False).encode())
        with self._transaction():
            done = self._db.execute(
                "UPDATE reads SET chunking = ?, chunks = ? WHERE source = ? AND key = ?",
                (chunking, packed, source, key),
            )
            if not done.rowcount:
                raise ValueError(f"chunks of an item that was never read: source {source}, {key!r}")

    def find_document(self, content: str, extract: str) -> bytes | None:
        """The document of a content, as it was saved; None if there is none of this version of the extraction."""
        with faults(self._file):
            row = self._db.execute(
                "SELECT document FROM documents WHERE content = ? AND extract = ?", (content, extract)
            ).fetchone()
        return None if row is None else self._unpack(row[0])

    def save_document(self, content: str, extract: str, document: bytes) -> None:
        """Keep the whole document of a content (JSON), in place of an older one and of its waiting pages."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO documents (content, extract, document) VALUES (?, ?, ?)",
                (content, extract, _pack(document)),
            )
            self._db.execute("DELETE FROM pages WHERE content = ?", (content,))

    def save_pages(self, content: str, pages: Mapping[int, bytes]) -> None:
        """Keep pages that were read, by number, until the rest of their document is there too."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO pages (content, page, body) VALUES (?, ?, ?)",
                [(content, number, _pack(body)) for number, body in pages.items()],
            )

    def pages(self, content: str) -> dict[int, bytes]:
        """The pages of a content that wait for the rest of their document, by number."""
        with faults(self._file):
            rows = self._db.execute(
                "SELECT page, body FROM pages WHERE content = ? ORDER BY page", (content,)
            ).fetchall()
        return {number: self._unpack(body) for number, body in rows}

    # --- vectors -----------------------------------------------------------------------------------------------------

    def unknown(self, model: str, hashes: Sequence[bytes]) -> set[bytes]:
        """Which of these texts (see `text_hash`) have no vector of this model yet."""
        find = "SELECT 1 FROM vectors WHERE model = ? AND text_hash = ?"
        with faults(self._file):
            return {name for name in set(hashes) if self._db.execute(find, (model, name)).fetchone() is None}

    def add_vectors(self, model: str, hashes: Sequence[bytes], raw: bytes, dim: int) -> None:
        """Keep the vectors of texts: `raw` has a row of `dim` little-endian 32-bit floats for each of `hashes`.

        A published chunk is found by its vector from the publish on that follows. ValueError, and nothing is kept,
        when the sizes do not fit together or with the model's other vectors, or a number is not finite.
        """
        width = 4 * dim
        if not model or dim < 1 or len(raw) != len(hashes) * width:
            raise ValueError(f"{len(raw)} bytes are not {len(hashes)} vectors of {dim} numbers by model {model!r}")
        if any(len(name) != TEXT_HASH_BYTES for name in hashes):
            raise ValueError(f"a text hash has {TEXT_HASH_BYTES} bytes")
        # A sum in doubles overflows for no floats, so it is finite just when all of them are.
        if not math.isfinite(sum(memoryview(raw).cast("f"))):
            raise ValueError(f"vectors of model {model} hold numbers that are not finite")
        known = self._dim(model)
        if known is not None and known != dim:
            raise ValueError(f"model {model} gave vectors of {known} numbers, and now of {dim}")
        with self._transaction():
            self._db.executemany(
                "INSERT INTO vectors (model, text_hash, vector) VALUES (?, ?, ?) "
                "ON CONFLICT (model, text_hash) DO NOTHING",
                [(model, name, raw[at * width : (at + 1) * width]) for at, name in enumerate(hashes)],
            )

    # --- what is searchable ------------------------------------------------------------------------------------------

    def publish(self, entries: Iterable[Entry], removed: Sequence[ItemKey], model: str) -> int:
        """Make `entries` searchable in place of their earlier state and forget `removed`, in one transaction.

        `model` embedded the vectors that count from now on. Returns the generation: the next one, or, when there was
        nothing to change, the present. Chunks that waited for this are dropped. `entries` may be a generator.
        """
        with self._transaction():
            generation = generation_of(self._db) + 1
            changed, waiting = False, 0
            words: _Words = {}
            for entry in entries:
                self._put(entry, generation, words)
                changed = True
                waiting += len(entry.chunks)
                if waiting >= _WORDS_AT_ONCE:
                    self._insert_words(words)
                    waiting = 0
            self._insert_words(words)
            for source, key in removed:
                changed |= self._remove(source, key)
            if model != model_of(self._db):
                # The file holds vectors of the old model. It stays on disk, for readers of the old state, until `tidy`.
                self._db.execute("DELETE FROM faiss_file")
                self._set_meta("model", model)
                changed = True
            if not changed:
                return generation - 1
            self._set_meta("generation", generation)
            return generation

    def tidy(self, *, keep: Collection[ItemKey] | None = None, model: str | None = None) -> None:
        """Drop what nobody needs any more; nothing is written when there is nothing to drop.

        Reads of items that are neither published nor in `keep` (None keeps all); documents and pages whose content
        no item has; vectors whose text stands in no chunk, published or waiting, or that are neither of the published
        model nor of `model`, the one in use (None keeps all); words of deleted text; FAISS files that do not count.
        See also `shred`.
        """
        if self._in_batch:
            raise RuntimeError("tidy within a batch")
        with self._transaction():
            if keep is not None:
                self._drop_reads(keep)
            for table in ("documents", "pages"):
                self._db.execute(
                    f"DELETE FROM {table} WHERE content NOT IN "  # noqa: S608 - one of two constants
                    "(SELECT content FROM reads UNION ALL SELECT content FROM items)"
                )
            self._drop_vectors(model)
            self._forget_words()
        self._give_room_back()
        self._remove_stray_files()

    def shred(self) -> None:
        """Rewrite the whole database, so that it holds no byte of what was deleted.

        Deleted rows are overwritten at once (`secure_delete`) and words by `tidy`, but SQLite leaves copies in the
        gaps of pages that it balanced (seen for 1 of 300 rows deleted from a small index). Readers go on undisturbed.
        Needs twice the size of the database on the disk for a while.
        """
        if self._in_batch:
            raise RuntimeError("shred within a batch")
        with self._transaction():
            self._forget_words()
        clean = self.folder / _SHREDDED
        # A copy that a crash left behind is removed here and by `tidy`.
        clean.unlink(missing_ok=True)
        with faults(self._file):
            # VACUUM itself would put its copy into memory or a shared temporary folder.
            self._db.execute("VACUUM INTO ?", (str(clean),))
            with contextlib.closing(sqlite3.connect(clean)) as source:
                source.backup(self._db)
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        clean.unlink()

    # --- the FAISS file ----------------------------------------------------------------------------------------------

    def faiss_plan(self, rebuild_share: float = 0.05) -> FaissPlan | None:
        """Whether the FAISS file should be built: there is none that can be used, or too much changed since.

        Too much: chunks newer than the file plus those deleted from it are more than 64 and more than
        `rebuild_share` of it. They are searched one by one, or masked, until then.
        """
        with faults(self._file):
            model = model_of(self._db)
            current = find_faiss(self._db)
            usable = current is not None and self._is_there(current)
            if current is not None and usable and current.generation == generation_of(self._db):
                return None
            dim = self._dim(model)
            count = count_vectors(self._db, model) if dim is not None else 0
            if dim is None or count == 0:
                return None
            if current is not None and usable:
                alive = min(current.count, count_vectors(self._db, model, current.last_chunk))
                changes = (count - alive) + (current.count - alive)
                if changes <= max(REBUILD_AT_LEAST, rebuild_share * current.count):
                    return None
        return FaissPlan(count=count, dim=dim)

    def export_vectors(self, ids_file: Path, vectors_file: Path) -> Exported:
        """Write the ids (64-bit) and vectors (32-bit floats, little-endian) of all published chunks, by chunk id.

        Holds some MB in memory however many there are. What it returns goes to `adopt_faiss`. Raises OSError;
        ValueError when there is no vector to write.
        """
        with faults(self._file), ids_file.open("wb") as ids, vectors_file.open("wb") as vectors:
            model, generation = model_of(self._db), generation_of(self._db)
            dim = self._dim(model)
            if dim is None:
                raise ValueError(f"there are no vectors of model {model!r} in {self.folder}")
            (last_chunk,) = self._db.execute("SELECT coalesce(max(id), 0) FROM chunks").fetchone()
            rows = self._db.execute(
                f"SELECT c.id, v.vector FROM chunks c {WITH_VECTORS} ORDER BY c.id",  # noqa: S608 - a constant
                {"model": model},
            )
            count = 0
            while block := rows.fetchmany(_EXPORT_ROWS):
                ids.write(b"".join(chunk.to_bytes(8, "little") for chunk, _ in block))
                vectors.write(b"".join(vector for _, vector in block))
                count += len(block)
        return Exported(count=count, dim=dim, last_chunk=last_chunk, model=model, generation=generation)

    def adopt_faiss(self, file: Path, exported: Exported) -> bool:
        """Move a finished FAISS file, built from what was `exported`, into the index. It counts from then on.

        False, and the file is left where it is, when another model was published in the meantime. Raises IndexFault
        when it is not a plain file, OSError when it cannot be moved.
        """
        if self._in_batch:
            raise RuntimeError("adopt_faiss within a batch")
        if exported.model != self.model:
            return False
        status = os.lstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise IndexFault(f"{file} is not a plain file of its own; it is not taken into {self.folder}")
        name = f"{FAISS_PREFIX}{exported.generation}{FAISS_SUFFIX}"
        _move_durably(file, self.folder / name)
        # A crash here leaves a file that no row names; `tidy` removes it, or the next build takes its name.
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO faiss_file (one, name, count, last_chunk, bytes, generation) "
                "VALUES (1, ?, ?, ?, ?, ?)",
                (name, exported.count, exported.last_chunk, status.st_size, exported.generation),
            )
        # A crash here leaves the old file, which `tidy` removes. A power cut may bring back the row of a file that is
        # gone: readers then search exactly, and `faiss_plan` asks for a new one.
        self._remove_stray_files()
        return True

    # --- how ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """BEGIN IMMEDIATE to COMMIT, or within a batch a part of its transaction. Any error rolls all of it back."""
        with faults(self._file):
            if self._in_batch:
                self._require_whole_batch()
            else:
                self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                if not self._in_batch:
                    self._db.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors, such as a full disk.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _require_whole_batch(self) -> None:
        if not self._db.in_transaction:
            raise IndexFault(f"an error undid all changes of this batch in {self._file}; save them again")

    def _put(self, entry: Entry, generation: int, words: _Words) -> None:
        """Insert or replace one item. The chunks of an item that was merely touched keep their ids and vectors.

        words: takes up those of its chunks, which are still to be inserted.
        """
        old = self._db.execute(
            "SELECT id, model FROM items WHERE source = ? AND key = ?", (entry.source, entry.key)
        ).fetchone()
        (item,) = self._db.execute(
            """INSERT INTO items (source, key, fingerprint, content, extract, chunking, model, kind, media_type, title,
                path, date, facts, partial, generation) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (source, key) DO UPDATE SET fingerprint = excluded.fingerprint, content = excluded.content,
                extract = excluded.extract, chunking = excluded.chunking, model = excluded.model,
                kind = excluded.kind, media_type = excluded.media_type, title = excluded.title, path = excluded.path,
                date = excluded.date, facts = excluded.facts, partial = excluded.partial,
                generation = excluded.generation
            RETURNING id""",
            (
                *(
                    entry.source,
                    entry.key,
                    entry.fingerprint,
                    entry.content,
                    entry.extract,
                    entry.chunking,
                    entry.model,
                ),
                *(entry.kind, entry.media_type, entry.title, entry.path, entry.date),
                *(json.dumps(dict(entry.facts)), entry.partial, generation),
            ),
        ).fetchone()
        # Another model: chunks that had no vector may have one now, and FAISS must see them as newer than its file.
        if old is None or old != (item, entry.model) or not self._has_chunks(item, entry.chunks):
            self._delete_chunks(item)
            words[item] = self._insert_chunks(item, entry.chunks)
        self._db.execute(
            "UPDATE reads SET chunks = NULL WHERE source = ? AND key = ? AND content = ? AND chunks IS NOT NULL",
            (entry.source, entry.key, entry.content),
        )

    def _remove(self, source: int, key: str) -> bool:
        self._db.execute("DELETE FROM reads WHERE source = ? AND key = ?", (source, key))
        found = self._db.execute("SELECT id FROM items WHERE source = ? AND key = ?", (source, key)).fetchone()
        if found is None:
            return False
        self._delete_chunks(found[0])
        self._db.execute("DELETE FROM items WHERE id = ?", found)
        return True

    def _has_chunks(self, item: int, chunks: Sequence[Chunk]) -> bool:
        rows = self._db.execute(
            "SELECT c.kind, c.text, w.keywords, c.page FROM chunks c JOIN words w ON w.rowid = c.id "
            "WHERE c.item = ? ORDER BY c.id",
            (item,),
        ).fetchall()
        return rows == [(chunk.kind, chunk.text, chunk.keywords, chunk.page) for chunk in chunks]

    def _insert_chunks(self, item: int, chunks: Sequence[Chunk]) -> list[tuple[int, str]]:
        """Returns their words, by their ids."""
        # One statement for all of them: the ids are those that AUTOINCREMENT would give next.
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'").fetchone()
        first = row[0] + 1 if row is not None else 1
        self._db.executemany(
            "INSERT INTO chunks (id, item, kind, page, text_hash, text) VALUES (?, ?, ?, ?, ?, ?)",
            (
                (number, item, chunk.kind, chunk.page, text_hash(chunk.text), chunk.text)
                for number, chunk in enumerate(chunks, first)
            ),
        )
        return [(number, chunk.keywords) for number, chunk in enumerate(chunks, first)]

    def _insert_words(self, words: _Words) -> None:
        """FTS5 writes down what it has gathered as soon as another statement may have to be undone: item by item that
        would be a small index for each, and as long again to merge them."""
        self._db.executemany("INSERT INTO words (rowid, keywords) VALUES (?, ?)", chain(*words.values()))
        words.clear()

    def _delete_chunks(self, item: int) -> None:
        self._db.execute("DELETE FROM words WHERE rowid IN (SELECT id FROM chunks WHERE item = ?)", (item,))
        gone = self._db.execute("DELETE FROM chunks WHERE item = ?", (item,)).rowcount
        if gone:
            self._db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('words_deleted', 1)")

    def _forget_words(self) -> None:
        """FTS5 only marks words as deleted. Merging all of its index drops them (0.3 s for 50,000 chunks)."""
        if self._db.execute("SELECT 1 FROM meta WHERE name = 'words_deleted'").fetchone():
            self._db.execute("INSERT INTO words (words) VALUES ('optimize')")
            self._db.execute("DELETE FROM meta WHERE name = 'words_deleted'")

    def _give_room_back(self) -> None:
        with faults(self._file):
            (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
            (pages,) = self._db.execute("PRAGMA page_count").fetchone()
            if free > max(_FREE_PAGES, pages // 4):
                # Each step of this statement frees one page; only a script is stepped to its end.
                self._db.executescript("PRAGMA incremental_vacuum")

    def _drop_reads(self, keep: Collection[ItemKey]) -> None:
        unpublished = self._db.execute(
            "SELECT source, key FROM reads r WHERE NOT EXISTS "
            "(SELECT 1 FROM items i WHERE i.source = r.source AND i.key = r.key)"
        ).fetchall()
        dropped = [item for item in unpublished if item not in keep]
        self._db.executemany("DELETE FROM reads WHERE source = ? AND key = ?", dropped)

    def _drop_vectors(self, model: str | None) -> None:
        if model is not None:
            self._db.execute("DELETE FROM vectors WHERE model NOT IN (?, ?)", (model, model_of(self._db)))
        unnamed = self._db.execute(
            "SELECT id, text_hash FROM vectors v WHERE NOT EXISTS "
            "(SELECT 1 FROM chunks c WHERE c.text_hash = v.text_hash)"
        ).fetchall()
        if unnamed:
            waiting = self._waiting_texts()
            self._db.executemany(
                "DELETE FROM vectors WHERE id = ?", [(id_,) for id_, name in unnamed if name not in waiting]
            )

    def _waiting_texts(self) -> set[bytes]:
        """The texts of chunks that are not published yet."""
        rows = self._db.execute("SELECT chunks FROM reads WHERE chunks IS NOT NULL")
        return {text_hash(chunk.text) for (packed,) in rows for chunk in self._unpack_chunks(packed)}

    def _remove_stray_files(self) -> None:
        (self.folder / _SHREDDED).unlink(missing_ok=True)
        current = find_faiss(self._db)
        for file in self.folder.glob(_FAISS_FILES):
            if current is None or file.name != current.name:
                file.unlink(missing_ok=True)

    def _is_there(self, faiss: FaissFile) -> bool:
        try:
            return (self.folder / faiss.name).stat().st_size == faiss.bytes
        except FileNotFoundError:
            return False

    def _dim(self, model: str) -> int | None:
        """Numbers in a vector of `model`; None when there is none."""
        with faults(self._file):
            row = self._db.execute("SELECT length(vector) FROM vectors WHERE model = ? LIMIT 1", (model,)).fetchone()
        return None if row is None else int(row[0]) // 4

    def _set_meta(self, name: str, value: int | str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value))

    def _unpack(self, packed: bytes) -> bytes:
        try:
            return zlib.decompress(packed)
        except zlib.error as error:
            raise IndexDamaged(f"{self._file} is damaged ({error}); erase it and index this user anew") from None

    def _unpack_chunks(self, packed: bytes) -> tuple[Chunk, ...]:
        rows = json.loads(self._unpack(packed))
        return tuple(Chunk(kind=kind, text=text, keywords=keywords, page=page) for kind, text, keywords, page in rows)


def _pack(raw: bytes) -> bytes:
    return zlib.compress(raw, _COMPRESSION)


def _move_durably(file: Path, target: Path) -> None:
    """Move a file so that, after a crash at any moment, `target` is either not there or whole."""
    _sync(file)
    try:
        file.replace(target)
    except OSError:
        # Another file system: copy beside the target first. The half-made copy has a name that `tidy` removes.
        half = target.with_name(f"{target.name}.part")
        shutil.copyfile(file, half)
        _sync(half)
        half.replace(target)
        file.unlink()
    _sync(target.parent)


def _sync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
