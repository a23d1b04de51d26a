"""How many seconds does a page take, or a file? Learned in the run itself: machines, languages, papers differ tenfold.

Rule: a mean that begins at a guess and forgets slowly. Nothing in it is anybody's: it is of a kind of page or file, and
what is known of one document is kept by whoever reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: A new page never counts less than this: after some thirty the guess, and what lay far back, is forgotten.
_LEAST_WEIGHT: Final = 1 / 16
#: So many pages of a document say as much of the next one as all others of its kind.
_OWN_PAGES: Final = 2
#: Of the orders before, what counts on with each new one: some thirty of them are remembered.
_KEPT: Final = 31 / 32
#: Seconds of orders that would have to prove a prediction wrong.
_TRUSTED_SECONDS: Final = 0.05
#: A prediction is never further off than that, whatever was seen.
_FURTHEST: Final = 32.0


@dataclass(slots=True)
class Pace:
    """Seconds of the pages of one kind."""

    seconds: float
    pages: int = 1

    def learn(self, seconds: float) -> None:
        """A page took so long. Raises ValueError for less than nothing."""
        if not seconds >= 0.0:
            raise ValueError(f"a page took {seconds} seconds")
        self.pages += 1
        self.seconds += (seconds - self.seconds) * max(_LEAST_WEIGHT, 1 / self.pages)

    def expect(self, own_pages: int, own_seconds: float) -> float:
        """Seconds of the next page of a document, of which so many took so long."""
        return (_OWN_PAGES * self.seconds + own_seconds) / (_OWN_PAGES + own_pages)


@dataclass(slots=True)
class Scale:
    """How many times what was predicted do orders of one kind take? Long ones count as much as they are long."""

    predicted: float = _TRUSTED_SECONDS
    took: float = _TRUSTED_SECONDS

    def learn(self, predicted: float, took: float) -> None:
        """An order took so many seconds. Raises ValueError for less than nothing."""
        if not (predicted > 0.0 and took >= 0.0):
            raise ValueError(f"an order took {took} seconds, {predicted} were predicted")
        self.predicted = self.predicted * _KEPT + predicted
        self.took = self.took * _KEPT + took

    @property
    def factor(self) -> float:
        """What a prediction is to be multiplied with; 1 before anything was seen."""
        return min(_FURTHEST, max(1 / _FURTHEST, self.took / self.predicted))
