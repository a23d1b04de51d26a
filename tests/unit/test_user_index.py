"""One user's index: publishing, searching, tidying, and what a crash, a rival or damage may do to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import text
from indexes import faiss_store, fusion, lock, paths, schema
from indexes.errors import IndexBusy, IndexDamaged, IndexFault, NewerIndex, NoIndex
from indexes.reader import open_reader
from indexes.records import Chunk, Entry, Filters, Hit
from indexes.writer import Writer, is_locked, open_writer, text_hash

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL, DIM = "toy-3", 3


def unit(*numbers: float) -> tuple[float, ...]:
    length = sum(number * number for number in numbers) ** 0.5
    return tuple(number / length for number in numbers)


X, Y, Z = unit(1, 0, 0), unit(0, 1, 0), unit(0, 0, 1)


def chunk(words: str, *, kind: str = "file_chunk", page: int = 0) -> Chunk:
    return Chunk(kind=kind, text=words, keywords=" ".join(text.keywords(words)), page=page)


def entry(key: str, *words: str, source: int = 1, model: str = MODEL, **fields: object) -> Entry:
    """An item whose chunks have these texts."""
    values: dict[str, object] = {
        "fingerprint": f"fingerprint of {key}",
        "content": f"content of {key}",
        "extract": "e1",
        "chunking": "c1",
        "kind": "file",
        "media_type": "text/plain",
        "title": f"Title of {key}",
        "path": f"folder/{key}",
        "chunks": tuple(chunk(part) for part in words),
        **fields,
    }
    return Entry(source=source, key=key, model=model, **values)  # type: ignore[arg-type]


def learn(writer: Writer, vectors: Mapping[str, Sequence[float]], model: str = MODEL) -> None:
    """Keep the vectors of these texts."""
    dim = len(next(iter(vectors.values())))
    raw = b"".join(struct.pack(f"<{dim}f", *vector) for vector in vectors.values())
    writer.add_vectors(model, [text_hash(words) for words in vectors], raw, dim)


def build_faiss(writer: Writer, spool: Path) -> bool:
    """What the index stage does, in this process."""
    spool.mkdir(exist_ok=True)
    exported = writer.export_vectors(spool / "ids", spool / "vectors")
    faiss_store.build(
        ids_file=spool / "ids",
        vectors_file=spool / "vectors",
        dim=exported.dim,
        target=spool / "out.faiss",
        progress=lambda done, total: None,
    )
    return writer.adopt_faiss(spool / "out.faiss", exported)


def words_of(question: str) -> list[list[str]]:
    return text.query_keywords(question)


def search(folder: Path, question: str = "", vector: Sequence[float] | None = None, **options: object) -> list[Hit]:
    with open_reader(folder) as reader:
        return reader.search(groups=words_of(question), vector=vector, **options)  # type: ignore[arg-type]


def keys(hits: Sequence[Hit]) -> list[str]:
    return [hit.key for hit in hits]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return paths.make_user_dir(tmp_path / "indexes", "ann@example.com")


# --- folders ---------------------------------------------------------------------------------------------------------


@given(user=st.text(min_size=1, max_size=200), other=st.text(min_size=1, max_size=200))
def test_every_user_has_a_folder_of_their_own(user: str, other: str) -> None:
    """Names become folders that are safe, visible, short enough, never shared, and mostly read back."""
    name = paths.user_dir(Path("/r"), user).name
    assert paths.user_dir(Path("/r"), user).parent == Path("/r")
    assert name.isascii()
    assert not name.startswith(".")
    assert 0 < len(name) <= paths.MAX_NAME_BYTES
    assert name == name.lower()
    assert paths.user_of(name) in (user, None)
    assert (paths.user_of(name) == user) == ("~" not in name)
    assert (name == paths.user_dir(Path("/r"), other).name) == (user == other)


@pytest.mark.parametrize(
    ("user", "name"),
    [
        ("ann@example.com", "ann@example.com"),
        ("Ann", "%41nn"),
        ("..", "%2e."),
        ("a/b", "a%2fb"),
        ("jürgen", "j%c3%bcrgen"),
    ],
)
def test_folder_names_are_readable(user: str, name: str) -> None:
    """An operator can see whose folder it is."""
    assert paths.user_dir(Path("/r"), user).name == name


def test_a_long_name_is_cut_and_stays_its_own() -> None:
    """Two long names with the same beginning have two folders."""
    one, two = (paths.user_dir(Path("/r"), "x" * 500 + end).name for end in "12")
    assert one != two
    assert one[:80] == "x" * 80
    assert len(one) <= 150


def test_a_user_needs_a_name() -> None:
    """No name is no folder: it would be the root of all of them."""
    with pytest.raises(ValueError, match="name"):
        paths.user_dir(Path("/r"), "")


@pytest.mark.parametrize("name", ["lost+found.A", "a~b", "%zz", ".hidden", "%41", ""])
def test_foreign_folders_are_nobodys(name: str) -> None:
    """Only a name that `user_dir` would give names a user ("%41" is how "A" is written, and so is one)."""
    assert paths.user_of(name) == ("A" if name == "%41" else None)


def test_a_users_folder_is_private(folder: Path) -> None:
    """Only the engine's account may look in."""
    assert folder.stat().st_mode & 0o777 == 0o700


def test_erase_leaves_nothing(folder: Path) -> None:
    """Database, FAISS files, attachments: all gone, with the leftovers of an erase that was killed; twice is fine."""
    with open_writer(folder) as writer:
        writer.publish([entry("a", "secret words")], [], MODEL)
        with pytest.raises(IndexBusy):
            paths.erase(folder)
    (folder / "parts").mkdir()
    (folder / "parts" / "x.pdf").write_bytes(b"x")
    killed = folder.parent / ".erased-0123"
    killed.mkdir()
    paths.erase(folder)
    paths.erase(folder)
    assert list(folder.parent.iterdir()) == []
    assert paths.stamp(folder) == ""


# --- lock ------------------------------------------------------------------------------------------------------------


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own that says a line when it is where the test wants it, and goes on when it hears one."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


HOLD = """
import sys
from pathlib import Path
from indexes.writer import open_writer
with open_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_one_writer_at_a_time_over_processes(folder: Path) -> None:
    """A second writer is refused at once, and the lock ends with the process that has it, even by SIGKILL."""
    with child(HOLD, str(folder)) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert is_locked(folder)
        with pytest.raises(IndexBusy, match="another process"):
            open_writer(folder)
        other.kill()
        other.wait()
    assert not is_locked(folder)
    with open_writer(folder) as writer:
        assert writer.generation == 0


def test_one_writer_at_a_time_within_a_process(folder: Path) -> None:
    """Two writers of one process exclude each other too; `close` may be called again."""
    with open_writer(folder) as writer:
        with pytest.raises(IndexBusy):
            open_writer(folder)
        writer.close()
        open_writer(folder).close()
    assert not is_locked(folder)


def test_a_folder_that_is_gone_is_to_be_tried_again(folder: Path) -> None:
    """Erased between being made and being locked: that is nobody's fault, and no question of permissions."""
    with pytest.raises(IndexBusy, match="has just been removed"):
        lock.take(folder / "gone")


def test_children_do_not_inherit_the_lock(folder: Path) -> None:
    """A worker that outlives its coordinator must not keep the user locked."""
    with open_writer(folder):
        sleeper = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        assert not is_locked(folder)
        open_writer(folder).close()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_borrowed_lock_stays_with_its_owner(folder: Path) -> None:
    """Whoever locked the user before opening the writer holds the lock also after it is closed."""
    held = lock.take(folder)
    try:
        with open_writer(folder, lock_fd=held) as writer:
            writer.publish([entry("a", "words")], [], MODEL)
        assert is_locked(folder)
    finally:
        os.close(held)
    assert not is_locked(folder)


def test_a_lock_on_an_erased_folder_guards_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the folder is erased between opening and locking its lock, the lock of the new folder is taken."""
    honest, calls = fcntl.flock, []

    def slow(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            shutil.rmtree(folder)
            folder.mkdir()
        honest(descriptor, operation)

    monkeypatch.setattr("indexes.lock.fcntl.flock", slow)
    held = lock.take(folder)
    monkeypatch.undo()
    try:
        assert len(calls) == 2
        assert is_locked(folder)
    finally:
        os.close(held)


# --- what was read ---------------------------------------------------------------------------------------------------


def test_what_was_read_survives_a_restart(folder: Path) -> None:
    """Reads, chunks, documents and pages come back as they were saved."""
    chunks = (chunk("first piece", page=1), chunk("日本語の文章", kind="file_sum"))
    with open_writer(folder) as writer, writer.batch():
        writer.save_read(1, "k", "f1", "c1")
        writer.save_chunks(1, "k", "v1", chunks)
        writer.save_document("c1", "e1", b'{"title": "t"}')
        writer.save_pages("c2", {3: b"three", 1: b"one"})
    with open_writer(folder) as writer:
        read = writer.find_read(1, "k")
        assert read is not None
        assert (read.fingerprint, read.content, read.chunking, read.chunks) == ("f1", "c1", "v1", chunks)
        assert writer.find_read(2, "k") is None
        assert writer.find_document("c1", "e1") == b'{"title": "t"}'
        assert writer.find_document("c1", "e2") is None
        assert writer.pages("c2") == {1: b"one", 3: b"three"}


def test_a_whole_document_replaces_its_pages(folder: Path) -> None:
    """Pages wait only as long as the document is not whole."""
    with open_writer(folder) as writer:
        writer.save_pages("c", {1: b"one"})
        writer.save_document("c", "e1", b"{}")
        assert writer.pages("c") == {}


def test_chunks_of_another_content_are_dropped(folder: Path) -> None:
    """The same content under a new fingerprint keeps its chunks; a new content does not."""
    with open_writer(folder) as writer:
        writer.save_read(1, "k", "f1", "c1")
        writer.save_chunks(1, "k", "v1", (chunk("words"),))
        writer.save_read(1, "k", "f2", "c1")
        read = writer.find_read(1, "k")
        assert read is not None
        assert (read.fingerprint, read.chunks) == ("f2", (chunk("words"),))
        writer.save_read(1, "k", "f3", "c2")
        read = writer.find_read(1, "k")
        assert read is not None
        assert (read.chunking, read.chunks) == (None, None)


def test_a_batch_is_kept_whole_or_not_at_all(folder: Path) -> None:
    """An error in a batch, even one that is caught within it, undoes all of it; the writer goes on."""

    def stopped(writer: Writer) -> None:
        with writer.batch():
            writer.save_read(1, "a", "f", "c")
            raise RuntimeError("stop")

    def glossed_over(writer: Writer) -> None:
        with writer.batch():
            writer.save_read(1, "a", "f", "c")
            with contextlib.suppress(ValueError):
                writer.save_chunks(1, "never read", "v", ())

    with open_writer(folder) as writer:
        with pytest.raises(RuntimeError, match="stop"):
            stopped(writer)
        with pytest.raises(IndexFault, match="undid all changes"):
            glossed_over(writer)
        assert writer.find_read(1, "a") is None
        writer.save_read(1, "a", "f", "c")
        assert writer.find_read(1, "a") is not None


def test_forgotten_reads_are_read_anew(folder: Path) -> None:
    """After `forget_reads` nothing is known of what was read, and the published state is as before."""
    with open_writer(folder) as writer:
        writer.save_read(1, "a", "f", "c")
        writer.save_document("c", "e", b"{}")
        writer.publish([entry("a", "words")], [], MODEL)
        writer.forget_reads()
        assert writer.find_read(1, "a") is None
        assert writer.find_document("c", "e") is None
    assert keys(search(folder, "words")) == ["a"]


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_vectors_are_known_by_model_and_text(folder: Path) -> None:
    """A text has one vector for each model; the first one stays."""
    one, two = text_hash("one"), text_hash("two")
    with open_writer(folder) as writer:
        learn(writer, {"one": X})
        learn(writer, {"one": Y})
        assert writer.unknown(MODEL, [one, two, two]) == {two}
        assert writer.unknown("other", [one]) == {one}
        writer.publish([entry("a", "one")], [], MODEL)
    assert search(folder, vector=X, mode="vector")[0].key == "a"
    with open_writer(folder) as writer:
        writer.export_vectors(folder.parent / "ids", folder.parent / "vectors")
    assert struct.unpack("<3f", (folder.parent / "vectors").read_bytes()) == X


@pytest.mark.parametrize(
    ("hashes", "raw", "dim", "complaint"),
    [
        ([text_hash("a")], bytes(8), 3, "are not 1 vectors"),
        ([b"short"], bytes(12), 3, "16 bytes"),
        ([text_hash("a")], struct.pack("<3f", 1, float("nan"), 0), 3, "not finite"),
        ([text_hash("a")], struct.pack("<3f", 1, float("inf"), 0), 3, "not finite"),
        ([text_hash("a")], bytes(8), 2, "of 3 numbers, and now of 2"),
        ([], b"", 0, "are not 0 vectors"),
    ],
)
def test_wrong_vectors_are_refused(folder: Path, hashes: list[bytes], raw: bytes, dim: int, complaint: str) -> None:
    """What does not fit, or is no number, is an error and leaves no trace."""
    with open_writer(folder) as writer:
        learn(writer, {"known": X})
        with pytest.raises(ValueError, match=complaint):
            writer.add_vectors(MODEL, hashes, raw, dim)
        assert writer.unknown(MODEL, [text_hash("a")]) == {text_hash("a")}


# --- publishing ------------------------------------------------------------------------------------------------------


def test_a_publish_is_a_generation(folder: Path) -> None:
    """Each change has the next number; nothing to do, or removing what is not there, has none."""
    with open_writer(folder) as writer:
        assert writer.publish([], [], "") == 0
        assert writer.publish([entry("a", "one"), entry("b", "two", source=2)], [], MODEL) == 1
        assert writer.publish([], [], MODEL) == 1
        assert writer.publish([], [(1, "b")], MODEL) == 1
        assert writer.publish([], [(2, "b")], MODEL) == 2
        assert writer.publish([], [], "another") == 3
        assert (writer.generation, writer.model) == (3, "another")
        published = writer.published()
    assert list(published) == [(1, "a")]
    assert published[1, "a"].fingerprint == "fingerprint of a"
    assert (published[1, "a"].extract, published[1, "a"].chunking, published[1, "a"].model) == ("e1", "c1", MODEL)


def test_a_publish_clears_what_waited_for_it(folder: Path) -> None:
    """Chunks of published items are dropped, and so is all that was known of removed ones."""
    with open_writer(folder) as writer:
        for key in "ab":
            writer.save_read(1, key, "f", f"content of {key}")
            writer.save_chunks(1, key, "c1", (chunk(key),))
        writer.publish([entry("a", "a")], [(1, "b")], MODEL)
        read = writer.find_read(1, "a")
        assert read is not None
        assert read.chunks is None
        assert writer.find_read(1, "b") is None


def test_replaced_and_removed_items_are_no_longer_found(folder: Path) -> None:
    """By words and by vector, also while a FAISS file still knows them."""
    with open_writer(folder) as writer:
        learn(writer, {"old words": X, "gone words": Y, "new thing": Z})
        writer.publish([entry("a", "old words"), entry("b", "gone words")], [], MODEL)
        assert build_faiss(writer, folder.parent / "spool")
        assert keys(search(folder, "words", X)) == ["a", "b"]
        writer.publish([entry("a", "new thing")], [(1, "b")], MODEL)
    assert search(folder, "old gone words") == []
    (hit,) = search(folder, vector=X, mode="vector")
    assert (hit.key, hit.passage) == ("a", "new thing")
    assert keys(search(folder, "thing")) == ["a"]


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_words_are_those_of_the_published_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """However many items they wait for: also where one comes twice, or leaves with the publish that brings it."""
    monkeypatch.setattr("indexes.writer._WORDS_AT_ONCE", at_once)
    with open_writer(folder) as writer:
        writer.publish([entry("a", "heron", "egret"), entry("b", "tern")], [], MODEL)
        again = [entry("a", "gull"), entry("c", "dunlin"), entry("b", "plover"), entry("a", "snipe", "ruff")]
        writer.publish(again, [(1, "c")], MODEL)
    assert [keys(search(folder, word)) for word in ("snipe", "ruff", "plover")] == [["a"], ["a"], ["b"]]
    assert not any(search(folder, word) for word in ("heron", "egret", "tern", "gull", "dunlin"))
    with contextlib.closing(sqlite3.connect(folder / "index.db")) as database:
        counts = database.execute("SELECT (SELECT count(*) FROM words), (SELECT count(*) FROM chunks)").fetchone()
    assert counts == (3, 3)


def test_a_touched_item_keeps_its_chunks(folder: Path) -> None:
    """When only a fingerprint changes the FAISS file stays as current as it was."""
    with open_writer(folder) as writer:
        learn(writer, {"one": X, "two": Y})
        writer.publish([entry("a", "one", "two")], [], MODEL)
        before = chunk_ids(folder)
        writer.publish([entry("a", "one", "two", fingerprint="touched", title="New")], [], MODEL)
        assert chunk_ids(folder) == before
        assert writer.published()[1, "a"].fingerprint == "touched"
        writer.publish([entry("a", "two", "one")], [], MODEL)
        assert not set(chunk_ids(folder)) & set(before)


def chunk_ids(folder: Path) -> list[int]:
    connection = sqlite3.connect(folder / paths.DATABASE)
    found = [id_ for (id_,) in connection.execute("SELECT id FROM chunks ORDER BY id")]
    connection.close()
    return found


def test_a_failed_publish_changes_nothing(folder: Path) -> None:
    """An error in the middle of the entries leaves the old state, all of it."""

    def entries() -> Iterator[Entry]:
        yield entry("a", "new words")
        raise RuntimeError("the middle")

    with open_writer(folder) as writer:
        writer.publish([entry("a", "old words")], [], MODEL)
        with pytest.raises(RuntimeError, match="the middle"):
            writer.publish(entries(), [], "other")
        assert (writer.generation, writer.model) == (1, MODEL)
    assert [hit.passage for hit in search(folder, "words")] == ["old words"]


PUBLISH = """
import sys
from pathlib import Path
from indexes.records import Chunk, Entry
from indexes.writer import open_writer

def entries():
    for number in range(60):
        if number == 50 and sys.argv[2] == "middle":
            print("here", flush=True)
            sys.stdin.readline()
        words = ("new " * 5000).strip()
        yield Entry(source=1, key=str(number), fingerprint="new", content="new", extract="e", chunking="c", model="m",
            kind="file", media_type="text/plain", title="t", path="p",
            chunks=tuple(Chunk(kind="file_chunk", text=words + str(part), keywords=words) for part in range(20)))

writer = open_writer(Path(sys.argv[1]))
writer.publish(entries(), [(1, "99")], "m")
print("here", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("moment", ["middle", "after"])
def test_sigkill_leaves_the_old_state_or_the_new_one(folder: Path, moment: str) -> None:
    """A process killed in the middle of a publish leaves the old state; one killed after it, the new one. No mix."""
    with open_writer(folder) as writer:
        writer.publish([entry(str(number), "old words") for number in (*range(60), 99)], [], MODEL)
    with child(PUBLISH, str(folder), moment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "here\n"
        # A part of the transaction has left the memory of the process: there is something to be undone.
        assert (folder / f"{paths.DATABASE}-wal").stat().st_size > 1_000_000
        other.send_signal(signal.SIGKILL)
        other.wait()
    new = moment == "after"
    for _ in range(2):  # before and after the next writer has looked at it
        with open_reader(folder) as reader:
            stats = reader.stats()
            old_hits = reader.search(groups=[["old"]], k=100, mode="keyword")
            new_hits = reader.search(groups=[["new"]], k=100, mode="keyword")
        assert (stats.generation, stats.items, stats.chunks) == ((2, 60, 1200) if new else (1, 61, 61))
        assert (len(old_hits), len(new_hits)) == ((0, 60) if new else (61, 0))
        with open_writer(folder) as writer:
            assert {known.fingerprint == "new" for known in writer.published().values()} == {new}


def test_a_reader_sees_one_state_while_a_writer_publishes(folder: Path) -> None:
    """Within a publish the old state is searched, after it the new one, by the same open reader."""
    with open_writer(folder) as writer:
        writer.publish([entry("a", "old words")], [], MODEL)
        with open_reader(folder) as reader:
            seen: list[str] = []

            def entries() -> Iterator[Entry]:
                yield entry("a", "new words")
                seen.extend(hit.passage for hit in reader.search(groups=words_of("words"), mode="keyword"))

            writer.publish(entries(), [], MODEL)
            assert seen == ["old words"]
            assert [hit.passage for hit in reader.search(groups=words_of("words"))] == ["new words"]


def test_a_search_is_one_snapshot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publish in the middle of a search is not seen by it, not even by its last step."""
    with open_writer(folder) as writer, open_reader(folder) as reader:
        writer.publish([entry("a", "old words")], [], MODEL)

        def fuse(rankings: Sequence[tuple[float, Sequence[int]]]) -> list[tuple[int, float]]:
            assert writer.publish([entry("b", "new words")], [(1, "a")], MODEL) == 2
            return fusion.fuse(rankings)

        monkeypatch.setattr("indexes.reader.fuse", fuse)
        assert [hit.passage for hit in reader.search(groups=words_of("words"))] == ["old words"]
        monkeypatch.undo()
        assert [hit.passage for hit in reader.search(groups=words_of("words"))] == ["new words"]


def test_a_model_switch_is_one_step(folder: Path) -> None:
    """Vectors of the next model wait unseen; the publish that names it switches all at once and leaves FAISS behind."""
    with open_writer(folder) as writer:
        learn(writer, {"one": X, "two": Y})
        writer.publish([entry("a", "one"), entry("b", "two")], [], MODEL)
        assert build_faiss(writer, folder.parent / "spool")
        learn(writer, {"one": (0.0, 1.0), "two": (1.0, 0.0)}, "toy-2")
        assert keys(search(folder, vector=X, k=1)) == ["a"]
        writer.publish([entry("a", "one", model="toy-2"), entry("b", "two", model="toy-2")], [], "toy-2")
        with open_reader(folder) as reader:
            assert reader.model == "toy-2"
            assert keys(reader.search(vector=(1.0, 0.0), k=1, mode="vector")) == ["b"]
            assert reader.stats().faiss_count == 0
            with pytest.raises(ValueError, match="embed it with the index's model"):
                reader.search(vector=X)
            # Said with the model that made it, an old vector is just not used.
            assert keys(reader.search(groups=words_of("one"), vector=X, model=MODEL)) == ["a"]
            assert reader.search(vector=X, model=MODEL, mode="vector") == []
        writer.tidy(model="toy-2")
        assert writer.unknown(MODEL, [text_hash("one")]) == {text_hash("one")}
        assert writer.unknown("toy-2", [text_hash("one")]) == set()
        assert list(folder.glob("vectors*")) == []


# --- the FAISS file --------------------------------------------------------------------------------------------------


def many(count: int, seed: int = 1) -> dict[str, tuple[float, ...]]:
    luck = random.Random(seed)
    return {f"text {seed} {number}": unit(*(luck.gauss(0, 1) for _ in range(DIM))) for number in range(count)}


def publish_many(writer: Writer, vectors: dict[str, tuple[float, ...]]) -> None:
    """One item for each text, its key being the text."""
    learn(writer, vectors)
    writer.publish([entry(words, words) for words in vectors], [], MODEL)


def test_when_the_file_is_built_anew(folder: Path) -> None:
    """Not without vectors; when there is none; when more than 64 and more than 5 % are new or deleted; when damaged."""
    with open_writer(folder) as writer:
        writer.publish([entry("a", "no vector")], [], MODEL)
        assert writer.faiss_plan() is None
        publish_many(writer, many(2000))
        plan = writer.faiss_plan()
        assert plan is not None
        assert (plan.count, plan.dim) == (2000, DIM)
        assert build_faiss(writer, folder.parent / "spool")
        assert writer.faiss_plan() is None
        publish_many(writer, many(50, seed=2))
        writer.publish([], [(1, f"text 1 {number}") for number in range(50)], MODEL)
        assert writer.faiss_plan() is None
        assert writer.faiss_plan(rebuild_share=0.04) is not None
        writer.publish([], [(1, "text 1 50")], MODEL)
        plan = writer.faiss_plan()
        assert plan is not None
        assert plan.count == 1999
        assert build_faiss(writer, folder.parent / "spool")
        assert len(list(folder.glob("vectors*"))) == 1
        (file,) = folder.glob("vectors*")
        file.write_bytes(file.read_bytes()[:-1])
        assert writer.faiss_plan() is not None
        file.unlink()
        assert writer.faiss_plan() is not None


def test_what_changes_during_a_build_is_not_lost(folder: Path) -> None:
    """Rows published between export and adoption count as newer than the file; deleted ones are masked."""
    spool = folder.parent
    with open_writer(folder) as writer:
        learn(writer, {"one": X, "two": Y, "late": Z})
        writer.publish([entry("a", "one"), entry("b", "two")], [], MODEL)
        exported = writer.export_vectors(spool / "ids", spool / "vectors")
        writer.publish([entry("c", "late")], [(1, "a")], MODEL)
        faiss_store.build(
            ids_file=spool / "ids", vectors_file=spool / "vectors", dim=3, target=spool / "f", progress=lambda *_: None
        )
        assert writer.adopt_faiss(spool / "f", exported)
        assert not (spool / "f").exists()
    assert keys(search(folder, vector=Z, mode="vector")) == ["c", "b"]


def test_a_file_of_another_model_is_not_adopted(folder: Path) -> None:
    """A switch of the model during a build makes the build useless, and the writer says so."""
    spool = folder.parent
    with open_writer(folder) as writer:
        learn(writer, {"one": X})
        writer.publish([entry("a", "one")], [], MODEL)
        exported = writer.export_vectors(spool / "ids", spool / "vectors")
        (spool / "f").write_bytes(b"built")
        writer.publish([], [], "another")
        assert not writer.adopt_faiss(spool / "f", exported)
    assert (spool / "f").exists()


def test_a_link_is_not_adopted(folder: Path) -> None:
    """What a worker left may not lead elsewhere."""
    spool = folder.parent
    with open_writer(folder) as writer:
        learn(writer, {"one": X})
        writer.publish([entry("a", "one")], [], MODEL)
        exported = writer.export_vectors(spool / "ids", spool / "vectors")
        (spool / "f").symlink_to(spool / "ids")
        with pytest.raises(IndexFault, match="not a plain file"):
            writer.adopt_faiss(spool / "f", exported)


@pytest.mark.parametrize("damage", ["missing", "cut", "noise"])
def test_search_does_without_a_file_it_cannot_use(folder: Path, damage: str) -> None:
    """A FAISS file that is gone or spoiled costs speed, never an answer."""
    with open_writer(folder) as writer:
        publish_many(writer, many(100))
        assert build_faiss(writer, folder.parent / "spool")
        expected = search(folder, vector=X, mode="vector", k=20)
        (file,) = folder.glob("vectors*")
        whole = file.read_bytes()
        file.unlink()
        if damage != "missing":
            file.write_bytes(whole[:100] if damage == "cut" else bytes(len(whole)))
    assert search(folder, vector=X, mode="vector", k=20) == expected
    assert len(expected) == 20


def test_a_file_replaced_under_a_search_is_looked_for_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading the file's name and opening it a writer may adopt the next: the reader takes a new snapshot."""
    with open_writer(folder) as writer, open_reader(folder) as reader:
        learn(writer, {"one": X, "two": Y})
        writer.publish([entry("a", "one")], [], MODEL)
        assert build_faiss(writer, folder.parent / "spool")
        honest, calls = schema.find_faiss, []

        def slow(connection: sqlite3.Connection) -> object:
            found = honest(connection)
            calls.append(found)
            if len(calls) == 1:
                writer.publish([entry("b", "two")], [], MODEL)
                assert build_faiss(writer, folder.parent / "spool")
            return found

        monkeypatch.setattr("indexes.reader.find_faiss", slow)
        assert keys(reader.search(vector=Y, mode="vector")) == ["b", "a"]
        assert len(calls) == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(data=st.data())
def test_search_agrees_with_the_oracle(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever is in the FAISS file, newer than it or deleted from it: the ranking is that of an exact scan."""
    place = tmp_path_factory.mktemp("oracle")
    folder = paths.make_user_dir(place, "u")
    whole = st.tuples(*[st.integers(-5, 5).map(float)] * DIM)
    state: dict[str, list[tuple[str, tuple[float, ...]]]] = {}
    named = 0
    with open_writer(folder) as writer:
        for _ in range(data.draw(st.integers(1, 4))):
            entries = []
            for key in data.draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=5)):
                vectors = data.draw(st.lists(whole, max_size=6))
                state[key] = [(f"text {named + at}", vector) for at, vector in enumerate(vectors)]
                named += len(vectors)
                if vectors:
                    learn(writer, dict(state[key]))
                entries.append(entry(key, *(words for words, _ in state[key])))
            removed = data.draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=2))
            removed = [key for key in removed if key not in {known.key for known in entries}]
            writer.publish(entries, [(1, key) for key in removed], MODEL)
            for key in removed:
                state.pop(key, None)
            if data.draw(st.booleans()) and writer.faiss_plan() is not None:
                assert build_faiss(writer, place / "spool")
            if data.draw(st.booleans()):
                writer.tidy(keep=(), model=MODEL)
    query = data.draw(whole)
    k = data.draw(st.integers(1, 10))
    found = search(folder, vector=query, mode="vector", k=k)
    best = {
        key: max(sum(a * b for a, b in zip(vector, query, strict=True)) for _, vector in chunks)
        for key, chunks in state.items()
        if chunks
    }
    assert [best[hit.key] for hit in found] == sorted(best.values(), reverse=True)[:k]
    assert all(hit.passage in {words for words, _ in state[hit.key]} for hit in found)


def test_newer_rows_do_not_jump_the_queue(folder: Path) -> None:
    """A poor newer row stands behind better ones of FAISS that the first look did not reach."""
    with open_writer(folder) as writer:
        # One item owns the 400 best chunks; behind it come 60 items, then a newer one that is worse than all.
        flood = {f"flood {number}": unit(1, number / 10_000, 0) for number in range(400)}
        behind = {f"behind {number}": unit(1, 1 + number / 100, 0) for number in range(60)}
        learn(writer, {**flood, **behind, "newer": unit(-1, 0, 0)})
        writer.publish([entry("flood", *flood), *(entry(words, words) for words in behind)], [], MODEL)
        assert build_faiss(writer, folder.parent / "spool")
        writer.publish([entry("newer", "newer")], [], MODEL)
    found = keys(search(folder, vector=X, mode="vector", k=62))
    assert found == ["flood", *behind, "newer"]
    assert keys(search(folder, vector=X, mode="vector", k=2)) == ["flood", "behind 0"]


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "key"),
    [
        ("किताब", "hindi"),
        ("東京", "japanese"),
        ("会議", "japanese"),
        ("Rechnungen", "german"),
        ("ПИСЬМА", "russian"),
        ("running", "english"),
        ("straße", "german"),
    ],
)
def test_words_of_any_script_are_found(folder: Path, question: str, key: str) -> None:
    """Keyword tokens of all scripts pass through the tokenizer whole."""
    with open_writer(folder) as writer:
        writer.publish(
            [
                entry("hindi", "मेरी किताब मेज़ पर है"),
                entry("japanese", "来週の会議は東京で行います"),
                entry("german", "Die Rechnung liegt in der Strasse und ist nicht bezahlt"),
                entry("russian", "я получил письмо на этой неделе"),
                entry("english", "he runs the office and it is open"),
            ],
            [],
            MODEL,
        )
    assert keys(search(folder, question, mode="keyword"))[:1] == [key]


def test_a_pair_of_characters_is_not_found_apart(folder: Path) -> None:
    """東京 (Tokyo) is not found in 京東, which holds both characters in the other order."""
    with open_writer(folder) as writer:
        writer.publish([entry("a", "京東")], [], MODEL)
    assert search(folder, "東京", mode="keyword") == []


@pytest.mark.parametrize(("written", "asked"), [("कि", "का"), ("мой", "мои"), ("naïve", "naive")])
def test_tokens_are_compared_as_they_are(folder: Path, written: str, asked: str) -> None:
    """The index folds and splits nothing by itself: what is one word is decided where tokens are made."""
    with open_writer(folder) as writer:
        chunks = (Chunk(kind="file_chunk", text="t", keywords=written),)
        writer.publish([entry("a", chunks=chunks)], [], MODEL)
    with open_reader(folder) as reader:
        assert reader.search(groups=[[asked]], mode="keyword") == []
        assert keys(reader.search(groups=[[written]], mode="keyword")) == ["a"]


@pytest.mark.parametrize(
    "term",
    [
        '"',
        '""',
        "'",
        "*",
        "a* OR b",
        "keywords:secret",
        "NEAR(a b)",
        "(",
        ")",
        "^",
        "-",
        "AND",
        "\0",
        'x"\0',
        "\ud800",
        "",
    ],
)
def test_no_term_is_an_instruction(folder: Path, term: str) -> None:
    """What looks like query syntax is just a word that stands nowhere; other words are still found."""
    with open_writer(folder) as writer:
        writer.publish([entry("a", "secret plan"), entry("b", "nothing")], [], MODEL)
    with open_reader(folder) as reader:
        assert reader.search(groups=[[term]], mode="keyword") == []
        assert keys(reader.search(groups=[[term], ["plan", term]], mode="keyword")) == ["a"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
@given(groups=st.lists(st.lists(st.text(max_size=8), max_size=4), max_size=5))
def test_any_terms_may_be_asked(tmp_path_factory: pytest.TempPathFactory, groups: list[list[str]]) -> None:
    """No text whatsoever makes a search fail."""
    folder = tmp_path_factory.getbasetemp() / "any_terms"
    if not folder.exists():
        with open_writer(folder) as writer:
            writer.publish([entry("a", "secret plan")], [], MODEL)
    with open_reader(folder) as reader:
        assert len(reader.search(groups=groups, mode="keyword")) <= 1
        assert keys(reader.search(groups=[*groups, ["plan"]], mode="keyword")) == ["a"]


def test_words_in_nearly_all_chunks_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that stands everywhere is not looked up when a rarer one stands anywhere, and is when none does."""
    monkeypatch.setattr("indexes.reader._COMMON_AT_LEAST", 3)
    with open_writer(folder) as writer:
        writer.publish([entry(f"k{number}", f"common word{number}") for number in range(20)], [], MODEL)
    with open_reader(folder) as reader:
        assert keys(reader.search(groups=[["common"], ["word7"]], k=20, mode="keyword")) == ["k7"]
        assert len(reader.search(groups=[["common"], ["nowhere"]], k=20, mode="keyword")) == 20
        assert len(reader.search(groups=[["common", "word7"]], k=20, mode="keyword")) == 20


def test_a_very_long_question_is_answered(folder: Path) -> None:
    """64 words with 8 alternatives each are within what FTS5 can parse."""
    groups = [[f"w{word}s{stem}" for stem in range(8)] for word in range(64)]
    with open_writer(folder) as writer:
        chunks = (Chunk(kind="file_chunk", text="t", keywords=" ".join(term for group in groups for term in group)),)
        writer.publish([entry("a", chunks=chunks)], [], MODEL)
    with open_reader(folder) as reader:
        assert keys(reader.search(groups=groups, mode="keyword")) == ["a"]


# --- search ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(folder: Path) -> Path:
    """Three items with two chunks each, vectors, and facts to filter by."""
    with open_writer(folder) as writer:
        learn(writer, {"apple pie": X, "apple tree": unit(9, 1, 0), "boat trip": Y, "apple boat": Z})
        writer.publish(
            [
                entry("pie", "apple pie", "apple tree", kind="mail", date=100.0, facts={"sender": "bob"}),
                entry("boat", "boat trip", source=2, media_type="application/pdf", date=200.0),
                entry("both", "apple boat", kind="event"),
            ],
            [],
            MODEL,
        )
    return folder


def test_a_hit_tells_all(library: Path) -> None:
    """Fields of the item, and its best chunk as passage."""
    (hit,) = search(library, vector=unit(9, 1, 0), mode="vector", k=1)
    assert hit == Hit(
        source=1,
        key="pie",
        kind="mail",
        media_type="text/plain",
        title="Title of pie",
        path="folder/pie",
        date=100.0,
        facts={"sender": "bob"},
        page=0,
        passage="apple tree",
        chunk_kind="file_chunk",
        score=hit.score,
    )


def test_modes_and_weights(library: Path) -> None:
    """Hybrid search lies between its two rankings; the weight says how far."""
    assert keys(search(library, "boat trip", X, mode="keyword")) == ["boat", "both"]
    assert keys(search(library, "boat trip", X, mode="vector"))[0] == "pie"
    assert keys(search(library, "boat trip", X, vector_weight=1.0))[0] == "pie"
    assert keys(search(library, "boat trip", X, vector_weight=0.1))[0] == "boat"
    assert keys(search(library, "boat trip", X, vector_weight=0.0)) == ["boat", "both"]
    assert keys(search(library, "boat trip")) == ["boat", "both"]
    scores = [hit.score for hit in search(library, "apple boat", X)]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3


@pytest.mark.parametrize("faiss", [False, True])
@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), {"pie", "boat", "both"}),
        (Filters(sources=(2,)), {"boat"}),
        (Filters(sources=(2, 3)), {"boat"}),
        (Filters(kinds=("mail", "event")), {"pie", "both"}),
        (Filters(media_types=("application/pdf",)), {"boat"}),
        (Filters(since=100.0), {"pie", "boat"}),
        (Filters(since=100.0, until=200.0), {"pie"}),
        (Filters(until=100.0), set()),
        (Filters(kinds=("mail",), sources=(2,)), set()),
        (Filters(kinds=("') OR 1=1 --",)), set()),
    ],
)
def test_filters_bind_both_rankings(library: Path, filters: Filters, expected: set[str], faiss: bool) -> None:
    """Only allowed items, and all of them."""
    if faiss:
        with open_writer(library) as writer:
            assert build_faiss(writer, library.parent / "spool")
    assert set(keys(search(library, vector=X, mode="vector", filters=filters))) == expected
    assert set(keys(search(library, "apple boat", mode="keyword", filters=filters))) == expected
    assert set(keys(search(library, "apple", X, filters=filters))) == expected


def test_a_rare_kind_is_found_among_many(folder: Path) -> None:
    """Filters reach what FAISS would never bring up among its first thousands."""
    with open_writer(folder) as writer:
        publish_many(writer, many(3000))
        learn(writer, {"needle": unit(-1, -1, -1)})
        writer.publish([entry("needle", "needle", kind="event")], [], MODEL)
        assert build_faiss(writer, folder.parent / "spool")
    assert keys(search(folder, vector=unit(1, 1, 1), filters=Filters(kinds=("event",)))) == ["needle"]


@pytest.mark.parametrize("options", [{"k": -1}, {"vector_weight": 1.5}, {"vector_weight": -0.1}])
def test_senseless_numbers_are_refused(library: Path, options: dict[str, object]) -> None:
    """Wrong options are the caller's error."""
    with pytest.raises(ValueError, match="must be at least 0, and 0 to 1"):
        search(library, "apple", None, **options)


def test_nothing_asked_nothing_found(library: Path) -> None:
    """No words, no vector or no wish for hits: an empty list."""
    assert search(library) == []
    assert search(library, "apple", k=0) == []
    assert search(library, vector=None, mode="vector") == []


@given(
    rankings=st.lists(st.tuples(st.floats(0, 1), st.lists(st.integers(0, 20), unique=True, max_size=10)), max_size=3)
)
def test_fusion_by_ranks(rankings: list[tuple[float, list[int]]]) -> None:
    """A score is the sum of weight / (60 + rank); best first, ties by id; nothing is lost and nothing is added."""
    fused = fusion.fuse(rankings)
    truth: dict[int, float] = {}
    for weight, ids in rankings:
        for at, found in enumerate(ids):
            if weight:
                truth[found] = truth.get(found, 0) + weight / (61 + at)
    assert fused == sorted(truth.items(), key=lambda pair: (-pair[1], pair[0]))


def test_stats(library: Path) -> None:
    """Counts of what is published, and bytes that are really on the disk."""
    with open_writer(library) as writer:
        writer.publish([entry("d", "no vector")], [], MODEL)
        assert build_faiss(writer, library.parent / "spool")
    with open_reader(library) as reader:
        stats = reader.stats()
    assert (stats.items, stats.chunks, stats.vectors, stats.generation) == (4, 5, 4, 2)
    assert (stats.model, stats.faiss_count) == (MODEL, 4)
    assert stats.bytes >= (library / paths.DATABASE).stat().st_size + next(library.glob("vectors*")).stat().st_size


def test_chunks_without_vectors_are_found_by_words(folder: Path) -> None:
    """While embedding is down keyword search works; a publish with the model brings the vectors in, FAISS or not."""
    with open_writer(folder) as writer:
        learn(writer, {"other": Y})
        writer.publish([entry("a", "some words", model=""), entry("b", "other")], [], MODEL)
        assert build_faiss(writer, folder.parent / "spool")
        assert keys(search(folder, "words", X)) == ["a", "b"]
        assert keys(search(folder, vector=X, mode="vector")) == ["b"]
        learn(writer, {"some words": X})
        writer.publish([entry("a", "some words")], [], MODEL)
    assert keys(search(folder, vector=X, mode="vector")) == ["a", "b"]


# --- tidying, stamps, schema -----------------------------------------------------------------------------------------


#: With these, `secure_delete` alone leaves copies behind (SQLite 3.40).
@pytest.mark.parametrize("seed", [3, 5, 6])
def test_deleted_text_is_gone_from_the_disk(folder: Path, seed: int) -> None:
    """After `shred` neither text nor keywords nor vectors of removed items stand in any byte of the folder."""
    luck = random.Random(seed)
    names = [f"zq{luck.randrange(10**9):09d}" for _ in range(300)]
    texts = {
        name: f"{name} " + " ".join(luck.choices(["alpha", "beta", "gamma"], k=luck.randrange(400))) for name in names
    }
    vectors = {name: [luck.random() for _ in range(64)] for name in names}
    with open_writer(folder) as writer:
        learn(writer, {texts[name]: vectors[name] for name in names})
        for at in range(0, 300, 30):  # several segments of the keyword index
            writer.publish([entry(name, texts[name]) for name in names[at : at + 30]], [], MODEL)
    held = b"".join(file.read_bytes() for file in folder.iterdir())
    assert all(name.encode() in held and struct.pack("<8f", *vectors[name][:8]) in held for name in names)
    gone = luck.sample(names, 150)
    with open_writer(folder) as writer:
        writer.publish([], [(1, name) for name in gone], MODEL)
        writer.tidy(keep=(), model=MODEL)
        (folder / "shredded.db").write_bytes(b"left by a crash")
        writer.shred()
        # The writer goes on with what is left.
        assert {key for _, key in writer.published()} == set(names) - set(gone)
        writer.publish([entry("later", "later words")], [], MODEL)
    held = b"".join(file.read_bytes() for file in folder.iterdir())
    assert [name for name in gone if name.encode() in held] == []
    assert [name for name in gone if struct.pack("<8f", *vectors[name][:8]) in held] == []
    assert all(name.encode() in held for name in set(names) - set(gone))
    connection = sqlite3.connect(folder / paths.DATABASE)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert keys(search(folder, "later")) == ["later"]
    with open_reader(folder) as reader:
        assert {name for name in names if reader.search(groups=[[name]], mode="keyword")} == set(names) - set(gone)


def test_tidy_drops_what_nobody_needs_and_keeps_the_rest(folder: Path) -> None:
    """Reads of unwanted items, documents and pages without a read, vectors without a text, strange FAISS files."""
    with open_writer(folder) as writer:
        for key in ("published", "waiting", "unwanted"):
            writer.save_read(1, key, "f", f"content of {key}")
            writer.save_document(f"content of {key}", "e1", b"{}")
        writer.save_document("content of nobody", "e1", b"{}")
        writer.save_pages("content of nobody", {1: b"page"})
        writer.save_pages("content of waiting", {1: b"page"})
        writer.save_chunks(1, "waiting", "c1", (chunk("text of waiting"),))
        learn(writer, {"text of published": X, "text of waiting": Y, "text of nobody": Z})
        learn(writer, {"text of published": X}, "model in the making")
        learn(writer, {"text of published": X}, "model of the past")
        writer.publish([entry("published", "text of published")], [], MODEL)
        (folder / "vectors-9.faiss").write_bytes(b"left by a crash")
        (folder / "vectors-9.faiss.part").write_bytes(b"left by a crash")
        writer.tidy(keep={(1, "waiting")}, model="model in the making")
        assert [key for key in ("published", "waiting", "unwanted") if writer.find_read(1, key)] == [
            "published",
            "waiting",
        ]
        names = [
            name
            for name in ("published", "waiting", "unwanted", "nobody")
            if writer.find_document(f"content of {name}", "e1")
        ]
        assert names == ["published", "waiting"]
        assert writer.pages("content of nobody") == {}
        assert writer.pages("content of waiting") == {1: b"page"}
        wanted = [text_hash(f"text of {name}") for name in ("published", "waiting", "nobody")]
        assert writer.unknown(MODEL, wanted) == {wanted[2]}
        assert writer.unknown("model in the making", wanted[:1]) == set()
        assert writer.unknown("model of the past", wanted[:1]) == {wanted[0]}
        assert list(folder.glob("vectors*")) == []


def test_tidy_gives_room_back(folder: Path) -> None:
    """A database that lost most of its content gets smaller."""
    with open_writer(folder) as writer:
        for number in range(40):
            writer.save_document(f"c{number}", "e", random.Random(number).randbytes(200_000))
    full = (folder / paths.DATABASE).stat().st_size
    with open_writer(folder) as writer:
        writer.tidy()
    assert (folder / paths.DATABASE).stat().st_size < full / 10


def test_the_stamp_changes_when_something_is_published_only(folder: Path) -> None:
    """Searching, opening a writer and tidying in vain leave it; a publish, even one without a proper end, does not."""
    assert paths.stamp(folder) == ""
    with open_writer(folder) as writer:
        learn(writer, {"one": X})
        writer.publish([entry("a", "one")], [], MODEL)
        assert build_faiss(writer, folder.parent / "spool")
    stamp = paths.stamp(folder)
    assert stamp
    for _ in range(2):
        assert keys(search(folder, "one", X)) == ["a"]
        assert paths.stamp(folder) == stamp
        with open_writer(folder) as writer:
            assert writer.publish([], [], MODEL) == 1
            writer.tidy(keep=(), model=MODEL)
            assert writer.faiss_plan() is None
        assert paths.stamp(folder) == stamp
    with child(PUBLISH, str(folder), "after") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "here\n"
        other.kill()
        other.wait()
    assert paths.stamp(folder) != stamp


def test_the_stamp_sees_what_is_still_in_the_log(folder: Path) -> None:
    """A publish that did not reach the database file yet (its writer goes on, or was killed) changes the stamp."""
    with open_writer(folder) as writer:
        writer.publish([entry("a", "one")], [], MODEL)
    before, file = paths.stamp(folder), (folder / paths.DATABASE).stat()
    with open_writer(folder) as writer:
        writer.publish([entry("b", "two")], [], MODEL)
        assert (folder / paths.DATABASE).stat().st_mtime_ns == file.st_mtime_ns
        assert paths.stamp(folder) != before


def test_a_closed_writer_leaves_no_log(folder: Path) -> None:
    """Also when a reader stays: the stamp that is taken then is the stamp that the next run finds."""
    with open_writer(folder) as writer, open_reader(folder) as reader:
        writer.publish([entry("a", "one")], [], MODEL)
        assert keys(reader.search(groups=[["one"]])) == ["a"]
        writer.close()
        stamp = paths.stamp(folder)
        assert "+" not in stamp
        assert keys(reader.search(groups=[["one"]])) == ["a"]
    open_writer(folder).close()
    assert paths.stamp(folder) == stamp


def test_a_newer_schema_is_refused(folder: Path) -> None:
    """Neither writer nor reader touches what a newer release wrote, and both say what to do."""
    open_writer(folder).close()
    connection = sqlite3.connect(folder / paths.DATABASE)
    connection.execute(f"PRAGMA user_version = {schema.SCHEMA + 1}")
    connection.close()
    before = (folder / paths.DATABASE).read_bytes()
    with pytest.raises(NewerIndex, match=r"index\.db has schema 2, this release knows 1; install the release"):
        open_writer(folder)
    with pytest.raises(NewerIndex):
        open_reader(folder)
    assert (folder / paths.DATABASE).read_bytes() == before
    assert not is_locked(folder)


def test_no_index(tmp_path: Path) -> None:
    """A folder that is not there, that is empty, whose database is just being made: NoIndex, and nothing is made."""
    with pytest.raises(NoIndex, match="index this user first"):
        open_reader(tmp_path / "nobody")
    with pytest.raises(NoIndex):
        open_reader(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / paths.DATABASE).touch()
    with pytest.raises(NoIndex, match="just being made"):
        open_reader(tmp_path)


def test_a_damaged_database_is_recognised(folder: Path) -> None:
    """Noise in place of a database is IndexDamaged for both, and the lock is released."""
    (folder / paths.DATABASE).write_bytes(b"no database at all " * 1000)
    with pytest.raises(IndexDamaged, match="erase it and index this user anew"):
        open_writer(folder)
    with pytest.raises(IndexDamaged):
        open_reader(folder)
    assert not is_locked(folder)


def test_damage_within_is_recognised(folder: Path) -> None:
    """A page of noise in the middle of the database is IndexDamaged when it is read."""
    with open_writer(folder) as writer:
        publish_many(writer, many(500))
    file = folder / paths.DATABASE
    raw = bytearray(file.read_bytes())
    raw[schema.PAGE_BYTES :] = bytes([0x5A]) * (len(raw) - schema.PAGE_BYTES)
    file.write_bytes(raw)
    with open_reader(folder) as reader, pytest.raises(IndexDamaged):
        reader.search(groups=[["text"]], mode="keyword")


def test_an_unfinished_creation_is_finished(folder: Path) -> None:
    """A process killed while it made the database leaves an empty one, which the next writer completes."""
    (folder / paths.DATABASE).touch()
    with open_writer(folder) as writer:
        assert writer.publish([entry("a", "words")], [], MODEL) == 1
    assert keys(search(folder, "words")) == ["a"]


def test_a_full_disk_is_said_so(folder: Path) -> None:
    """A write without room is an IndexFault with the way out, and what was there before stays."""

    def save_together(writer: Writer) -> None:
        with writer.batch():
            writer.save_read(1, "c", "f", "c")
            writer.save_document("c", "e", random.Random(1).randbytes(1_000_000))

    with open_writer(folder) as writer:
        writer.publish([entry("a", "old words")], [], MODEL)
        writer._db.execute("PRAGMA max_page_count = 60")
        with pytest.raises(IndexFault, match="free some disk space"):
            writer.publish([entry("b", "new words " * 100_000)], [], MODEL)
        with pytest.raises(IndexFault, match="free some disk space"):
            save_together(writer)
        assert writer.generation == 1
        assert writer.find_read(1, "c") is None
    assert keys(search(folder, "words")) == ["a"]


@pytest.mark.parametrize(
    "module", ["indexes.writer", "indexes.paths", "indexes.errors", "indexes.lock", "indexes.records"]
)
def test_the_writing_side_is_light(module: str) -> None:
    """A coordinator that opens a writer loads neither numpy nor FAISS."""
    code = f"import sys, {module}; print(sorted({{'numpy', 'faiss'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
