"""The yardsticks of the scheduler's bench: what they call fair, late or too many must be so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.model import Lane, TokenKind
from engine.policy.tokens import Limits
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def bench_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The parts of the bench lie beside it, not in a package."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts" / "benches"))
    return


def test_a_fluid_is_shared_by_weight_under_the_cap() -> None:
    """What one cannot use goes to the others, by weight."""
    from scheduling.fluid import Load, finishing_times, shares

    assert shares({"a": 1, "b": 3}, 4, 5) == {"a": 1, "b": 3}
    assert shares({"a": 1, "b": 9}, 8, 5) == {"a": 3, "b": 5}
    assert shares({"a": 1}, 8, 5) == {"a": 5}
    equal = finishing_times({"a": Load(work_seconds=4), "b": Load(work_seconds=400)}, [(0, 4)], 5)
    assert equal["a"] == pytest.approx(2)
    assert equal["b"] == pytest.approx(101)
    late = {"a": Load(work_seconds=4), "b": Load(work_seconds=4, arrives=0.5)}
    # Four cores for half a second, then one of two for each until 1.0, then two for each until 1.75, then four for one.
    assert finishing_times(late, [(0, 4), (0.5, 2), (1.0, 4)], 5) == pytest.approx({"a": 1.75, "b": 2.25})


def test_the_lag_of_an_interval_is_that_of_its_worst_part() -> None:
    """One user served three times in a row, then the other: the lag is three units, wherever the interval begins."""
    from scheduling.fairness import LagWatch

    watch = LagWatch([1.0, 2.0], depth=1)
    for user in (0, 1):
        watch.asked(user, 2.0)
        watch.enter(user)
    for user in (1, 1, 0, 0, 0, 1):
        watch.served(user, 2.0)
    lag, bound = watch.worst
    assert lag == pytest.approx(6.0)
    assert bound == pytest.approx(2 * (2.0 / 1 + 2.0 / 2))
    assert watch.recent() == pytest.approx(1.0)


def test_a_user_that_was_away_begins_anew() -> None:
    """What others got while a user was out does not count as its lag."""
    from scheduling.fairness import LagWatch

    watch = LagWatch([1.0, 1.0], depth=1)
    for user in (0, 1):
        watch.asked(user, 1.0)
        watch.enter(user)
    watch.leave(1)
    for _ in range(10):
        watch.served(0, 1.0)
    watch.enter(1)
    watch.served(1, 1.0)
    assert watch.worst[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("begun", "said"),
    [
        ([(0, Lane.BULK)] * 3, "3 leases of one user, 2 are allowed"),
        ([(0, Lane.BULK), (1, Lane.BULK), (2, Lane.BULK)], "3 bulk CPU leases, 2 are allowed"),
        ([(0, Lane.BULK), (1, Lane.BULK), (2, Lane.INTERACTIVE), (3, Lane.INTERACTIVE)], "4 CPU leases, 3 are allowed"),
    ],
)
def test_the_watch_on_limits_sees_one_too_many(begun: list[tuple[int, Lane]], said: str) -> None:
    """Each limit, exceeded by one."""
    from scheduling.simulation import LimitWatch

    watch = LimitWatch(Limits(max_total_workers=4, max_workers_per_user=2, cpu_limit=2, memory_limit_bytes=100))
    for user, lane in begun[:-1]:
        watch.begun(user, lane, TokenKind.CPU, 1)
    assert watch.broken == []
    user, lane = begun[-1]
    watch.begun(user, lane, TokenKind.CPU, 1)
    assert said in watch.broken


def test_a_target_is_missed_on_the_wrong_side_only() -> None:
    """At most and at least, both or neither."""
    from scheduling.figures import Figure

    def missed(value: float, **target: float) -> bool:
        return Figure(name="n", value=value, unit="", words="", **target).missed

    assert not missed(5)
    assert missed(5, at_most=4)
    assert not missed(4, at_most=4, at_least=4)
    assert missed(3, at_most=5, at_least=4)
