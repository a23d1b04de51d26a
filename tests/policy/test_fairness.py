"""Fair shares: who gets the next token, whatever the estimates were worth.

The bound, for users f and g that both wait and may be served, over any interval (Goyal, Vin, Cheng, 1997; with several
servers Jin, Chase, Kaur, 2004): their seconds over weight differ by no more than (D + 1) (c_f/w_f + c_g/w_g), where D
tokens can be out at once and c is the largest cost of a user's unit, estimated or true.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Callable, Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import Lane, LeaseId, TokenKind
from engine.policy.fairness import FairQueue
from tests.policy.simulation import Player, Simulation, Unit
from tests.policy.words import a_book, an_ask, end_lease_of, examples, granted_names, limits


class Spread:
    """How far two users drift apart in tokens of some kinds while both wait for those: in any interval, at most by
    highest minus lowest."""

    def __init__(
        self, simulation: Simulation, one: str, other: str, kinds: Collection[TokenKind] = tuple(TokenKind)
    ) -> None:
        self.simulation, self.kinds = simulation, kinds
        self.pair = simulation.players[one], simulation.players[other]
        self.lowest = self.highest = 0.0
        self.counts = False

    def look(self, tokens: int) -> None:
        """After each event: the bound holds."""
        if not all(self.simulation.is_backlogged(player.name, self.kinds) for player in self.pair):
            self.counts = False
            return
        one, other = (player.given_seconds(self.simulation.now, self.kinds) / player.weight for player in self.pair)
        if not self.counts:
            self.counts, self.lowest, self.highest = True, one - other, one - other
        self.lowest, self.highest = min(self.lowest, one - other), max(self.highest, one - other)
        bound = (tokens + 1) * sum(player.largest_seconds / player.weight for player in self.pair)
        assert self.highest - self.lowest <= bound + 1e-6


def some_units(luck: random.Random) -> Callable[[TokenKind], Unit]:
    """A user's manner: how long its units are, how well that is known, and whether it differs from unit to unit."""
    typical, error, varied = luck.choice((0.1, 1.0, 8.0)), luck.choice((0.02, 0.5, 1.0, 1.0, 3.0, 20.0)), luck.random()

    def unit(kind: TokenKind) -> Unit:
        true = typical * (luck.uniform(0.05, 1.0) if luck.random() < varied else 1.0)
        estimate = typical * error * (luck.uniform(0.2, 1.0) if luck.random() < varied else 1.0)
        return Unit(estimated_seconds=estimate, true_seconds=true, kind=kind)

    return unit


@examples(40)
@given(seed=st.integers(0, 2**32))
def test_nobody_falls_behind_its_share_by_more_than_the_bound(seed: int) -> None:
    """In each kind of token, with wrong estimates, weights, caps, users who want one kind or several, and who come
    and go, over every interval."""
    luck = random.Random(seed)
    kinds = luck.choice(((TokenKind.CPU,), (TokenKind.CPU,), (TokenKind.CPU, TokenKind.API)))
    total, cores = luck.randint(1, 7), luck.randint(1, 4)
    most_out = total - 1 if total >= 3 else total
    if kinds == (TokenKind.CPU,):
        most_out = min(most_out, cores)
    book = a_book(limits(total, luck.choice((total, total, 2)), cores))
    players = [
        Player(
            f"user{number}",
            some_units(luck),
            luck.choice((kinds, kinds, kinds[:1], kinds[1:] or kinds)),
            weight=luck.choice((0.5, 1.0, 1.0, 3.0)),
            depth=most_out + 1,
            present=number < 2 or luck.random() < 0.5,
        )
        for number in range(luck.randint(2, 5))
    ]
    if luck.random() < 0.3:
        players.append(
            Player("in a hurry", some_units(luck), kinds, lane=Lane.INTERACTIVE, depth=luck.randint(1, 3), left=30)
        )
    night = Simulation(book, players)
    spreads = [
        Spread(night, one.name, other.name, (kind,))
        for one, other in itertools.combinations((player for player in players if player.lane is Lane.BULK), 2)
        for kind in set(one.kinds) & set(other.kinds)
    ]
    night.start()
    for _ in range(250):
        for spread in spreads:
            spread.look(most_out)
        if luck.random() < 0.03:
            player = luck.choice(players)
            if player.present:
                night.leave(player.name)
            else:
                player.present = True
            night.start()
            for spread in spreads:
                spread.look(most_out)
        if not night.step():
            night.start()


@examples(20)
@given(seed=st.integers(0, 2**32))
def test_where_tokens_are_short_all_kinds_count(seed: int) -> None:
    """One user wants cores, the other makes calls; neither is short but the tokens themselves: they share those."""
    luck = random.Random(seed)
    total = luck.randint(1, 7)
    most_out = total - 1 if total >= 3 else total
    players = [
        Player(name, some_units(luck), (kind,), weight=luck.choice((0.5, 1.0, 3.0)), depth=most_out + 1)
        for name, kind in (("computes", TokenKind.CPU), ("calls", TokenKind.API))
    ]
    night = Simulation(a_book(limits(total, total, 8)), players)
    spread = Spread(night, "computes", "calls")
    night.start()
    for _ in range(250):
        spread.look(most_out)
        night.step()


def test_who_runs_ahead_with_calls_keeps_nobody_from_the_cores() -> None:
    """Calls find no obstacle, and the turns of who makes them are far ahead. Who comes late for the core shares it at
    once; so does who has made the calls, when it wants the core as well."""
    caller = Player("caller", lambda kind: CALL if kind is TokenKind.API else SECOND, (TokenKind.API,))
    night = Simulation(a_book(limits(cores=1, total=9, per_user=9)), [Player("ann", lambda _: SECOND), caller])
    night.start()
    while night.now < 300:
        night.step()
    night.players["bob"] = Player("bob", lambda _: SECOND)
    caller.kinds = (TokenKind.API, TokenKind.CPU)
    night.start()
    began = night.now
    before = {name: player.given_seconds(began, (TokenKind.CPU,)) for name, player in night.players.items()}
    while night.now < began + 30:
        night.step()
    for name, player in night.players.items():
        assert 8 <= player.given_seconds(night.now, (TokenKind.CPU,)) - before[name] <= 12, name


SECOND = Unit(estimated_seconds=1.0, true_seconds=1.0)
CALL = Unit(estimated_seconds=1.0, true_seconds=1.0, kind=TokenKind.API)


@pytest.mark.parametrize("away", ["never here", "here long ago", "only holding a lease", "at its cap"])
def test_time_away_gives_no_credit(away: str) -> None:
    """Who was not waiting, or was at its cap, shares from then on and takes nothing back of the time before."""
    units_before = {"never here": 0, "here long ago": 5, "only holding a lease": 1, "at its cap": 1}[away]
    call = Unit(estimated_seconds=0.1, true_seconds=0.1, out_seconds=300.5, kind=TokenKind.API)
    first = [call] if units_before == 1 else []
    bob = Player("bob", lambda _: first.pop() if first else SECOND, left=units_before)
    if away == "at its cap":
        bob.left = None
    book = a_book(limits(cores=1, per_user=1 if away == "at its cap" else 5))
    night = Simulation(book, [bob, Player("ann", lambda _: SECOND)])
    night.start()
    while night.now < 300:
        night.step()
    assert night.granted()["bob"] == units_before
    bob.left = None
    night.start()
    heard = len(night.order)
    while len(night.order) < heard + 20:
        night.step()
    assert 9 <= [name for _, name, _ in night.order[heard:]].count("bob") <= 11


def test_leaving_and_coming_back_pays_nothing_off() -> None:
    """Who asks for one long unit at a time, and is gone in between, gets no more than who waits all the time."""
    bob = Player("bob", lambda _: Unit(estimated_seconds=1.0, true_seconds=10.0), left=0)
    night = Simulation(a_book(limits(cores=1)), [Player("ann", lambda _: SECOND), bob])
    night.start()
    for _ in range(300):
        night.step()
        if not bob.standing and not bob.running:
            bob.left = 1
            night.start()
    ann_seconds, bob_seconds = (player.given_seconds(night.now) for player in night.players.values())
    assert abs(ann_seconds - bob_seconds) <= 2 * (1.0 + 10.0)


def test_adopted_leases_are_charged() -> None:
    """What an earlier scheduler lent counts as its user's turn: the other one gets as much first."""
    book = a_book(limits(cores=1))
    assert book.adopt("night", LeaseId("old"), an_ask("old", "ann", cost=3.0))
    for number in range(4):
        for user in ("ann", "bob"):
            book.ask("night", an_ask(f"{user}-{number}", user))
    order = []
    running = "old"
    for _ in range(5):
        end_lease_of(book, running, 3.0 if running == "old" else 1.0)
        (running,) = granted_names(book)
        order.append(running)
    assert order == ["bob-0", "bob-1", "bob-2", "ann-0", "bob-3"]


def test_waiting_for_memory_costs_no_share_and_gives_none() -> None:
    """A user of large units and one of small ones stay within the bound, though the large ones often do not fit."""
    large = Unit(estimated_seconds=1.0, true_seconds=2.0, memory_bytes=90)
    small = Unit(estimated_seconds=1.0, true_seconds=0.7, memory_bytes=30)
    book = a_book(limits(cores=4, memory=100))
    night = Simulation(book, [Player("small", lambda _: small), Player("large", lambda _: large)])
    spread = Spread(night, "small", "large")
    night.start()
    for _ in range(400):
        spread.look(3)
        night.step()
    assert min(night.granted().values()) > 90


@pytest.mark.parametrize("seed", range(6))
def test_a_small_user_among_big_ones_is_done_when_a_fair_share_says(seed: int) -> None:
    """Of two users the one has a hundred times the items: the other's last ends within 10 % of half the machine's time.

    The big one's estimates are wrong by up to five times either way.
    """
    luck = random.Random(seed)
    error = luck.choice((0.2, 1.0, 5.0))

    def big_unit(_kind: TokenKind) -> Unit:
        true = luck.uniform(0.05, 1.5)
        return Unit(estimated_seconds=true * error, true_seconds=true)

    items = [Unit(estimated_seconds=1.0, true_seconds=luck.uniform(0.1, 2.0)) for _ in range(100)]
    waiting = list(items)
    cores = 2
    night = Simulation(
        a_book(limits(cores=cores)),
        [Player("big", big_unit, left=10_000), Player("small", lambda _: waiting.pop(), left=len(items))],
    )
    night.start()
    while night.granted()["small"] < len(items) or night.players["small"].running:
        night.step()
    fair = 2 * sum(unit.true_seconds for unit in items) / cores
    assert 0.9 * fair <= night.ended["small"] <= 1.1 * fair
    assert night.players["big"].given_seconds(night.now) == pytest.approx(fair * cores / 2, rel=0.1)


def test_a_share_is_in_proportion_to_its_weight() -> None:
    """A user of weight three gets three times what the others get."""
    players = [Player(name, lambda _: SECOND, weight=weight) for name, weight in (("a", 3.0), ("b", 1.0), ("c", 1.0))]
    night = Simulation(a_book(limits(cores=1)), players)
    night.start()
    for _ in range(500):
        night.step()
    granted = night.granted()
    assert granted["a"] == pytest.approx(300, abs=3)
    assert granted["b"] == pytest.approx(100, abs=3)


def test_a_tie_goes_to_who_came_first() -> None:
    """Users that have used the same take turns in the order in which they came, and a user's own asks in theirs."""
    book = a_book(limits(cores=8, per_user=8))
    for number in range(2):
        for user in ("zoe", "ann", "max"):
            book.ask("night", an_ask(f"{user}-{number}", user))
    assert granted_names(book) == ["zoe-0", "ann-0", "max-0", "zoe-1", "ann-1", "max-1"]


def test_an_idle_lane_begins_anew() -> None:
    """When nothing waits and nothing is out, what was used before is forgotten: first come, first served."""
    book = a_book(limits(cores=1))
    for number in range(3):
        book.ask("night", an_ask(f"ann-{number}", "ann", cost=50.0))
        assert granted_names(book) == [f"ann-{number}"]
        end_lease_of(book, f"ann-{number}", 50.0)
    for user in ("ann", "bob"):
        book.ask("night", an_ask(user, user))
    assert granted_names(book) == ["ann"]


class Counted(float):
    """A number that counts how often it is compared."""

    comparisons = 0

    def __lt__(self, other: object) -> bool:
        Counted.comparisons += 1
        return float.__lt__(self, other)  # type: ignore[operator]

    def __gt__(self, other: object) -> bool:
        Counted.comparisons += 1
        return float.__gt__(self, other)  # type: ignore[operator]

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return float.__eq__(self, other)

    def __add__(self, other: float) -> Counted:
        return Counted(float.__add__(self, other))

    __radd__ = __add__

    def __truediv__(self, other: float) -> Counted:
        return Counted(float.__truediv__(self, other))

    __hash__ = float.__hash__


def comparisons_for_each_grant(users: int, sizes: int) -> float:
    """Serve each of so many users once and again; the mean number of comparisons for a turn."""
    queue = FairQueue()
    luck = random.Random(1)
    for number in range(users):
        cost = Counted(luck.uniform(0.5, 1.5))
        for turn in range(3):
            ask = an_ask(f"{number}-{turn}", f"user{number}", cost=cost)
            queue.add(("night", ask.ask_id), ask, luck.randrange(sizes))
    for _ in range(users):
        served = queue.first(tuple(TokenKind), float("inf"))
        assert served is not None
        queue.take(*served)
    Counted.comparisons = 0
    for _ in range(users):
        served = queue.first(tuple(TokenKind), float("inf"))
        assert served is not None
        queue.take(*served)
    return Counted.comparisons / users


@pytest.mark.parametrize(
    ("few", "many", "sizes"), [(100, 1_000, 1), (100, 10_000, 1), (100, 1_000, 12), (500, 3_000, 200)]
)
def test_comparisons_grow_with_the_logarithm_of_the_users(few: int, many: int, sizes: int) -> None:
    """Of a turn, whether all units are of one size or of many; a hundred times the users make it twice as much."""
    allowed = comparisons_for_each_grant(few, sizes) * math.log(many) / math.log(few) * 1.25
    assert 0 < comparisons_for_each_grant(many, sizes) <= allowed


def calls_for_each_grant(users: int, sizes: int) -> float:
    """The mean number of function calls, C functions included, of a grant and a return in a book with many users."""
    book = a_book(limits(cores=2, memory=1 << 40))
    luck = random.Random(1)
    for number in range(users):
        for turn in range(2):
            memory = 1000 + luck.randrange(sizes) * 1000
            book.ask("night", an_ask(f"{number}-{turn}", f"user{number}", cost=luck.uniform(0.5, 1.5), memory=memory))
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    granted = book.grants()
    rounds = 100
    sys.setprofile(count)
    try:
        for _ in range(rounds):
            for grant in granted:
                book.give_back("night", grant.lease_id, 1.0)
            granted = book.grants()
    finally:
        sys.setprofile(None)
    return calls / rounds


@pytest.mark.parametrize("sizes", [1, 200])
def test_a_grant_takes_no_more_calls_with_many_users(sizes: int) -> None:
    """Nothing in the whole book is done once for each user, whether all units are of one size or of many."""
    few, many = calls_for_each_grant(100, sizes), calls_for_each_grant(3_000, sizes)
    assert many <= 1.5 * few


@pytest.mark.parametrize("cost", [1e17, 1e308])
def test_one_absurd_cost_does_not_end_fairness(cost: float) -> None:
    """After a unit that says it took longer than the world exists, users of later units still take turns."""
    book = a_book(limits(cores=1))
    book.ask("day", an_ask("absurd", "cy", weight=0.1))
    book.grants()
    end_lease_of(book, "absurd", cost)
    for number in range(4):
        for user in ("ann", "bob"):
            book.ask("night", an_ask(f"{user}-{number}", user))
    order = []
    while granted := granted_names(book):
        order += granted
        end_lease_of(book, granted[0])
    assert order == [f"{user}-{number}" for number in range(4) for user in ("ann", "bob")]
