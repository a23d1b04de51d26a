"""Pressure: when nothing starts, who is stopped, one at a time, and who is ended by force."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import Lane, LeaseId
from engine.policy.pressure import (
    PATIENCE_SECONDS,
    SOFT_PERCENT,
    Ceiling,
    Pressure,
    Use,
    narrowest,
    room_bytes,
    used_share,
)
from engine.policy.scaling import MEMORY_HIGH
from tests.policy.words import examples

GIB = 1024**3


def under(*used: int, limit: int = 1000) -> list[Ceiling]:
    """Ceilings of the same limit, with so much used under each."""
    return [Ceiling(limit_bytes=limit, used_bytes=each, source=f"group {at}") for at, each in enumerate(used)]


def a_use(name: str, used: int | None, promised: int = 100, lane: Lane = Lane.BULK) -> Use:
    return Use(lease_id=LeaseId(name), lane=lane, promised_bytes=promised, used_bytes=used)


def closed_at(pressure: Pressure, used: int) -> bool:
    return pressure.observe(0.0, under(used), []).closed


def stopped(pressure: Pressure, *uses: Use, now: float = 0.0, used: int = 960) -> str | None:
    stop = pressure.observe(now, under(used), uses).stop
    return None if stop is None else stop[0]


def test_memory_is_closed_at_nine_tenths_and_open_again_below_85_hundredths() -> None:
    """Between the marks nothing changes, in either direction."""
    pressure = Pressure()
    assert [closed_at(pressure, used) for used in (0, 899, 900, 1200, 899, 850, 849, 899)] == [
        *(False, False, True, True),
        *(True, True, False, False),
    ]


def test_any_ceiling_closes_it() -> None:
    """One that is nearly full counts, however roomy the others are."""
    assert Pressure().observe(0.0, under(10, 950, 10), []).closed
    assert not Pressure().observe(0.0, under(10, 850, 10), []).closed


def test_on_a_large_machine_the_marks_are_so_many_bytes() -> None:
    """Of 256 GiB, 2 are kept free by the soft mark and 1 by the hard one, not 25 and 12."""
    limit = 256 * GIB
    assert not Pressure().observe(0.0, under(limit - 3 * GIB, limit=limit), []).closed
    assert Pressure().observe(0.0, under(limit - 2 * GIB, limit=limit), []).closed
    assert room_bytes(under(limit - 3 * GIB, limit=limit)) == 2 * GIB


def test_what_may_be_promised_ends_at_the_hard_mark() -> None:
    """By the ceiling that leaves least; the share that is used is that of the fullest one."""
    wide = Ceiling(limit_bytes=10_000, used_bytes=9_200, source="machine")
    assert room_bytes([*under(700), wide]) == 250
    assert room_bytes([*under(980), wide]) == -30
    assert narrowest([*under(700), wide]).source == "group 0"
    assert used_share([*under(700), wide]) == pytest.approx(0.92)


@pytest.mark.parametrize("gibibytes", [1, 20, 64, 1024])
def test_bulk_work_is_scaled_down_where_memory_closes_and_not_before(gibibytes: int) -> None:
    """On a machine of any size: a tenth of a terabyte is room for many units."""
    limit = gibibytes * GIB
    for left, closed in ((SOFT_PERCENT, True), (SOFT_PERCENT + 1, False)):
        available = min(limit, 20 * GIB) * left // 100
        ceilings = [Ceiling(limit_bytes=limit, used_bytes=limit - available, source="")]
        assert Pressure().observe(0.0, ceilings, []).closed is closed
        assert (used_share(ceilings) >= MEMORY_HIGH) is closed


def test_the_lease_furthest_over_its_promise_is_stopped() -> None:
    """Not the largest, nor one of bulk that keeps to its promise. The words say all that counts."""
    pressure = Pressure()
    uses = [
        a_use("large", 500, promised=500),
        a_use("over", 150, lane=Lane.INTERACTIVE),
        a_use("a little over", 120),
        a_use("gone", None, promised=0),
    ]
    verdict = pressure.observe(0.0, under(950), uses)
    assert verdict.stop is not None
    assert verdict.stop[0] == "over"
    assert "group 0" in verdict.stop[1]
    assert pressure.stopped == 1


@pytest.mark.parametrize(
    ("uses", "expected"),
    [
        ([a_use("bulk", 10), a_use("urgent", 90, lane=Lane.INTERACTIVE)], "bulk"),
        ([a_use("small", 10), a_use("large", 90), a_use("late", 20)], "large"),
        ([a_use("old", 50), a_use("young", 50)], "young"),
        ([a_use("gone", None)], None),
        ([], None),
    ],
)
def test_when_all_keep_their_promise(uses: list[Use], expected: str | None) -> None:
    """Bulk goes before what somebody waits for, then the largest, then the youngest; who is gone is not stopped."""
    assert stopped(Pressure(), *uses) == expected


def test_below_the_hard_mark_nobody_is_stopped() -> None:
    """However far over its promise."""
    assert stopped(Pressure(), a_use("over", 900), used=949) is None
    assert stopped(Pressure(), a_use("over", 900), used=950) == "over"


def test_the_next_is_stopped_when_the_first_is_gone() -> None:
    """Its lease may still be out: what counts is that its process holds nothing any more."""
    pressure = Pressure()
    assert stopped(pressure, a_use("a", 300), a_use("b", 200)) == "a"
    assert stopped(pressure, a_use("a", 300), a_use("b", 200), now=0.1) is None
    assert stopped(pressure, a_use("a", None), a_use("b", 200), now=0.2) == "b"
    assert stopped(pressure, a_use("b", 200), a_use("c", 150), now=0.3) is None
    assert stopped(pressure, a_use("c", 150), now=0.4) == "c"
    assert stopped(pressure, now=0.5) is None
    assert pressure.stopped == 3


def test_who_is_not_stopped_in_a_second_is_ended_by_force() -> None:
    """Once a second until it is gone, though there is memory again by then; not before, and nobody else."""
    pressure = Pressure()
    assert stopped(pressure, a_use("a", 300), a_use("b", 200), now=5.0) == "a"
    ends = [
        pressure.observe(5.0 + after, under(500), [a_use("a", 300), a_use("b", 200)]).end
        for after in (0.5, 0.99 * PATIENCE_SECONDS, PATIENCE_SECONDS, 1.9, 2.0)
    ]
    assert ends == [None, None, "a", None, "a"]
    assert pressure.observe(8.0, under(500), [a_use("a", None), a_use("b", 200)]).end is None


@examples(60)
@given(seed=st.integers(0, 2**32))
def test_one_at_a_time(seed: int) -> None:
    """Whatever is read: a lease is stopped at a hard mark only, while no other that was stopped still runs, and it is
    one that runs; by force ends only what was stopped; closed is so whenever a soft mark is reached."""
    luck = random.Random(seed)
    pressure, stopping, alive = Pressure(), None, {f"l{number}" for number in range(4)}
    for step in range(60):
        ceilings = under(*(luck.randint(700, 1010) for _ in range(luck.randint(1, 3))))
        uses = [a_use(name, luck.choice((None, luck.randint(1, 200))), luck.randint(0, 150)) for name in sorted(alive)]
        running = {use.lease_id for use in uses if use.used_bytes}
        if stopping is not None and stopping not in running:
            stopping = None
        verdict = pressure.observe(step * 0.3, ceilings, uses)
        fullest = max(ceiling.used_bytes for ceiling in ceilings)
        assert verdict.closed or fullest < 900
        assert not verdict.closed or fullest >= 850
        assert verdict.end in (None, stopping)
        if verdict.stop is not None:
            assert fullest >= 950
            assert stopping is None
            stopping = verdict.stop[0]
            over = {use.lease_id: use.over_bytes for use in uses if use.used_bytes}
            assert over[stopping] == max(over.values())
        else:
            assert stopping is not None or not running or fullest < 950
        if luck.random() < 0.2:
            alive ^= {luck.choice(("l0", "l1", "l2", "l3"))}
