"""After this failure: again, and how, or never?

Rule: the answer follows from the failure, the number of failed attempts and whether the last one ran alone. No clock,
no luck. A worker's own death is blamed on its item; a death from outside never is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from engine.model import Failure
from engine.reasons import CATALOGUE, Reason

#: The worker died, or had to be stopped, by its own doing.
OWN_DOING = frozenset({Reason.CRASHED, Reason.OUT_OF_MEMORY, Reason.PROTOCOL, Reason.DEADLINE, Reason.NO_PROGRESS})
#: Something outside may have changed by the next night.
PASSING = frozenset(
    {
        Reason.UNREADABLE,
        Reason.VANISHED,
        Reason.CHANGED_WHILE_READING,
        Reason.DISK_FULL,
        Reason.EMBEDDING_FAILED,
        Reason.OCR_LANGUAGE_MISSING,
        Reason.KILLED,
    }
)
#: Kills from outside that one item may suffer in a run. The kernel kills whoever is large, so a bystander is hit now
#: and then; five times while alone is a machine that cannot run this item tonight.
KILLS_ALLOWED = 5
#: Kills from outside before a unit's first order is begun, which are nobody's fault, until they count as that order's:
#: it takes a millisecond from the orders to the slate, and who is hit just then three times has the slate lie.
SPARED_ALLOWED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of the item in this run.

    retry        try once more; otherwise it has failed
    alone        with nothing else in its unit, and promised all the memory that it may ever take
    quarantine   set aside: only a new fingerprint or `failures retry` brings it back
    """

    retry: bool = False
    alone: bool = False
    quarantine: bool = False


def after_failure(failure: Failure, *, attempts: int, alone: bool) -> Verdict:
    """Decide. `attempts` counts failed ones, this one included: those that were killed from outside where this one was,
    else all others, so that nothing is condemned for what was done to it. `alone`: it had nothing else in its unit."""
    if not CATALOGUE[failure.reason].retry:
        return Verdict()
    if failure.reason in OWN_DOING:
        # Twice alone condemns; a third time condemns in any case, so that this ends whatever is said about `alone`.
        condemned = (attempts >= 2 and alone) or attempts >= 3
        return Verdict(quarantine=True) if condemned else Verdict(retry=True, alone=True)
    if failure.reason is Reason.KILLED and attempts < KILLS_ALLOWED:
        return Verdict(retry=True, alone=True)
    return Verdict()


#: How many pages of an item may be left out, one after the other, for those behind them to be read: each costs a
#: worker, and where that ran out of time, all of the time. Of a worker that lied nothing is kept.
MOST_LEFT_OUT: Final[Mapping[Reason, int]] = {
    Reason.CRASHED: 3,
    Reason.OUT_OF_MEMORY: 3,
    Reason.NO_PROGRESS: 1,
    Reason.DEADLINE: 1,
}


class Rescue(Enum):
    """What becomes of an item that was to be set aside, and of which some pages have been read."""

    NONE = "it is set aside"
    LEAVE_OUT = "it is tried once more, alone, without the page"
    KEEP = "what was read is the document"


def rescue(reason: Reason, *, page: int | None, pages: int, left_out: int, worth_keeping: bool) -> Rescue:
    """Decide. `page` was being read (None: none of them), of so many `pages`, of which so many are left out already.

    worth_keeping: what was read so far would be found.
    """
    if reason not in MOST_LEFT_OUT:
        return Rescue.NONE
    # Without its last page it would be no document.
    if page is not None and left_out < MOST_LEFT_OUT[reason] and left_out + 1 < pages:
        return Rescue.LEAVE_OUT
    return Rescue.KEEP if worth_keeping else Rescue.NONE


def worth_another_run(reason: Reason) -> bool:
    """Should the next run, by itself, try an item again that failed for this reason?"""
    return reason in PASSING


def keeps_published(reason: Reason) -> bool:
    """Does what was published of an item before stay searchable, though its new state could not be read?

    It does where the item itself is very likely as it was, or will be read soon; not where it is known to be another.
    """
    return reason in PASSING - {Reason.UNREADABLE, Reason.VANISHED}
