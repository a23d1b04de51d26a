"""The seam between search and whatever finds near vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class VectorStore(Protocol):
    """Finds the vectors with the largest inner product with a query (the cosine, as all vectors have length 1)."""

    @property
    def count(self) -> int:
        """Vectors in it."""
        ...

    @property
    def dim(self) -> int:
        """Numbers in each vector."""
        ...

    def search(self, query: Sequence[float], k: int) -> list[tuple[int, float]]:
        """The `k` nearest as (id, inner product), best first, ties by id; all of them if there are fewer.

        ValueError when the query has not `dim` numbers.
        """
        ...
