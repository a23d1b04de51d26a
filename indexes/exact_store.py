"""Near vectors by looking at all of them: the truth that FAISS is tested against, and the way to search few vectors.

Rule: numpy only, imported where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ExactStore:
    """Vectors in memory. A VectorStore."""

    def __init__(self, ids: Sequence[int], raw: bytes, dim: int) -> None:
        """`raw` has a row of `dim` little-endian 32-bit floats for each of `ids`. ValueError when it has not."""
        import numpy as np

        if len(raw) != len(ids) * dim * 4:
            raise ValueError(f"{len(raw)} bytes are not {len(ids)} vectors of {dim} numbers")
        self._ids: NDArray[np.int64] = np.asarray(ids, dtype=np.int64)
        self._rows: NDArray[np.float32] = np.frombuffer(raw, dtype="<f4").reshape(len(ids), dim)

    @property
    def count(self) -> int:
        """Vectors in it."""
        return len(self._ids)

    @property
    def dim(self) -> int:
        """Numbers in each vector."""
        return int(self._rows.shape[1])

    def search(self, query: Sequence[float], k: int) -> list[tuple[int, float]]:
        """The `k` nearest as (id, inner product), best first, ties by id. ValueError for a query of another length."""
        import numpy as np

        scores = self._rows @ query_row(query, self.dim)
        best = np.lexsort((self._ids, -scores))[: max(0, k)]
        return [(int(self._ids[at]), float(scores[at])) for at in best]


def query_row(query: Sequence[float], dim: int) -> NDArray[Any]:
    """A query as float32 array of `dim` numbers. ValueError when it has another length or is not finite."""
    import numpy as np

    row = np.asarray(query, dtype=np.float32)
    if row.shape != (dim,):
        raise ValueError(f"the query has {row.size} numbers, the vectors have {dim}; embed it with the index's model")
    if not np.isfinite(row).all():
        raise ValueError("the query has numbers that are not finite")
    return row
