"""Who gets the next free token within one lane: start-time fair queueing over users.

Rule: a user's turn comes by its start tag, in cost seconds over weight. The tag is the later of what it has used
(its finish tag) and the lane's virtual time when it last began to wait, so that nobody saves up turns while away.
Knows nothing of caps or memory: the book (book.py) says who is to be passed over.

Source: Goyal, Vin, Cheng, "Start-time Fair Queueing", 1997; with several servers: Jin, Chase, Kaur, 2004. The cost
is an estimate when a turn is taken and is corrected when the lease ends, which keeps the shares true to what was used.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass, field

from engine.model import TokenKind, UserId
from engine.ports import Ask

#: Names an ask for good: the session it came from, and the id it was given there.
AskKey = tuple[str, str]


@dataclass(slots=True)
class _Flow:
    """What one lane knows of one user."""

    order: int
    floor: float
    finish: float = 0.0
    parked: bool = False
    out: int = 0
    asks: dict[TokenKind, OrderedDict[AskKey, Ask]] = field(default_factory=dict)
    #: The entry of each kind's heap that counts; all others of this user are stale.
    entries: dict[TokenKind, tuple[float, int, int, UserId]] = field(default_factory=dict)

    @property
    def start(self) -> float:
        return max(self.floor, self.finish)

    @property
    def waits(self) -> bool:
        return any(self.asks.values())


class FairQueue:
    """The asks of one lane, first come first served within a user and kind, by start tag between users."""

    def __init__(self) -> None:
        self._flows: dict[UserId, _Flow] = {}
        self._heaps: dict[TokenKind, list[tuple[float, int, int, UserId]]] = {kind: [] for kind in TokenKind}
        self._virtual = 0.0
        self._orders = 0
        self._stamps = 0
        #: Asks that stand and leases that are out, of all users. None: the lane is idle.
        self._busy = 0

    def add(self, key: AskKey, ask: Ask) -> None:
        """An ask joins its user's line."""
        flow = self._flow(ask.user)
        if not flow.waits:
            flow.floor = self._virtual
        line = flow.asks.setdefault(ask.kind, OrderedDict())
        line[key] = ask
        self._busy += 1
        if len(line) == 1 or len(flow.entries) == 0:
            self._push(ask.user, flow)

    def remove(self, key: AskKey, ask: Ask) -> None:
        """An ask leaves without having been served."""
        flow = self._flows[ask.user]
        self._drop(flow, key, ask)
        self._busy -= 1
        self._forget_if_done(ask.user, flow)

    def take(self, key: AskKey, ask: Ask) -> None:
        """An ask is served: its user is charged the estimated cost, and the lane's time moves to this turn."""
        flow = self._flows[ask.user]
        start = flow.start
        self._virtual = max(self._virtual, start)
        flow.finish = start + ask.cost_seconds / ask.weight
        flow.out += 1
        self._drop(flow, key, ask)
        self._push(ask.user, flow)

    def adopt(self, user: UserId, cost_seconds: float, weight: float) -> None:
        """A lease that an earlier scheduler lent counts as used here."""
        flow = self._flow(user)
        flow.finish = flow.start + cost_seconds / weight
        flow.out += 1
        self._busy += 1
        self._push(user, flow)

    def correct(self, user: UserId, difference_seconds: float, weight: float) -> None:
        """A lease of this lane ended and took that much more (or less) than was charged."""
        flow = self._flows[user]
        flow.out -= 1
        self._busy -= 1
        flow.finish = max(0.0, flow.finish + difference_seconds / weight)
        self._push(user, flow)
        self._forget_if_done(user, flow)

    def park(self, user: UserId) -> None:
        """The user may not be served for now, however early its turn."""
        flow = self._flows[user]
        flow.parked = True
        flow.entries.clear()

    def unpark(self, user: UserId) -> None:
        """The user may be served again, from now on: no credit for the time away."""
        flow = self._flows.get(user)
        if flow is not None and flow.parked:
            flow.parked = False
            flow.floor = self._virtual
            self._push(user, flow)

    def heads(self, kind: TokenKind) -> Generator[tuple[float, int, AskKey, Ask], None, None]:
        """The first ask of each user of this kind who is not parked, by turn: (start tag, order, key, ask).

        Leave the iterator before anything else is changed here. O(log users) for each head looked at.
        """
        heap, seen = self._heaps[kind], []
        try:
            while heap:
                entry = heapq.heappop(heap)
                flow = self._flows.get(entry[3])
                if flow is None or flow.entries.get(kind) != entry:
                    continue
                seen.append(entry)
                key, ask = next(iter(flow.asks[kind].items()))
                yield entry[0], entry[1], key, ask
        finally:
            for entry in seen:
                heapq.heappush(heap, entry)

    def asks_of(self, user: UserId) -> list[tuple[AskKey, Ask]]:
        """All asks of a user in this lane, in the order they came within each kind."""
        flow = self._flows.get(user)
        return [] if flow is None else [pair for line in flow.asks.values() for pair in line.items()]

    def _flow(self, user: UserId) -> _Flow:
        flow = self._flows.get(user)
        if flow is None:
            self._orders += 1
            flow = self._flows[user] = _Flow(order=self._orders, floor=self._virtual)
        return flow

    def _drop(self, flow: _Flow, key: AskKey, ask: Ask) -> None:
        line = flow.asks[ask.kind]
        del line[key]
        if not line:
            flow.entries.pop(ask.kind, None)

    def _push(self, user: UserId, flow: _Flow) -> None:
        """Enter the user anew in the heaps of the kinds it waits for, wherever its tag has changed."""
        if flow.parked:
            return
        for kind, line in flow.asks.items():
            entry = flow.entries.get(kind)
            if line and (entry is None or entry[0] != flow.start):
                self._stamps += 1
                flow.entries[kind] = (flow.start, flow.order, self._stamps, user)
                heapq.heappush(self._heaps[kind], flow.entries[kind])
                if len(self._heaps[kind]) > 64 + 4 * len(self._flows):
                    self._sweep(kind)

    def _sweep(self, kind: TokenKind) -> None:
        """Drop stale entries, so that a heap never holds more than a few for each user."""
        heap = [flow.entries[kind] for flow in self._flows.values() if kind in flow.entries]
        heapq.heapify(heap)
        self._heaps[kind] = heap

    def _forget_if_done(self, user: UserId, flow: _Flow) -> None:
        """Without asks and leases a user is remembered only while it has used more than its turn."""
        if not self._busy:
            # The lane is idle: a new busy period begins with a clean slate for everybody.
            self._virtual = max(self._virtual, *(other.finish for other in self._flows.values()))
            self._flows.clear()
            for heap in self._heaps.values():
                heap.clear()
        elif not flow.waits and not flow.out and flow.finish <= self._virtual:
            del self._flows[user]
