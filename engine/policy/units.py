"""What one lease works on: which stage comes next for a user, and how much of it makes a unit.

Rule: what was begun is finished first, so that few things are half done; a unit is large enough that its overhead
does not count, and small enough that nobody waits long for its token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.model import Stage

#: Small items go together until they take about so long: a unit costs a few milliseconds of its own.
UNIT_SECONDS = {Stage.EXTRACT: 0.25, Stage.OCR: 6.0, Stage.CHUNK: 0.3, Stage.EMBED: 2.0}
#: Where less is left than so many whole units for each that may run at once, a unit takes that share of what is left:
#: guided self-scheduling (Polychronopoulos and Kuck 1987). All cores then end within the time of a page or two.
SHARES = 2
#: Orders of one unit; a message has to hold them all.
UNIT_ORDERS = {Stage.EXTRACT: 64, Stage.OCR: 64, Stage.CHUNK: 32, Stage.EMBED: 256}
#: Bytes that are copied for one unit of extraction, all in all: its worker waits for the copies.
UNIT_BYTES = 32 << 20
#: Embedding waits until a batch is worth a lease, unless nothing else is left to wait for.
WORTHWHILE_TEXTS = 48
#: Items on their way at once, per user. Beyond, nothing new is begun: what was begun is held as rows and small records.
MOST_ON_THE_WAY = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """How much of each stage could start now, and how many items are anywhere between the first stage and the last.

    coming: units that run and may bring more texts.
    """

    extract: int = 0
    ocr: int = 0
    chunk: int = 0
    texts: int = 0
    on_the_way: int = 0
    coming: int = 0


def next_stage(backlog: Backlog) -> Stage | None:
    """The stage that the user's next unit belongs to; None: nothing can start now."""
    if backlog.texts >= WORTHWHILE_TEXTS:
        return Stage.EMBED
    if backlog.chunk:
        return Stage.CHUNK
    if backlog.ocr:
        return Stage.OCR
    if backlog.extract and backlog.on_the_way < MOST_ON_THE_WAY:
        return Stage.EXTRACT
    if backlog.texts and not backlog.coming:
        return Stage.EMBED
    return None


def whole_seconds(stage: Stage, slots: int) -> float:
    """With so much left, or more, a unit is as large as one may be. slots: units that may run at once."""
    return UNIT_SECONDS[stage] * SHARES * max(1, slots)


def unit_seconds(stage: Stage, *, left: float, slots: int) -> float:
    """Seconds of the next unit, when so much of its stage waits and so many units may run at once."""
    return min(UNIT_SECONDS[stage], left / (SHARES * max(1, slots)))


def take(stage: Stage, seconds: Iterable[float]) -> int:
    """How many of the waiting orders, whose predicted seconds come in their order, make the next unit. At least one."""
    count, total = 0, 0.0
    for one in seconds:
        if count and (total + one > UNIT_SECONDS[stage] or count >= UNIT_ORDERS[stage]):
            break
        count, total = count + 1, total + one
    return max(1, count)
