"""Who gets the next free token within one lane: start-time fair queueing over users.

Rule: a user's turn comes by its start tag, in cost seconds over weight. The tag is the later of what it has used
(its finish tag) and the lane's time when it last began to wait, so that nobody saves up turns while away.
Knows nothing of caps: a user that may not be served is parked by the book (book.py). Knows sizes only as labels.

    user -> flow: clocks, and a line of asks for each kind of token and size
    heap for each kind and size: the users' first asks, by start tag          O(log users) for each grant

Cores, calls and downloads are different things to be short of. Among those who want a token of one kind it counts what
each has used of that kind; who makes many calls is not late for the cores. Where several kinds are free, the tokens
themselves are short, and it counts what each has used of all kinds.

Source: Goyal, Vin, Cheng, "Start-time Fair Queueing", 1997; with several servers: Jin, Chase, Kaur, 2004. The cost
is an estimate when a turn is taken and is corrected when the lease ends, which keeps the shares true to what was used.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.model import TokenKind, UserId
from engine.ports import Ask

#: Names an ask for good: the session it came from, and the id it was given there.
AskKey = tuple[str, str]
#: The asks of one kind and size are alike to everybody but their users.
Line = tuple[TokenKind, int]
#: What time is kept for: each kind of token, and all of them together.
Scope = TokenKind | None
ALL: Scope = None
#: A heap is swept when it has doubled since it was last swept, and not before it holds so many entries.
_SWEEP = 64
#: The most that one lease is charged, in seconds over weight: thirty years, so no real unit. Tags beyond some 1e15 do
#: not tell seconds apart: one false number would end everybody's fairness for good.
_MOST_CHARGED = 1e9


class Turn(NamedTuple):
    """A user's first ask of one line. Earlier turns are smaller."""

    start: float
    order: int
    number: int
    user: UserId


@dataclass(slots=True)
class _Clock:
    """A user's tags in one scope."""

    floor: float
    finish: float = 0.0

    @property
    def start(self) -> float:
        return max(self.floor, self.finish)


@dataclass(slots=True)
class _Heap:
    """The turns of one line, stale ones among them until it is swept."""

    turns: list[Turn] = field(default_factory=list)
    sweep_at: int = _SWEEP


@dataclass(slots=True)
class _Flow:
    """What one lane knows of one user. `order` and an ask's number settle ties: first come, first served."""

    order: int
    out: int = 0
    clocks: dict[Scope, _Clock] = field(default_factory=dict)
    asks: dict[Line, OrderedDict[AskKey, tuple[int, Ask]]] = field(default_factory=dict)
    #: The entry of each line's heap that counts; all others of this user are stale.
    turns: dict[Line, Turn] = field(default_factory=dict)


def _charge(cost_seconds: float, weight: float) -> float:
    return min(cost_seconds / weight, _MOST_CHARGED)


class FairQueue:
    """The asks of one lane: first come first served within a user, by start tag between users."""

    def __init__(self) -> None:
        self._flows: dict[UserId, _Flow] = {}
        self._heaps: dict[Line, _Heap] = {}
        self._parked: set[UserId] = set()
        self._time: dict[Scope, float] = dict.fromkeys((ALL, *TokenKind), 0.0)
        self._orders = 0
        self._numbers = 0
        self._standing: Counter[TokenKind] = Counter()
        self._out = 0

    @property
    def kinds(self) -> Collection[TokenKind]:
        """The kinds of token that somebody here asks for."""
        return self._standing.keys()

    def add(self, key: AskKey, ask: Ask, size: int) -> None:
        """An ask joins its user's line."""
        flow = self._flow(ask.user)
        if not flow.asks:
            self._begin_to_wait(flow, ALL)
        if not any(kind is ask.kind for kind, _ in flow.asks):
            self._begin_to_wait(flow, ask.kind)
        self._numbers += 1
        flow.asks.setdefault((ask.kind, size), OrderedDict())[key] = self._numbers, ask
        self._standing[ask.kind] += 1
        self._enter(ask.user, flow, ask.kind)

    def remove(self, key: AskKey, ask: Ask, size: int) -> None:
        """An ask leaves without having been served."""
        flow = self._flows[ask.user]
        self._drop(flow, key, (ask.kind, size))
        self._enter(ask.user, flow, ask.kind)
        self._forget_if_done(ask.user, flow)

    def take(self, key: AskKey, ask: Ask, size: int) -> None:
        """An ask is served: its user is charged the estimated cost, and the lane's time moves to this turn."""
        flow = self._flows[ask.user]
        for scope in (ALL, ask.kind):
            clock = flow.clocks[scope]
            start = clock.start
            self._time[scope] = max(self._time[scope], start)
            clock.finish = start + _charge(ask.cost_seconds, ask.weight)
        flow.out += 1
        self._out += 1
        self._drop(flow, key, (ask.kind, size))
        self._enter(ask.user, flow, ask.kind)

    def adopt(self, ask: Ask) -> None:
        """A lease that an earlier scheduler lent counts as used here."""
        flow = self._flow(ask.user)
        for scope in (ALL, ask.kind):
            clock = self._clock(flow, scope)
            clock.finish = clock.start + _charge(ask.cost_seconds, ask.weight)
        flow.out += 1
        self._out += 1
        self._enter(ask.user, flow, ask.kind)

    def correct(
        self, user: UserId, kind: TokenKind, *, estimated_seconds: float, true_seconds: float, weight: float
    ) -> None:
        """A lease of this lane ended: its user is charged what it took instead of the estimate."""
        flow = self._flows[user]
        flow.out -= 1
        self._out -= 1
        difference = _charge(true_seconds, weight) - _charge(estimated_seconds, weight)
        for scope in (ALL, kind):
            clock = flow.clocks[scope]
            clock.finish = max(0.0, clock.finish + difference)
        self._enter(user, flow, kind)
        self._forget_if_done(user, flow)

    def park(self, user: UserId) -> None:
        """The user may not be served for now, however early its turn."""
        self._parked.add(user)
        flow = self._flows.get(user)
        if flow is not None:
            flow.turns.clear()

    def unpark(self, user: UserId) -> None:
        """The user may be served again, from now on: no credit for the time away."""
        if user in self._parked:
            self._parked.discard(user)
            flow = self._flows.get(user)
            if flow is not None:
                for scope in flow.clocks:
                    self._begin_to_wait(flow, scope)
                for kind in {kind for kind, _ in flow.asks}:
                    self._enter(user, flow, kind)

    def first(self, kinds: Collection[TokenKind], room: float) -> tuple[AskKey, Ask, int] | None:
        """The earliest turn among asks of these kinds that are no larger than `room`: (key, ask, size)."""
        best: dict[TokenKind, tuple[Turn, Line]] = {}
        empty: list[Line] = []
        for line, heap in self._heaps.items():
            kind, size = line
            if size > room or kind not in kinds:
                continue
            turns, known = heap.turns, best.get(kind)
            # Stale turns are thrown away only where they are in the way.
            while turns and (known is None or turns[0] < known[0]):
                if self._counts(line, turns[0]):
                    known = best[kind] = turns[0], line
                else:
                    heapq.heappop(turns)
            if not turns:
                empty.append(line)
        for line in empty:
            del self._heaps[line]
        if not best:
            return None
        turn, line = min(best.values(), key=self._turn_of_all)
        key, (_, ask) = next(iter(self._flows[turn.user].asks[line].items()))
        return key, ask, line[1]

    def asks_of(self, user: UserId) -> list[tuple[AskKey, Ask, int]]:
        """All asks of a user in this lane, in the order they came: (key, ask, size)."""
        flow = self._flows.get(user)
        if flow is None:
            return []
        standing = [
            (number, key, ask, line[1]) for line, asks in flow.asks.items() for key, (number, ask) in asks.items()
        ]
        return [entry[1:] for entry in sorted(standing, key=lambda entry: entry[0])]

    # --- how ---

    def _flow(self, user: UserId) -> _Flow:
        flow = self._flows.get(user)
        if flow is None:
            self._orders += 1
            flow = self._flows[user] = _Flow(order=self._orders)
        return flow

    def _clock(self, flow: _Flow, scope: Scope) -> _Clock:
        clock = flow.clocks.get(scope)
        if clock is None:
            clock = flow.clocks[scope] = _Clock(floor=self._time[scope])
        return clock

    def _begin_to_wait(self, flow: _Flow, scope: Scope) -> None:
        self._clock(flow, scope).floor = self._time[scope]

    def _drop(self, flow: _Flow, key: AskKey, line: Line) -> None:
        asks = flow.asks[line]
        del asks[key]
        if not asks:
            del flow.asks[line]
            flow.turns.pop(line, None)
        self._standing[line[0]] -= 1
        if not self._standing[line[0]]:
            del self._standing[line[0]]

    def _enter(self, user: UserId, flow: _Flow, kind: TokenKind) -> None:
        """Bring the heaps of a kind up to date with the user's tag and first asks."""
        if user in self._parked:
            return
        for line, asks in flow.asks.items():
            if line[0] is not kind:
                continue
            start = flow.clocks[kind].start
            number, _ = next(iter(asks.values()))
            known = flow.turns.get(line)
            if known is None or known.start != start or known.number != number:
                turn = flow.turns[line] = Turn(start, flow.order, number, user)
                heap = self._heaps.get(line)
                if heap is None:
                    heap = self._heaps[line] = _Heap()
                heapq.heappush(heap.turns, turn)
                if len(heap.turns) > heap.sweep_at:
                    self._sweep(line, heap)

    def _sweep(self, line: Line, heap: _Heap) -> None:
        """Drop stale turns, so that a heap never holds more than twice what counts."""
        heap.turns = list({turn for turn in heap.turns if self._counts(line, turn)})
        heapq.heapify(heap.turns)
        heap.sweep_at = max(_SWEEP, 2 * len(heap.turns))

    def _counts(self, line: Line, turn: Turn) -> bool:
        flow = self._flows.get(turn.user)
        return flow is not None and flow.turns.get(line) == turn

    def _turn_of_all(self, found: tuple[Turn, Line]) -> tuple[float, int, int]:
        turn = found[0]
        return self._flows[turn.user].clocks[ALL].start, turn.order, turn.number

    def _forget_if_done(self, user: UserId, flow: _Flow) -> None:
        """Without asks and leases a user is remembered only while it has used more than its turn."""
        if not self._standing and not self._out:
            # The lane is idle: a new busy period begins with a clean slate for everybody.
            for other in self._flows.values():
                for scope, clock in other.clocks.items():
                    self._time[scope] = max(self._time[scope], clock.finish)
            self._flows.clear()
            self._heaps.clear()
        elif (
            not flow.asks
            and not flow.out
            and all(clock.finish <= self._time[scope] for scope, clock in flow.clocks.items())
        ):
            del self._flows[user]
