"""What becomes of an item after a failure, for every reason of the catalogue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import Failure
from engine.policy.retries import (
    KILLS_ALLOWED,
    OWN_DOING,
    PASSING,
    Verdict,
    after_failure,
    keeps_published,
    worth_another_run,
)
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
    """The first time again, alone and with all memory; the second time quarantine."""
    again = Verdict(retry=True, alone=True)
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


@pytest.mark.parametrize("reason", sorted(OWN_DOING))
def test_nobody_is_condemned_on_suspicion_alone(reason: Reason) -> None:
    """A second death among others is one more suspicion and gets its turn alone; a third condemns in any case."""
    again = Verdict(retry=True, alone=True)
    assert after_failure(Failure(reason=reason), attempts=1, alone=True) == again
    assert after_failure(Failure(reason=reason), attempts=2, alone=False) == again
    assert after_failure(Failure(reason=reason), attempts=3, alone=False) == Verdict(quarantine=True)


@given(st.sampled_from(Reason), st.integers(1, 50), st.booleans())
def test_more_attempts_never_win_back_what_was_lost(reason: Reason, attempts: int, alone: bool) -> None:
    """What is not tried again after so many attempts is not after more; who is tried again is alone."""
    verdict = after_failure(Failure(reason=reason), attempts=attempts, alone=alone)
    later = after_failure(Failure(reason=reason), attempts=attempts + 1, alone=alone)
    assert verdict.retry or not later.retry
    assert verdict.alone == verdict.retry
    assert not (reason is Reason.KILLED and verdict.quarantine)


@given(st.sampled_from(Reason), st.integers(1, 50), st.booleans(), st.text(max_size=20), st.integers(0, 64))
def test_words_and_signals_decide_nothing(reason: Reason, attempts: int, alone: bool, detail: str, signal: int) -> None:
    """The reason is what counts: what a stranger's file makes a library say cannot buy another attempt."""
    told = Failure(reason=reason, detail=detail, signal=signal)
    plain = Failure(reason=reason)
    assert after_failure(told, attempts=attempts, alone=alone) == after_failure(plain, attempts=attempts, alone=alone)


def test_what_was_published_stays_where_the_item_is_likely_the_same() -> None:
    """A full disk or a killed worker hides nothing that was searchable; a lost or forbidden item is not shown on."""
    assert keeps_published(Reason.DISK_FULL)
    assert keeps_published(Reason.KILLED)
    assert not any(map(keeps_published, (Reason.VANISHED, Reason.UNREADABLE, Reason.DAMAGED, Reason.CRASHED)))
    assert all(worth_another_run(reason) for reason in Reason if keeps_published(reason))
