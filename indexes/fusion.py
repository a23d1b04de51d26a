"""Several rankings -> one. Rule: pure; only the ranks count, never the scores, which cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: The constant of reciprocal rank fusion; 60 is the value of the paper, and results hardly depend on it.
RANK_OFFSET: Final = 60


def share(weight: float, rank: int) -> float:
    """What a ranking adds to the score of the item that stands at `rank` (1 is the best)."""
    return weight / (RANK_OFFSET + rank)


def fuse(rankings: Sequence[tuple[float, Sequence[int]]]) -> list[tuple[int, float]]:
    """Weighted reciprocal rank fusion (Cormack, Clarke, Buettcher, SIGIR 2009).

    `rankings` are (weight, distinct ids, best first). Returns (id, score), best first, ties by id. Rankings without
    weight add nothing, not even their ids.
    """
    scores: dict[int, float] = {}
    for weight, ids in rankings:
        if weight <= 0:
            continue
        for rank, found in enumerate(ids, start=1):
            scores[found] = scores.get(found, 0.0) + share(weight, rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
