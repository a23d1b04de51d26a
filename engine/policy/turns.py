"""Whose turn it is: which of a run's users are open, who stands in line, and who has had enough for now.

Rule: a place is never empty while somebody stands in line, and nobody rests while nobody does. The line is served
first come, first served, and who rests goes to its end: nobody waits longer than one slice of each of the others. No
clock, no luck: time is what units have cost.

    join --> line --open_next--> open --charge, charge, ...--> leave
               ^                   |
               +-------rest--------+  of those that `resting` names, when what they have running has ended
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from engine.model import UserId

#: Users whose indexes are open at once. Enough for every worker of the widest preset (40, 2 for a user), with users to
#: spare that have just then nothing to begin, and most users of a night, who have little to do, never meet a line. Each
#: holds 4 descriptors of, often, 1,024, and 0.6 MB with a small index, 2 to 3 MB with one of 86 MB (measured); the
#: database's cache ends at 8 MB, so that the very worst is some 300 MB.
MOST_OPEN = 32
#: CPU seconds after which a user of weight 1 makes room for one that waits. To close a large index and open it again
#: takes 16 ms (measured), a thousandth of it, and most of the users who have anything new are through within one turn.
TURN_CPU_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """places: users open at once, at least 1; slice_seconds: a turn of a user of weight 1, in CPU seconds."""

    places: int = MOST_OPEN
    slice_seconds: float = TURN_CPU_SECONDS


def rules_for(*, workers: int, workers_per_user: int) -> Rules:
    """Places for as many users as it takes to keep so many workers busy, and not fewer than usual."""
    return Rules(places=max(MOST_OPEN, -(-workers // workers_per_user)))


@dataclass(slots=True)
class _Turn:
    """Present in the line (`used` 0) and while open."""

    weight: float
    used: float = 0.0


class Turns:
    """Users with work, in line or open. One that has left may join again."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._turns: dict[UserId, _Turn] = {}
        self._line: deque[UserId] = deque()
        #: In the order of their opening.
        self._open: dict[UserId, None] = {}
        #: In the order in which they were told to rest.
        self._resting: dict[UserId, None] = {}

    @property
    def waiting(self) -> int:
        """Users in line."""
        return len(self._line)

    @property
    def open(self) -> Collection[UserId]:
        """Users that have a place, the resting ones too."""
        return self._open.keys()

    def join(self, user: UserId, weight: float = 1.0) -> None:
        """Stand at the end of the line. weight: above 0; twice the weight has slices twice as long."""
        if user in self._turns:
            raise ValueError(f"{user!r} is in line or open already")
        self._turns[user] = _Turn(weight)
        self._line.append(user)

    def open_next(self) -> UserId | None:
        """Give a free place to the first in line; None: no place is free, or nobody waits."""
        if not self._line or len(self._open) >= self._rules.places:
            return None
        user = self._line.popleft()
        self._open[user] = None
        return user

    def charge(self, user: UserId, seconds: float) -> None:
        """A unit of an open user has ended and taken so many CPU seconds. Others are passed over."""
        if user in self._open:
            self._turns[user].used += seconds

    def resting(self) -> Collection[UserId]:
        """Those that are to begin nothing, so that others can have their places: never more than stand in line.

        A user that is named stays named until it rests, leaves, or nobody is left in line who wants its place.
        """
        wanted = max(0, len(self._line) - (self._rules.places - len(self._open)))
        while len(self._resting) > wanted:
            self._resting.popitem()
        if len(self._resting) < wanted:
            spent = [user for user in self._open if user not in self._resting and self._has_spent(self._turns[user])]
            # Whoever has had most goes first; among equals whoever was opened first.
            spent.sort(key=lambda user: -self._turns[user].used / self._turns[user].weight)
            self._resting.update(dict.fromkeys(spent[: wanted - len(self._resting)]))
        return self._resting.keys()

    def rest(self, user: UserId) -> None:
        """An open user gives up its place and stands at the end of the line, with a new slice before it."""
        turn = self._turns[user]
        self._leave_place(user)
        turn.used = 0.0
        self._line.append(user)

    def leave(self, user: UserId) -> None:
        """An open user is done, or given up. Nothing happens when it is not open."""
        if user in self._open:
            self._leave_place(user)
            del self._turns[user]

    def _has_spent(self, turn: _Turn) -> bool:
        # Something must have been done: else those with a slice of next to nothing would come and go for ever.
        return turn.used > 0.0 and turn.used >= self._rules.slice_seconds * turn.weight

    def _leave_place(self, user: UserId) -> None:
        del self._open[user]
        self._resting.pop(user, None)


class Backlog:
    """How many items of each user wait, and what of that has changed since it was last told."""

    def __init__(self) -> None:
        self._waiting: dict[UserId, int] = {}
        self._changed: dict[UserId, int] = {}

    def note(self, user: UserId, items: int) -> None:
        """So many items of the user wait now. 0: nothing is left, and the user is forgotten."""
        if self._waiting.get(user, 0) == items:
            return
        if items:
            self._waiting[user] = items
        else:
            del self._waiting[user]
        self._changed[user] = items

    def take_changes(self) -> Mapping[UserId, int]:
        """What has changed since the last call."""
        changed, self._changed = self._changed, {}
        return changed
