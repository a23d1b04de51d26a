"""How many bulk leases may be out: soon enough to matter, too calm to flutter, and 1 to the budget come what may."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.policy import scaling
from engine.policy.scaling import Load, Scale

#: (seconds since the look before, foreign cores, memory share, memory pressure)
Look = tuple[float, float, float, float]

gaps = st.one_of(st.sampled_from([0.25, 1.0, 5.0]), st.floats(0.0, 90.0))
foreign = st.one_of(st.sampled_from([0.0, 0.3, 0.5, 1.0, 2.0, 63.0]), st.floats(0.0, 80.0))
shares = st.one_of(st.sampled_from([0.0, 0.84, 0.85, 0.87, 0.9, 1.0]), st.floats(0.0, 1.2))
looks: st.SearchStrategy[list[Look]] = st.lists(st.tuples(gaps, foreign, shares, shares), max_size=60)
budgets = st.integers(1, 64)


def play(scale: Scale, history: Iterable[Look], *, cores: int, start: float = 0.0) -> list[tuple[float, int]]:
    """(time, target) after each look."""
    seen, now = [], start
    for gap, others, share, pressure in history:
        now += gap
        load = Load(
            now_seconds=now, cores=cores, foreign_cores=others, memory_used_share=share, memory_pressure=pressure
        )
        seen.append((now, scale.observe(load)))
    return seen


def steady(others: float, seconds: int, *, memory: float = 0.3) -> list[Look]:
    return [(1.0, others, memory, 0.0)] * seconds


def state_of(scale: Scale) -> dict[str, Any]:
    return {name: repr(value) for name, value in vars(scale).items()}


def changes(targets: Iterable[int], before: int) -> list[int]:
    """The differences, zeros left out."""
    found = []
    for target in targets:
        if target != before:
            found.append(target - before)
        before = target
    return found


# --- what people see ---


def test_a_third_of_a_core_beside_us_never_costs_a_worker() -> None:
    """A test runner or a monitor on a small machine is no reason to work at half speed."""
    scale = Scale(2)
    assert {target for _, target in play(scale, steady(0.3, 3600), cores=2)} == {2}
    assert (scale.why, scale.statistics().why) == ("", "")


def test_a_core_that_is_taken_for_a_minute_costs_one_worker_and_gives_it_back() -> None:
    """Two become one within twenty seconds, and two again within a minute of its end."""
    scale = Scale(2)
    seen = play(scale, steady(0.0, 60) + steady(1.0, 60) + steady(0.0, 60), cores=2)
    fell = next(now for now, target in seen if target == 1)
    assert 60 + 10 <= fell <= 60 + 20
    back = next(now for now, target in seen if target == 2 and now > fell)
    assert 120 + 20 <= back <= 120 + 60
    assert changes((target for _, target in seen), 2) == [-1, 1]


def test_between_the_marks_nothing_changes() -> None:
    """Half a core of others takes no worker away, and gives none back that has gone."""
    assert {target for _, target in play(Scale(2), steady(0.55, 600), cores=2)} == {2}
    scale = Scale(2)
    play(scale, steady(1.0, 60), cores=2)
    assert {target for _, target in play(scale, steady(0.55, 600), cores=2, start=60)} == {1}


def test_a_look_that_claims_the_impossible_is_soon_forgotten() -> None:
    """A billion busy cores on two weigh no more than two."""
    scale = Scale(2)
    play(scale, steady(0.0, 60) + steady(1e9, 1), cores=2)
    assert play(scale, steady(0.0, 60), cores=2, start=61)[-1][1] == 2


def test_the_statistics_say_why() -> None:
    """Others' load, memory, or nothing."""
    scale = Scale(4)
    play(scale, steady(2.0, 120), cores=4)
    assert scale.statistics() == scaling.ScaleStatistics(budget=4, target=2, why="load", foreign_cores=2.0)
    play(scale, steady(2.0, 1, memory=0.9), cores=4, start=120)
    assert (scale.target, scale.why) == (1, "memory")
    play(scale, steady(0.0, 240), cores=4, start=130)
    assert (scale.target, scale.why) == (4, "")
    play(scale, steady(0.0, 1, memory=0.95) + steady(2.0, 120, memory=0.87), cores=4, start=380)
    assert (scale.target, scale.why) == (2, "memory"), "both leave two"


def test_a_burst_costs_nothing() -> None:
    """A few seconds of all cores, again and again: niced workers step aside by themselves."""
    burst = (steady(2.0, 3) + steady(0.0, 27)) * 20
    assert {target for _, target in play(Scale(2), burst, cores=2)} == {2}


def test_one_that_comes_and_goes_is_met_once() -> None:
    """Twelve seconds of load in every twenty-four: the worker stays away and is not started each time anew."""
    seen = play(Scale(2), (steady(2.0, 12) + steady(0.0, 12)) * 50, cores=2)
    assert changes((target for _, target in seen), 2) == [-1]


def test_a_large_machine_gives_way_within_a_minute() -> None:
    """Single steps would take minutes where others take forty cores of sixty-four."""
    assert play(Scale(64), steady(40.0, 60), cores=64)[-1][1] <= 26


def test_a_budget_above_the_cores_is_the_operators_wish() -> None:
    """Only what others take counts: a budget of five on four cores stays five while nobody else is busy."""
    scale = Scale(5)
    assert {target for _, target in play(scale, steady(0.1, 300), cores=4)} == {5}
    assert play(scale, steady(2.0, 300), cores=4, start=300)[-1][1] == 3


def test_memory_halves_at_once_and_comes_back_one_by_one() -> None:
    """At the high mark in the same look; under the low mark one for each stretch of calm; in between nothing."""
    scale = Scale(8)
    assert play(scale, [(1.0, 0.0, 0.89, 0.0)] * 30, cores=8)[-1][1] == 8
    assert play(scale, [(1.0, 0.0, 0.90, 0.0)], cores=8, start=30)[-1][1] == 4
    assert {target for _, target in play(scale, steady(0.0, 300, memory=0.87), cores=8, start=31)} == {4}
    seen = play(scale, steady(0.0, 100, memory=0.5), cores=8, start=331)
    assert changes((target for _, target in seen), 4) == [1, 1, 1, 1]
    for more in range(1, 5):
        back = next(now for now, target in seen if target == 4 + more)
        assert back == seen[0][0] + more * scaling.MEMORY_CALM_SECONDS


def test_calm_that_is_broken_begins_anew() -> None:
    """Use that keeps touching the low mark gives nothing back, however short the touches are."""
    scale = Scale(4)
    play(scale, steady(0.0, 1, memory=0.9), cores=4)
    touching = (steady(0.0, 19, memory=0.6) + steady(0.0, 1, memory=0.86)) * 20
    assert {target for _, target in play(scale, touching, cores=4, start=1)} == {2}


@pytest.mark.parametrize("seconds", [30, 3600])
def test_a_long_calm_is_not_saved_up(seconds: int) -> None:
    """However long there was no shortage: a larger budget is there at once, and the next shortage halves it."""
    scale = Scale(4)
    play(scale, steady(0.0, seconds), cores=16)
    assert scale.set_budget(16) == 16
    assert play(scale, steady(0.0, 1, memory=0.9), cores=16, start=seconds)[-1][1] == 8


def test_memory_that_stays_short_halves_again_but_not_before_the_first_halving_can_show() -> None:
    """Eight, four, two, one, ten seconds apart: units have to end before their memory is free."""
    seen = play(Scale(8), steady(0.0, 60, memory=0.95), cores=8)
    assert [target for _, target in seen][::10] == [4, 2, 1, 1, 1, 1]
    assert changes((target for _, target in seen), 8) == [-4, -2, -1]


def test_halving_counts_from_what_is_in_use() -> None:
    """Where load has left four of sixteen, memory leaves two, and not eight of which four are in use."""
    scale = Scale(16)
    play(scale, steady(12.0, 300), cores=16)
    assert scale.target == 4
    assert play(scale, steady(12.0, 1, memory=0.9), cores=16, start=300)[-1][1] == 2


def test_waiting_for_memory_counts_like_using_it() -> None:
    """A machine that swaps shows it by waiting, whatever share it calls used."""
    scale = Scale(4)
    assert scale.observe(Load(now_seconds=0.0, memory_pressure=0.2)) == 2
    for second in range(1, 60):
        scale.observe(Load(now_seconds=float(second), memory_used_share=0.1, memory_pressure=0.07))
    assert scale.target == 2
    for second in range(60, 120):
        scale.observe(Load(now_seconds=float(second), memory_used_share=0.1, memory_pressure=0.0))
    assert scale.target == 4


@pytest.mark.parametrize("budget", [0, -1, 1.5, True, None])
def test_a_budget_is_a_whole_number_of_at_least_one(budget: Any) -> None:
    """Anything else is a mistake of the caller."""
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        Scale(budget)
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        Scale(3).set_budget(budget)


# --- what holds always ---


@given(budget=budgets, cores=budgets, history=looks)
def test_always_between_one_and_the_budget(budget: int, cores: int, history: list[Look]) -> None:
    """Whatever is read, and `why` is empty exactly when the whole budget may be used."""
    scale = Scale(budget)
    for _, target in play(scale, history, cores=cores):
        assert 1 <= target <= budget
    assert scale.target == scale.statistics().target
    assert (scale.why == "") == (scale.target == budget)


@given(budget=budgets, cores=budgets, history=looks, others=foreign, share=shares, pressure=shares)
def test_constant_readings_converge_and_stay(
    budget: int, cores: int, history: list[Look], others: float, share: float, pressure: float
) -> None:
    """After any history: load and memory each move in one direction, come to rest, and rest for good."""
    scale = Scale(budget)
    now = sum(look[0] for look in history)
    play(scale, history, cores=cores)
    # The longest way: from 1 to the budget in single steps of memory.
    longest = int(budget * scaling.MEMORY_CALM_SECONDS) + 600
    play(scale, [(5.0, others, share, pressure)] * (longest // 5), cores=cores, start=now)
    rest = scale.target
    for _, target in play(scale, [(1.0, others, share, pressure)] * 100, cores=cores, start=now + longest):
        assert target == rest


@given(budget=budgets, others=st.floats(0.0, 80.0))
def test_it_rests_where_others_leave_room(budget: int, others: float) -> None:
    """Under a constant load from the start, what we use and what others use fit the cores, to within a core."""
    others = min(others, float(budget))
    rest = play(Scale(budget), steady(others, 400), cores=budget)[-1][1]
    room = budget - others
    assert max(1, math.floor(room + scaling.CORE_TAKEN - 1e-6)) <= rest <= max(1, room + scaling.CORE_TAKEN + 1e-6)


@given(budget=budgets, cores=budgets, history=looks, more=st.lists(foreign, min_size=60, max_size=60))
def test_more_load_never_gives_a_higher_target(budget: int, cores: int, history: list[Look], more: list[float]) -> None:
    """Of two histories alike but for load, the one with more load at each look is at no time the higher."""
    heavier = [
        (gap, others + extra, share, pressure)
        for (gap, others, share, pressure), extra in zip(history, more, strict=False)
    ]
    without_memory = [[(gap, others, 0.0, 0.0) for gap, others, _, _ in each] for each in (history, heavier)]
    light, heavy = (play(Scale(budget), each, cores=cores) for each in without_memory)
    assert all(high[1] <= low[1] for low, high in zip(light, heavy, strict=True))


@given(budget=budgets, history=looks, more=st.lists(shares, min_size=60, max_size=60))
def test_less_memory_never_gives_a_higher_target(budget: int, history: list[Look], more: list[float]) -> None:
    """The same for memory, over whole histories."""
    plain = [(gap, 0.0, share, pressure) for gap, _, share, pressure in history]
    shorter = [
        (gap, 0.0, share + extra, pressure) for (gap, _, share, pressure), extra in zip(plain, more, strict=False)
    ]
    light, heavy = (play(Scale(budget), each, cores=budget) for each in (plain, shorter))
    assert all(high[1] <= low[1] for low, high in zip(light, heavy, strict=True))


@given(budget=budgets, cores=budgets, history=looks, last=st.tuples(gaps, foreign, shares, shares), extra=foreign)
def test_one_look_that_is_worse_in_any_way_never_gives_more(
    budget: int, cores: int, history: list[Look], last: Look, extra: float
) -> None:
    """After one and the same history, of load and memory together."""
    now = sum(look[0] for look in history)
    gap, others, share, pressure = last
    worse = [(gap, others + extra, share, pressure), (gap, others, share + extra, pressure + extra)]
    targets = []
    for end in [last, *worse]:
        scale = Scale(budget)
        play(scale, history, cores=cores)
        targets.append(play(scale, [end], cores=cores, start=now)[-1][1])
    assert max(targets[1:]) <= targets[0]


@given(budget=budgets, cores=budgets, others=st.lists(st.tuples(gaps, foreign), min_size=20, max_size=200))
def test_load_changes_the_target_seldom(budget: int, cores: int, others: list[tuple[float, float]]) -> None:
    """One step at a time, a step in five seconds, and none up within the stretch of calm after one down."""
    history = [(gap, load, 0.0, 0.0) for gap, load in others]
    before, changed_at, fell_at = budget, -math.inf, -math.inf
    for now, target in play(Scale(budget), history, cores=cores):
        if target == before:
            continue
        assert now - changed_at >= scaling.STEP_SECONDS
        assert abs(target - before) <= max(1, before // 8)
        if target > before:
            assert now - fell_at >= scaling.STEP_SECONDS * scaling.CALM_STEPS
        else:
            fell_at = now
        changed_at, before = now, target


@given(budget=budgets, cores=budgets, history=looks, rate=st.sampled_from([0.1, 0.25, 1.0]))
def test_a_minute_sees_few_changes(budget: int, cores: int, history: list[Look], rate: float) -> None:
    """However wild the readings: a step of load each 5 s, a halving each 10 s, a worker back each 20 s, at most."""
    wild = [(rate, others, share, pressure) for _, others, share, pressure in history] * 10
    seen, before, times = play(Scale(budget), wild, cores=cores), budget, []
    for now, target in seen:
        if target != before:
            times.append(now)
        before = target
    most = sum(
        60 / each + 1 for each in (scaling.STEP_SECONDS, scaling.MEMORY_HOLD_SECONDS, scaling.MEMORY_CALM_SECONDS)
    )
    for start in times:
        assert sum(start <= now < start + 60 for now in times) <= most


@given(budget=budgets, cores=budgets, history=looks, later=looks, new=budgets)
def test_another_budget_holds_from_the_next_moment(
    budget: int, cores: int, history: list[Look], later: list[Look], new: int
) -> None:
    """Lowered, it holds at once; raised, a target that was not scaled down goes with it, and one that was does not."""
    scale = Scale(budget)
    play(scale, history, cores=cores)
    before, scaled_down = scale.target, scale.why != ""
    after = scale.set_budget(new)
    assert after == scale.target
    assert 1 <= after <= new
    if not scaled_down:
        assert after == new
    elif new >= budget:
        assert after == before
    for _, target in play(scale, later, cores=cores, start=sum(look[0] for look in history)):
        assert 1 <= target <= new


NONSENSE: dict[str, Callable[[Load], Load]] = {
    "time is no number": lambda load: replace(load, now_seconds=math.nan),
    "time never comes": lambda load: replace(load, now_seconds=math.inf),
    "time goes back": lambda load: replace(load, now_seconds=load.now_seconds - 1e6),
    "no cores": lambda load: replace(load, cores=0),
    "negative cores": lambda load: replace(load, cores=-4),
    "more cores than can be": lambda load: replace(load, cores=10**400),
    "cores without load": lambda load: replace(load, foreign_cores=None),
    "load without cores": lambda load: replace(load, cores=None),
    **{
        f"{name} = {value}": (lambda load, name=name, value=value: replace(load, **{name: value}))
        for name in ("foreign_cores", "memory_used_share", "memory_pressure")
        for value in (math.nan, math.inf, -math.inf, -0.1)
    },
}


@pytest.mark.parametrize("name", NONSENSE)
@given(budget=budgets, cores=budgets, history=looks, last=st.tuples(gaps, foreign, shares, shares))
def test_nonsense_changes_nothing(name: str, budget: int, cores: int, history: list[Look], last: Look) -> None:
    """Neither the target nor anything that a later target depends on."""
    assume(name != "time goes back" or history)
    scale = Scale(budget)
    play(scale, history, cores=cores)
    before = state_of(scale)
    now = sum(look[0] for look in history) + last[0]
    sound = Load(
        now_seconds=now, cores=cores, foreign_cores=last[1], memory_used_share=last[2], memory_pressure=last[3]
    )
    assert scale.observe(NONSENSE[name](sound)) == scale.target
    assert state_of(scale) == before


@given(budget=budgets, cores=budgets, history=looks)
def test_what_is_not_known_leaves_its_part_alone(budget: int, cores: int, history: list[Look]) -> None:
    """A look without cores does not move the level of load, one without memory not that of memory."""
    scale = Scale(budget)
    play(scale, history, cores=cores)
    before, now = scale.target, sum(look[0] for look in history)
    for second in range(100):
        assert scale.observe(Load(now_seconds=now + second)) == before
