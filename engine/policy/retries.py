"""After this failure: again, and how, or never?

Rule: the answer follows from the failure, the number of failed attempts and whether the last one ran alone. No clock,
no luck. A worker's own death is blamed on its item; a death from outside never is.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """Decide. `attempts` counts failed ones, this one included; `alone`: this one had nothing else in its unit."""
    if not CATALOGUE[failure.reason].retry:
        return Verdict()
    if failure.reason in OWN_DOING:
        # Twice alone condemns; a third time condemns in any case, so that this ends whatever is said about `alone`.
        condemned = (attempts >= 2 and alone) or attempts >= 3
        return Verdict(quarantine=True) if condemned else Verdict(retry=True, alone=True)
    if failure.reason is Reason.KILLED and attempts < KILLS_ALLOWED:
        return Verdict(retry=True, alone=True)
    return Verdict()


def worth_another_run(reason: Reason) -> bool:
    """Should the next run, by itself, try an item again that failed for this reason?"""
    return reason in PASSING


def keeps_published(reason: Reason) -> bool:
    """Does what was published of an item before stay searchable, though its new state could not be read?

    It does where the item itself is very likely as it was, or will be read soon; not where it is known to be another.
    """
    return reason in PASSING - {Reason.UNREADABLE, Reason.VANISHED}
