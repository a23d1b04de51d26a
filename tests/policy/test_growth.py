"""How far a unit may burst over its promise, and what is asked for on its behalf."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.policy.growth import LEAST_BURST_BYTES, is_deprived, limit_of, wish_of

SIZES = st.integers(1, 1 << 40)
ROOMS = st.integers(0, 1 << 40)
CORES = st.integers(1, 256)


@given(SIZES, SIZES, ROOMS, CORES)
def test_all_that_run_may_burst_at_once(promised: int, ceiling: int, room: int, cores: int) -> None:
    """One on each core and one above: together they take no more than was free, the least of each aside."""
    burst = limit_of(promised, ceiling_bytes=ceiling, room_bytes=room, cores=cores) - promised
    assert burst >= 0
    assert (cores + 1) * (burst - LEAST_BURST_BYTES) <= room


@given(SIZES, SIZES, ROOMS, CORES)
def test_nobody_bursts_over_its_ceiling(promised: int, ceiling: int, room: int, cores: int) -> None:
    assert limit_of(promised, ceiling_bytes=ceiling, room_bytes=room, cores=cores) <= max(promised, ceiling)


@given(st.integers(LEAST_BURST_BYTES, 1 << 40), st.integers(-(1 << 41), -1), CORES)
def test_a_unit_that_was_promised_what_is_not_there_gets_what_is(promised: int, room: int, cores: int) -> None:
    limit = limit_of(promised, ceiling_bytes=promised, room_bytes=room, cores=cores)
    assert limit == max(LEAST_BURST_BYTES, promised + room)


@given(SIZES, SIZES, SIZES)
def test_what_is_asked_for_is_more_than_the_promise_and_within_the_ceiling(
    resident: int, promised: int, ceiling: int
) -> None:
    wish = wish_of(resident, promised_bytes=promised, ceiling_bytes=ceiling)
    if wish is None:
        assert promised >= min(ceiling, int(resident * 1.5))
    else:
        assert promised < wish <= ceiling
        # One that holds more than that may still be asked for: the ceiling is all there is.
        assert wish > resident or wish == ceiling or resident < 2


def test_a_room_that_is_there_is_shared() -> None:
    mib = 1 << 20
    assert limit_of(100 * mib, ceiling_bytes=2048 * mib, room_bytes=600 * mib, cores=2) == 300 * mib
    assert wish_of(120 * mib, promised_bytes=100 * mib, ceiling_bytes=2048 * mib) == 180 * mib
    assert wish_of(120 * mib, promised_bytes=100 * mib, ceiling_bytes=100 * mib) is None


def test_who_lacks_more_than_a_run_takes_itself_is_deprived_by_others() -> None:
    """Of a promised budget of 1 GiB, with a coordinator of 96 MiB, 224 MiB are lacking in any case; 64 more may be."""
    mib = 1 << 20
    for lacking, deprived in ((0, False), (224, False), (288, False), (289, True), (900, True)):
        assert deprived == is_deprived(
            promised_bytes=1024 * mib, lacking_bytes=lacking * mib, budget_bytes=1024 * mib, own_bytes=96 * mib
        )
