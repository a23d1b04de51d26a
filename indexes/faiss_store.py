"""Near vectors by FAISS, and the building of its files.

Rule: a file is built once and never changed; it is mapped, not read, so that a search touches only what it needs and
several processes share the memory. FAISS hangs in a forked child: use this in processes that were started anew.

A flat index: exact, as small as the vectors themselves, and fast enough for what one person has (6 ms for 100,000
vectors of 384 numbers, one thread). It can be searched while rows that are newer than it are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from indexes.errors import IndexDamaged
from indexes.exact_store import query_row

#: Rows copied at a time: 25 MB at 384 numbers a row. The index itself holds all of them.
_BUILD_ROWS: Final = 16_384


def build(*, ids_file: Path, vectors_file: Path, dim: int, target: Path, progress: Callable[[int, int], None]) -> int:
    """Write the FAISS file `target`: inner products over the vectors, under the ids. Returns how many there are.

    `ids_file` holds 64-bit integers, `vectors_file` as many rows of `dim` 32-bit floats, both little-endian.
    `progress(done, total)` is called after each block. Raises ValueError when the files do not fit together, OSError.
    """
    import faiss
    import numpy as np

    count, rest = divmod(ids_file.stat().st_size, 8)
    if dim < 1 or rest or vectors_file.stat().st_size != count * dim * 4:
        raise ValueError(
            f"{vectors_file.name} and {ids_file.name} do not hold the same number of rows of {dim} numbers"
        )
    _one_thread(faiss)
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
    with ids_file.open("rb") as ids, vectors_file.open("rb") as vectors:
        done = 0
        while done < count:
            size = min(_BUILD_ROWS, count - done)
            rows = np.fromfile(vectors, dtype="<f4", count=size * dim).reshape(size, dim)
            index.add_with_ids(rows, np.fromfile(ids, dtype="<i8", count=size))
            done += size
            progress(done, count)
    faiss.write_index(index, str(target))
    return count


class FaissStore:
    """A FAISS file, open for search. A VectorStore. The file may be deleted meanwhile."""

    def __init__(self, file: Path) -> None:
        """Raises FileNotFoundError when there is no file, IndexDamaged when it is not one that `build` wrote."""
        import faiss

        _one_thread(faiss)
        if not file.exists():
            raise FileNotFoundError(f"there is no FAISS file {file}")
        try:
            # Old releases of FAISS cannot map flat indexes; they read the whole file.
            self._index: Any = faiss.read_index(str(file), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
        except RuntimeError as error:
            said = str(error).splitlines()[0][:200]
            raise IndexDamaged(f"{file} is no FAISS file ({said}); it is built anew by the next run") from None
        self._count, self._dim = int(self._index.ntotal), int(self._index.d)

    @property
    def count(self) -> int:
        """Vectors in it."""
        return self._count

    @property
    def dim(self) -> int:
        """Numbers in each vector."""
        return self._dim

    def search(self, query: Sequence[float], k: int) -> list[tuple[int, float]]:
        """The `k` nearest as (id, inner product), best first, ties by id. ValueError for a query of another length.

        Which of several equal ones at the end of the list are in it is FAISS's choice.
        """
        row = query_row(query, self._dim)
        k = min(k, self._count)
        if k < 1:
            return []
        scores, ids = self._index.search(row.reshape(1, -1), k)
        found = [(int(id_), float(score)) for id_, score in zip(ids[0], scores[0], strict=True) if id_ >= 0]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def _one_thread(faiss: Any) -> None:
    # A worker's token and a search each stand for one core.
    faiss.omp_set_num_threads(1)
