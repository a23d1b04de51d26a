"""How many seconds does a page take? Learned in the run itself, as machines, languages and papers differ tenfold.

Rule: a mean that begins at a guess and forgets slowly. Nothing in it is anybody's: it is of a kind of page, and what
is known of one document is kept by whoever reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: A new page never counts less than this: after some thirty the guess, and what lay far back, is forgotten.
_LEAST_WEIGHT: Final = 1 / 16
#: So many pages of a document say as much of the next one as all others of its kind.
_OWN_PAGES: Final = 2


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
