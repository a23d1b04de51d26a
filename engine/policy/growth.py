"""A unit that runs needs more memory than it was promised: how much to ask for, and how far it may burst meanwhile.

Rule: what one unit may take before anybody is asked is a share of what is free now, so that all that run may do so at
once. Nobody is promised more than its ceiling. Knows no process and no clock; sizes are bytes of a whole worker.
"""

from __future__ import annotations

from typing import Final

#: Asked for at a time, as a multiple of what is held: an ask costs the desk some 0.1 ms, and one that is allowed a
#: quarter more than it holds would ask at every look.
GROWTH: Final = 1.5
#: Two libraries' buffers: what a unit may take over its promise where nothing at all is free. Less, and an innocent one
#: would meet its limit for how the allocator rounds.
LEAST_BURST_BYTES: Final = 16 * 1024**2
#: Of a whole budget a run itself has a part: its own memory, the scheduler's, and a sixteenth that is kept free (the
#: hard mark) and lost to rounding. What is lacking beyond that, and a sixteenth of the promise, others have.
_SCHEDULER_BYTES: Final = 64 * 1024**2
_PART: Final = 16


def limit_of(promised_bytes: int, *, ceiling_bytes: int, room_bytes: int, cores: int) -> int:
    """What the worker may hold before it meets an error of its own.

    room_bytes: neither promised nor taken, as of now; below 0 when less is there than was promised, as for a unit that
    is alone and was promised the whole budget. cores: so many others may burst at the same moment.
    """
    if room_bytes < 0:
        return max(promised_bytes + room_bytes, LEAST_BURST_BYTES)
    burst = max(LEAST_BURST_BYTES, room_bytes // (max(1, cores) + 1))
    return min(promised_bytes + burst, max(ceiling_bytes, promised_bytes))


def wish_of(resident_bytes: int, *, promised_bytes: int, ceiling_bytes: int) -> int | None:
    """What to ask for on behalf of a worker that holds more than it was promised; None: it may have no more."""
    wish = min(int(resident_bytes * GROWTH), ceiling_bytes)
    return wish if wish > promised_bytes else None


def is_deprived(*, promised_bytes: int, lacking_bytes: int, budget_bytes: int, own_bytes: int) -> bool:
    """Others have much of what a unit was promised: if it runs out of memory, that says nothing of the unit.

    lacking_bytes: of its promise. own_bytes: held by the coordinator itself.
    """
    unavoidable = budget_bytes // _PART + own_bytes + _SCHEDULER_BYTES
    return lacking_bytes - unavoidable > promised_bytes // _PART
