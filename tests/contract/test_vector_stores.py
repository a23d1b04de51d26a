"""The contract of a VectorStore, kept by FAISS and by the exact oracle alike."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexes import faiss_store
from indexes.errors import IndexDamaged
from indexes.exact_store import ExactStore
from indexes.faiss_store import FaissStore
from indexes.store import VectorStore

Row: TypeAlias = tuple[float, ...]
Make: TypeAlias = Callable[[dict[int, Row], int], VectorStore]


def packed(rows: Sequence[Row]) -> bytes:
    return b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)


def build(folder: Path, rows: dict[int, Row], dim: int) -> Path:
    """Build a FAISS file of the rows, under a name that was not used before."""
    target = folder / f"{len(list(folder.iterdir()))}.faiss"
    ids, vectors = folder / "ids", folder / "vectors"
    ids.write_bytes(struct.pack(f"<{len(rows)}q", *rows))
    vectors.write_bytes(packed(list(rows.values())))
    count = faiss_store.build(
        ids_file=ids, vectors_file=vectors, dim=dim, target=target, progress=lambda done, total: None
    )
    assert count == len(rows)
    return target


@pytest.fixture(params=["faiss", "exact"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes a store of {id: vector}, of each kind in turn."""
    if request.param == "faiss":
        return lambda rows, dim: FaissStore(build(tmp_path, rows, dim))
    return lambda rows, dim: ExactStore(list(rows), packed(list(rows.values())), dim)


#: Small whole numbers: their products are exact in 32-bit floats, and equal scores are frequent.
rows_of_three = st.dictionaries(
    st.integers(1, 2**62), st.tuples(*[st.integers(-8, 8).map(float)] * 3), min_size=1, max_size=40
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(rows=rows_of_three, query=st.tuples(*[st.integers(-8, 8).map(float)] * 3), k=st.integers(0, 50))
def test_the_nearest_come_first(make: Make, rows: dict[int, Row], query: Row, k: int) -> None:
    """The k largest inner products, best first, ties by id, each with an id that has it."""
    found = make(rows, 3).search(query, k)
    truth = {id_: sum(a * b for a, b in zip(row, query, strict=True)) for id_, row in rows.items()}
    assert [score for _, score in found] == sorted(truth.values(), reverse=True)[:k]
    assert all(truth[id_] == score for id_, score in found)
    assert found == sorted(found, key=lambda pair: (-pair[1], pair[0]))
    assert len({id_ for id_, _ in found}) == len(found)


def test_it_knows_its_size(make: Make) -> None:
    """`count` and `dim` are those of the vectors."""
    store = make({5: (1.0, 0.0), 9: (0.0, 1.0), 2: (0.5, 0.5)}, 2)
    assert (store.count, store.dim) == (3, 2)


def test_nothing_is_found_in_nothing(make: Make) -> None:
    """An empty store answers with an empty list."""
    store = make({}, 4)
    assert (store.count, store.dim, store.search((1.0, 0.0, 0.0, 0.0), 5)) == (0, 4, [])


@pytest.mark.parametrize("query", [(1.0,), (1.0, 0.0, 0.0), ()])
def test_a_query_of_another_length_is_refused(make: Make, query: Row) -> None:
    """A query that another model made is an error, not a wrong answer."""
    with pytest.raises(ValueError, match="embed it with the index's model"):
        make({1: (1.0, 0.0)}, 2).search(query, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_query_that_is_no_vector_is_refused(make: Make, bad: float) -> None:
    """Infinite numbers and NaN would put the vectors into no order at all."""
    with pytest.raises(ValueError, match="not finite"):
        make({1: (1.0, 0.0)}, 2).search((bad, 0.0), 1)


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    """Ids without vectors, or vectors of another length, make no file."""
    (tmp_path / "ids").write_bytes(struct.pack("<2q", 1, 2))
    (tmp_path / "vectors").write_bytes(struct.pack("<3f", 1, 0, 0))
    with pytest.raises(ValueError, match="same number of rows"):
        faiss_store.build(
            ids_file=tmp_path / "ids",
            vectors_file=tmp_path / "vectors",
            dim=3,
            target=tmp_path / "out.faiss",
            progress=lambda done, total: None,
        )
    assert not (tmp_path / "out.faiss").exists()
    with pytest.raises(ValueError, match="not 2 vectors"):
        ExactStore([1, 2], bytes(12), 3)


def test_a_build_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told block by block, and all blocks are in the file."""
    monkeypatch.setattr(faiss_store, "_BUILD_ROWS", 4)
    seen: list[tuple[int, int]] = []
    rows = {number: (float(number), 1.0) for number in range(10)}
    (tmp_path / "ids").write_bytes(struct.pack("<10q", *rows))
    (tmp_path / "vectors").write_bytes(packed(list(rows.values())))
    faiss_store.build(
        ids_file=tmp_path / "ids",
        vectors_file=tmp_path / "vectors",
        dim=2,
        target=tmp_path / "out.faiss",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert FaissStore(tmp_path / "out.faiss").search((1.0, 0.0), 3) == [(9, 9.0), (8, 8.0), (7, 7.0)]


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_a_damaged_file_is_recognised(tmp_path: Path, damage: str) -> None:
    """A file that FAISS cannot read is IndexDamaged, with the name of the file."""
    file = build(tmp_path, {number: (1.0, float(number)) for number in range(100)}, 2)
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": bytes(range(256)) * 8}[damage])
    with pytest.raises(IndexDamaged, match=file.name):
        FaissStore(file)


def test_a_file_that_is_not_there_is_no_damage(tmp_path: Path) -> None:
    """Whoever opens it can tell a file that was replaced from one that was spoiled."""
    with pytest.raises(FileNotFoundError):
        FaissStore(tmp_path / "none.faiss")


def test_a_file_may_be_deleted_while_it_is_open(tmp_path: Path) -> None:
    """A writer removes old files without asking who searches in them."""
    file = build(tmp_path, {7: (1.0, 0.0)}, 2)
    store = FaissStore(file)
    file.unlink()
    assert store.search((1.0, 0.0), 1) == [(7, 1.0)]
