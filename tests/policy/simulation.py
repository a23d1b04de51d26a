"""A night in miniature: users with units of known true length, a book that lends the tokens, and a clock moved by hand.

Rule: units end when their time is over, of which the book learns only when they end. What each user has
been given is measured as it runs, second by second, and not as it is charged.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.policy.book import Book
from tests.policy.words import an_ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What one lease works on: what is believed of it, and what is so.

    out_seconds  how long the lease is out, where that is longer than what it works
    """

    estimated_seconds: float
    true_seconds: float
    out_seconds: float = 0.0
    kind: TokenKind = TokenKind.CPU
    memory_bytes: int = 0


@dataclass(slots=True)
class Player:
    """A user that keeps asks standing while it is present: `depth` for each of its kinds of tokens.

    unit  makes the next unit of a kind
    left  so many more asks; None: without end
    """

    name: str
    unit: Callable[[TokenKind], Unit]
    kinds: tuple[TokenKind, ...] = (TokenKind.CPU,)
    weight: float = 1.0
    lane: Lane = Lane.BULK
    depth: int = 8
    left: int | None = None
    present: bool = True
    standing: dict[str, Unit] = field(default_factory=dict)
    running: dict[LeaseId, tuple[float, Unit]] = field(default_factory=dict)
    done_seconds: Counter[TokenKind] = field(default_factory=Counter)
    largest_seconds: float = 0.0

    def given_seconds(self, now: float, kinds: Collection[TokenKind] = tuple(TokenKind)) -> float:
        """The seconds that its units of these kinds have run until now."""
        running = [(since, unit) for since, unit in self.running.values() if unit.kind in kinds]
        done = sum(self.done_seconds[kind] for kind in kinds)
        return done + sum(min(now - since, unit.true_seconds) for since, unit in running)


class Simulation:
    """Run it event by event. `order`: the users of all grants so far; `ended`: when each user's last unit ended."""

    def __init__(self, book: Book, players: Iterable[Player]) -> None:
        self.book = book
        self.now = 0.0
        self.players = {player.name: player for player in players}
        self.order: list[tuple[float, str, str]] = []
        self.ended: dict[str, float] = {}
        self._ends: list[tuple[float, int, LeaseId, str]] = []
        self._names = 0

    def start(self) -> None:
        """Everybody who is present asks, and what can be lent is lent."""
        while True:
            for player in self.players.values():
                self._refill(player)
            granted = self.book.grants()
            if not granted:
                return
            for grant in granted:
                player = self.players[self.book.tokens.leases[grant.lease_id].user]
                unit = player.standing.pop(grant.ask_id)
                player.running[grant.lease_id] = self.now, unit
                player.largest_seconds = max(player.largest_seconds, unit.estimated_seconds, unit.true_seconds)
                self.order.append((self.now, player.name, grant.ask_id))
                self._names += 1
                ends = self.now + max(unit.true_seconds, unit.out_seconds)
                heapq.heappush(self._ends, (ends, self._names, grant.lease_id, player.name))

    def step(self) -> bool:
        """The next unit ends, and what can start then starts. False when nothing runs."""
        if not self._ends:
            return False
        self.now, _, lease_id, name = heapq.heappop(self._ends)
        player = self.players[name]
        _, unit = player.running.pop(lease_id)
        player.done_seconds[unit.kind] += unit.true_seconds  # type: ignore[assignment]
        self.ended[name] = self.now
        assert self.book.give_back("night", lease_id, unit.true_seconds)
        self.start()
        return True

    def claim(self, lease_id: LeaseId, memory_bytes: int) -> bool:
        """A running unit is to be promised so much; what can start then starts."""
        met = self.book.claim("night", lease_id, memory_bytes)
        self.start()
        return met

    def leave(self, name: str) -> None:
        """The user withdraws what it waits for; what runs goes on."""
        player = self.players[name]
        player.present = False
        for ask_id in player.standing:
            self.book.withdraw("night", ask_id)
        player.standing.clear()

    def is_backlogged(self, name: str, kinds: Collection[TokenKind] = tuple(TokenKind)) -> bool:
        """It waits for a token of these kinds, and may be served: it is not at its cap."""
        waits = any(unit.kind in kinds for unit in self.players[name].standing.values())
        return waits and not self.book.tokens.at_cap(UserId(name))

    def granted(self) -> Counter[str]:
        """How many grants each user has had."""
        return Counter(name for _, name, _ in self.order)

    def _refill(self, player: Player) -> None:
        for kind in player.kinds:
            standing = sum(unit.kind is kind for unit in player.standing.values())
            while player.present and standing < player.depth and player.left != 0:
                if player.left is not None:
                    player.left -= 1
                standing += 1
                self._ask(player, player.unit(kind))

    def _ask(self, player: Player, unit: Unit) -> None:
        self._names += 1
        name = f"{player.name}-{self._names}"
        player.standing[name] = unit
        assert self.book.ask(
            "night",
            an_ask(
                name,
                player.name,
                lane=player.lane,
                kind=unit.kind,
                cost=unit.estimated_seconds,
                memory=unit.memory_bytes,
                weight=player.weight,
            ),
        )
