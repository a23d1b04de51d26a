"""Pages of one user that wait for OCR: which of them make the next unit, and how long they are likely to take.

Rule: a range of pages of one document, as it stands, so that its file is copied once; small documents go together.
Suspects go alone. Sizes follow what is left (policy/units.py): large ranges first, single pages at the end, so that all
cores end at about the same time. Forgets nothing by itself: who takes pages does them, or puts them back.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable

from engine.model import Stage
from engine.policy import units
from engine.policy.estimates import Estimate
from engine.policy.pace import Pace, Scale
from engine.way import Item


class Paces:
    """What was learned of the time that pages and files take, by kind: all users of a run share it."""

    def __init__(self, guess: Callable[[str], float]) -> None:
        """guess: seconds of a page of that media type, before any was seen."""
        self._guess = guess
        self._paces: dict[str, Pace] = {}
        self._scales: defaultdict[tuple[Stage, str], Scale] = defaultdict(Scale)

    def of(self, media_type: str) -> Pace:
        """Of the kind that the type belongs to: PDF, or a picture."""
        kind = "pdf" if media_type == "application/pdf" else "image"
        if kind not in self._paces:
            self._paces[kind] = Pace(self._guess(media_type))
        return self._paces[kind]

    def expect(self, estimate: Estimate) -> float:
        """CPU seconds that an order is likely to take, by what those of its kind have taken."""
        return estimate.seconds * self._scale_of(estimate).factor

    def learn(self, estimate: Estimate, seconds: float) -> None:
        """An order of which this was predicted took so many CPU seconds."""
        self._scale_of(estimate).learn(estimate.seconds, seconds)

    def _scale_of(self, estimate: Estimate) -> Scale:
        key = estimate.key
        return self._scales[key.stage, key.kind] if key is not None else Scale()


class PageQueue:
    """First come, first served; what was put back comes first."""

    def __init__(self, paces: Paces) -> None:
        self._paces = paces
        self._queue: deque[tuple[Item, int]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, item: Item, pages: Iterable[int]) -> None:
        """They wait behind all others."""
        self._queue.extend((item, page) for page in pages)

    def put_back(self, item: Item, page: int) -> None:
        """It was taken and not done: it is the next."""
        self._queue.appendleft((item, page))

    def drop(self, item: Item) -> None:
        """None of the item's pages waits any more."""
        self._queue = deque(entry for entry in self._queue if entry[0] is not item)

    def learn(self, item: Item, seconds: float) -> None:
        """A page of the item took so many CPU seconds."""
        item.pages_read, item.pages_seconds = item.pages_read + 1, item.pages_seconds + seconds
        self._paces.of(item.media_type).learn(seconds)

    def expect(self, item: Item) -> float:
        """CPU seconds that a page of the item is likely to take."""
        return self._paces.of(item.media_type).expect(item.pages_read, item.pages_seconds)

    def take(
        self, *, slots: int, is_live: Callable[[Item], bool], is_suspect: Callable[[Item, int], bool]
    ) -> list[tuple[Item, int]]:
        """The pages of the next unit, taken out of the queue; none: none waits. slots: units that may run at once."""
        chosen: list[tuple[Item, int]] = []
        most, total = 0.0, 0.0
        while self._queue and len(chosen) < units.UNIT_ORDERS[Stage.OCR]:
            item, page = self._queue[0]
            if not is_live(item):
                self._queue.popleft()
                continue
            seconds = self.expect(item)
            if chosen:
                is_other = chosen[-1][0] is not item
                # One that is not done within the unit would be copied twice.
                coming = seconds * len(item.pages_left) if is_other else seconds
                if total + coming > most or is_suspect(item, page):
                    break
            else:
                most = units.unit_seconds(
                    Stage.OCR, left=self._left(units.whole_seconds(Stage.OCR, slots)), slots=slots
                )
            self._queue.popleft()
            chosen.append((item, page))
            total += seconds
            if is_suspect(item, page):
                break
        return chosen

    def _left(self, enough: float) -> float:
        """Seconds of all pages that wait, as far as it matters."""
        total = 0.0
        for item, _ in self._queue:
            total += self.expect(item)
            if total >= enough:
                break
        return total
