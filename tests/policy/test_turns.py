"""Whose turn it is: everybody's comes, no place is empty while somebody waits, and nobody rests for nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.model import UserId
from engine.policy.turns import MOST_OPEN, Backlog, Rules, Turns, rules_for

SLICE = 20.0
places = st.integers(1, 4)
weights = st.sampled_from((0.5, 1.0, 1.0, 3.0))
costs = st.floats(0.0, 30.0)


class AnyRun(RuleBasedStateMachine):
    """A run in any order of events. `line` and `used` say again, simply, what is to be."""

    @initialize(places=places)
    def begin(self, places: int) -> None:
        self.places = places
        self.turns = Turns(Rules(places=places, slice_seconds=SLICE))
        self.line: list[UserId] = []
        self.used: dict[UserId, float] = {}
        self.weight: dict[UserId, float] = {}
        self.named: set[UserId] = set()

    @rule(weight=weights)
    def join(self, weight: float) -> None:
        user = UserId(f"user{len(self.weight)}")
        self.weight[user] = weight
        self.turns.join(user, weight)
        self.line.append(user)
        self._open_all()

    @precondition(lambda self: self.used)
    @rule(data=st.data(), cost=costs)
    def charge(self, data: st.DataObject, cost: float) -> None:
        user = data.draw(st.sampled_from(sorted(self.used)))
        self.turns.charge(user, cost)
        self.used[user] += cost

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from(sorted(self.used)))
        self.turns.leave(user)
        del self.used[user]
        self._open_all()

    @precondition(lambda self: self.turns.resting())
    @rule(data=st.data())
    def rest(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from(sorted(self.turns.resting())))
        self.turns.rest(user)
        del self.used[user]
        self.line.append(user)
        self._open_all()

    def _open_all(self) -> None:
        """The line is served first come, first served."""
        while (user := self.turns.open_next()) is not None:
            assert user == self.line.pop(0)
            self.used[user] = 0.0

    @invariant()
    def no_place_is_empty_while_somebody_waits(self) -> None:
        assert set(self.turns.open) == set(self.used)
        assert len(self.used) <= self.places
        assert not self.line or len(self.used) == self.places
        assert self.turns.waiting == len(self.line)

    @invariant()
    def those_rest_that_have_had_their_slice_and_only_for_somebody(self) -> None:
        named = set(self.turns.resting())
        spent = {user for user, used in self.used.items() if used and used >= SLICE * self.weight[user]}
        assert named <= spent
        assert len(named) == min(len(spent), len(self.line))
        # Whoever has begun to make room goes on with it, as long as somebody wants the room.
        if len(self.line) >= len(self.named):
            assert self.named & self.used.keys() <= named
        self.named = named


TestAnyRun = AnyRun.TestCase


def _serve(turns: Turns, needs: dict[UserId, float], unit: float) -> tuple[list[UserId], dict[UserId, list[float]]]:
    """Serve all to the end, a unit at a time in rotation among the open: who was done in which order, and the work of
    all that had been done at each opening of a user."""
    done: list[UserId] = []
    openings: dict[UserId, list[float]] = {user: [] for user in needs}
    total = 0.0
    while needs:
        for user in list(turns.resting()):
            turns.rest(user)
        while (opened := turns.open_next()) is not None:
            openings[opened].append(total)
        for user in list(turns.open):
            if user in turns.resting():
                continue
            total += unit
            needs[user] -= unit
            turns.charge(user, unit)
            if needs[user] <= 0:
                turns.leave(user)
                del needs[user]
                done.append(user)
    return done, openings


@given(places, st.lists(st.floats(0.1, 300.0), min_size=1, max_size=12), st.sampled_from((0.5, 5.0, 50.0)))
def test_everybody_is_opened_within_one_round_of_the_others_slices(
    places: int, needs: list[float], unit: float
) -> None:
    """Between two openings of a user, all others have had one slice each at most, and the last unit of it."""
    turns = Turns(Rules(places=places, slice_seconds=SLICE))
    users = {UserId(f"user{number}"): need for number, need in enumerate(needs)}
    for user in users:
        turns.join(user)
    done, openings = _serve(turns, dict(users), unit)
    assert sorted(done) == sorted(users)
    # Those that are open when a user joins may be in the middle of a slice, and units of all places end in one round.
    most = (len(users) + places) * (SLICE + 2 * unit)
    for times in openings.values():
        assert all(later - earlier <= most for earlier, later in zip([0.0, *times], times, strict=False))


def test_a_small_user_does_not_wait_for_giants() -> None:
    """Behind eight giants, whoever has little to do is done long before any of them."""
    turns = Turns(Rules(places=2, slice_seconds=SLICE))
    needs = {UserId(f"giant{number}"): 10_000.0 for number in range(8)} | {UserId("small"): 10.0}
    for user in needs:
        turns.join(user)
    done, openings = _serve(turns, needs, 1.0)
    assert done[0] == "small"
    assert openings[UserId("small")][0] <= 8 * SLICE + 2


def test_nobody_rests_while_nobody_waits() -> None:
    """However much a user has had: it goes on until somebody comes, and goes on when that somebody is gone."""
    turns = Turns(Rules(places=2, slice_seconds=SLICE))
    for name in ("a", "b"):
        turns.join(UserId(name))
        turns.open_next()
        turns.charge(UserId(name), 1e6)
    assert not turns.resting()
    turns.join(UserId("c"))
    assert list(turns.resting()) == ["a"]
    turns.leave(UserId("b"))
    assert not turns.resting()
    assert turns.open_next() == "c"


def test_twice_the_weight_is_twice_the_slice() -> None:
    """Over many rounds, users that always have work have had time in proportion to their weights."""
    turns = Turns(Rules(places=1, slice_seconds=SLICE))
    weights = {UserId("a"): 1.0, UserId("b"): 2.0, UserId("c"): 0.5}
    for user, weight in weights.items():
        turns.join(user, weight)
    had: Counter[UserId] = Counter()
    for _ in range(7 * 200):
        for user in list(turns.resting()):
            turns.rest(user)
        turns.open_next()
        (user,) = turns.open
        turns.charge(user, 1.0)
        had[user] += 1
    assert {user: had[user] / weights[user] for user in weights} == pytest.approx(
        dict.fromkeys(weights, 400.0), rel=0.1
    )


def test_a_slice_of_nothing_still_lets_everybody_do_something() -> None:
    """Before its first unit has ended nobody rests, whatever the slice is."""
    turns = Turns(Rules(places=1, slice_seconds=0.0))
    turns.join(UserId("a"))
    turns.join(UserId("b"))
    turns.open_next()
    assert not turns.resting()
    turns.charge(UserId("a"), 0.001)
    assert list(turns.resting()) == ["a"]


@given(st.integers(1, 500), st.integers(1, 50))
def test_there_are_users_for_all_workers(workers: int, per_user: int) -> None:
    """However few workers one user may have, the open ones together can keep all of them busy."""
    places = rules_for(workers=workers, workers_per_user=per_user).places
    assert places * per_user >= workers
    assert places >= MOST_OPEN


def test_nobody_stands_in_line_twice() -> None:
    """A user that waits or is open cannot join; one that has left can."""
    turns = Turns(Rules(places=1))
    turns.join(UserId("a"))
    with pytest.raises(ValueError, match="'a'"):
        turns.join(UserId("a"))
    turns.open_next()
    with pytest.raises(ValueError, match="'a'"):
        turns.join(UserId("a"))
    turns.leave(UserId("a"))
    turns.join(UserId("a"))


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3))))
def test_changes_of_the_backlog_add_up_to_it(rounds: list[Mapping[str, int]]) -> None:
    """Whoever hears all changes knows how much of everybody waits, and hears of nothing that is as it was."""
    backlog, truth, heard = Backlog(), dict.fromkeys("abc", 0), dict.fromkeys("abc", 0)
    for noted in rounds:
        for user, items in noted.items():
            backlog.note(UserId(user), items)
            truth[user] = items
        heard.update(backlog.take_changes())
        assert heard == truth
        assert not backlog.take_changes()
