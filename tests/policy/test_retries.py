"""What becomes of an item after a failure, for every reason of the catalogue."""

from __future__ import annotations

import pytest

from engine.model import Failure
from engine.policy.retries import KILLS_ALLOWED, OWN_DOING, PASSING, Verdict, after_failure, worth_another_run
from engine.reasons import CATALOGUE, Reason


@pytest.mark.parametrize("reason", Reason)
def test_every_item_comes_to_an_end(reason: Reason) -> None:
    """Whatever fails again and again ends after a few attempts, failed or set aside."""
    for attempts in range(1, 10):
        for alone in (False, True):
            verdict = after_failure(Failure(reason=reason), attempts=attempts, alone=alone)
            assert not (verdict.retry and verdict.quarantine)
            assert not verdict.quarantine or reason in OWN_DOING
            assert not verdict.retry or (CATALOGUE[reason].retry and attempts < KILLS_ALLOWED)


@pytest.mark.parametrize("reason", sorted(OWN_DOING))
def test_a_workers_own_death_is_tried_once_more_alone_then_set_aside(reason: Reason) -> None:
    """The first time again, alone and with more memory; the second time quarantine."""
    again = Verdict(retry=True, alone=True, more_memory=True)
    assert after_failure(Failure(reason=reason), attempts=1, alone=False) == again
    assert after_failure(Failure(reason=reason), attempts=2, alone=True) == Verdict(quarantine=True)


def test_a_kill_from_outside_is_never_blamed_on_the_item() -> None:
    """A killed worker's item runs alone next time, five times at most, and then has failed."""
    killed = Failure(reason=Reason.KILLED, signal=9)
    for attempts in range(1, KILLS_ALLOWED):
        assert after_failure(killed, attempts=attempts, alone=attempts > 1) == Verdict(retry=True, alone=True)
    assert after_failure(killed, attempts=KILLS_ALLOWED, alone=True) == Verdict()


@pytest.mark.parametrize("reason", sorted(set(Reason) - OWN_DOING - {Reason.KILLED}))
def test_everything_else_has_failed_for_this_run(reason: Reason) -> None:
    """What a second look within minutes would not change is not looked at again."""
    assert after_failure(Failure(reason=reason), attempts=1, alone=False) == Verdict()


def test_the_next_run_tries_what_may_have_passed() -> None:
    """Passing reasons are pending again by themselves; a broken document or extractor is not."""
    assert {reason for reason in Reason if worth_another_run(reason)} == PASSING
    assert not worth_another_run(Reason.EXTRACTOR_ERROR)
    assert not worth_another_run(Reason.DAMAGED)
    assert all(CATALOGUE[reason].retry for reason in PASSING)
