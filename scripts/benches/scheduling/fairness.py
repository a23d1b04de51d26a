"""How fairly tokens went round: the worst lag between two users, and Jain's index.

Rule: counts what users were given by real cost over weight, and knows nothing of how the desk decides. A user counts
only for as long as it is backlogged and may be served; whoever is at its cap, or out of asks, begins anew afterwards.

    lag      for two users f, g backlogged all through an interval: |W_f/w_f - W_g/w_g|, which start-time fair queueing
             on D servers keeps below (D+1)(c_f/w_f + c_g/w_g), c the largest cost of one unit (Jin, Chase, Kaur, 2004);
             c is here the larger of estimate and truth, for the turn is taken at the estimate
    Jain     (sum x)^2 / (n sum x^2) of x = W/w, over windows in which everybody counted gets many units: 1 is equal
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

#: Units that everybody counted gets in a window, on average. With fewer, the index would say how coarse units are.
UNITS_EACH = 50
#: An index over fewer users than this says little.
FEWEST_USERS = 10


class LagWatch:
    """The worst lag of every pair of some users, exact at every unit's end.

    For each pair the difference of services is followed; the worst lag of any interval is its highest value less its
    lowest since both are in. `highest[f, g]` is the highest of S_f - S_g, so that of S_g - S_f stands at [g, f].
    """

    def __init__(self, weights: Sequence[float], depth: int) -> None:
        """weights: of the users that are watched; depth: leases that may be out at once, the D of the bound."""
        count = len(weights)
        self._weights = np.array(weights)
        self._depth = depth
        self._service = np.zeros(count)
        self._largest = np.zeros(count)
        self._in = np.zeros(count, dtype=bool)
        self._base: NDArray[np.float64] = np.zeros((count, count))
        self._highest: NDArray[np.float64] = np.zeros((count, count))
        self._recent = 0.0
        #: The worst of all pairs so far: (lag, its bound), in seconds over weight.
        self.worst = (0.0, 1.0)
        self.pairs_seen = 0

    def enter(self, user: int) -> None:
        """The user is backlogged and may be served from now on."""
        if self._in[user]:
            return
        self._in[user] = True
        difference = self._service[user] - self._service
        self._base[user, :] = difference
        self._base[:, user] = -difference
        self._highest[user, :] = self._highest[:, user] = 0.0
        self.pairs_seen += int(self._in.sum()) - 1

    def leave(self, user: int) -> None:
        """It is not any more."""
        if self._in[user]:
            self._judge(user)
            self._in[user] = False

    def asked(self, user: int, seconds: float) -> None:
        """The user asks for a unit that takes so long, or is thought to."""
        self._largest[user] = max(self._largest[user], seconds)

    def served(self, user: int, seconds: float) -> None:
        """A unit of the user has ended and took so long."""
        self._service[user] += seconds / self._weights[user]
        if self._in[user]:
            row = self._service[user] - self._service - self._base[user]
            np.maximum(self._highest[user], row, out=self._highest[user])
            np.maximum(self._highest[:, user], -row, out=self._highest[:, user])
            self._judge(user)

    def recent(self) -> float:
        """The worst lag as a share of its bound since the last call."""
        recent, self._recent = self._recent, 0.0
        return recent

    def _judge(self, user: int) -> None:
        lags = self._highest[user] + self._highest[:, user]
        bounds = (self._depth + 1) * (self._largest[user] / self._weights[user] + self._largest / self._weights)
        valid = self._in & (bounds > 0)
        valid[user] = False
        if not valid.any():
            return
        shares = np.where(valid, lags / np.where(valid, bounds, 1.0), 0.0)
        at = int(shares.argmax())
        share = float(shares[at])
        self._recent = max(self._recent, share)
        if share > self.worst[0] / self.worst[1]:
            self.worst = (float(lags[at]), float(bounds[at]))


class JainWatch:
    """Jain's index over windows, each of the users that were in for the whole of it."""

    def __init__(self, weights: Sequence[float], may_count: Callable[[int], bool]) -> None:
        """may_count: is the user backlogged, and may it be served now?"""
        self._weights = weights
        self._may_count = may_count
        self._service = [0.0] * len(weights)
        self._counted: set[int] = set()
        self._at_start: list[float] = []
        self._units = 0
        self._due = 0
        #: (time at the window's end, index, users counted).
        self.windows: list[tuple[float, float, int]] = []

    def out(self, user: int) -> None:
        """The user is at its cap, or has nothing more to ask for: it does not count in this window."""
        self._counted.discard(user)

    def served(self, user: int, seconds: float, now: float) -> None:
        """A unit of the user has ended and took so long."""
        self._service[user] += seconds / self._weights[user]
        self._units += 1
        if self._units < self._due:
            return
        if len(self._counted) >= FEWEST_USERS:
            if self._units < UNITS_EACH * len(self._counted):
                return
            given = np.array([self._service[each] - self._at_start[each] for each in self._counted])
            index = float(given.sum() ** 2 / (len(given) * (given**2).sum()))
            self.windows.append((now, index, len(given)))
        self._at_start = list(self._service)
        self._counted = {each for each in range(len(self._weights)) if self._may_count(each)}
        self._units = 0
        # Users fall out on the way; what is left of them is counted again when the window might be full.
        self._due = UNITS_EACH * FEWEST_USERS
