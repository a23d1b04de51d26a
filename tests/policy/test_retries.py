"""What becomes of an item after a failure, for every reason of the catalogue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import Failure
from engine.policy.retries import (
    KILLS_ALLOWED,
    MOST_LEFT_OUT,
    OWN_DOING,
    PASSING,
    Rescue,
    Verdict,
    after_failure,
    keeps_published,
    rescue,
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


@given(st.sampled_from(Reason), st.integers(2, 8), st.sets(st.integers(1, 8)), st.booleans())
def test_deadly_pages_are_left_out_until_the_rest_is_read(
    reason: Reason, pages: int, deadly: set[int], attachments_kill: bool
) -> None:
    """A few deadly pages cost themselves; from one too many on, what was read before it is kept; never all are lost."""
    left_out: set[int] = set()
    deadly = {page for page in deadly if page <= pages}
    for _ in range(10):
        page = min(deadly - left_out, default=None)
        if page is None and not attachments_kill:
            assert len(left_out) < pages  # There is something in the document.
            return
        before = set(range(1, page or pages + 1)) - left_out
        step = rescue(reason, page=page, pages=pages, left_out=len(left_out), worth_keeping=bool(before))
        if step is not Rescue.LEAVE_OUT:
            break
        assert page is not None
        left_out.add(page)
    else:
        raise AssertionError("this never ends")
    assert len(left_out) <= MOST_LEFT_OUT.get(reason, 0) < 4
    kept = reason in MOST_LEFT_OUT and bool(before)
    assert step is (Rescue.KEEP if kept else Rescue.NONE)
    if page is not None and reason in MOST_LEFT_OUT:
        assert len(left_out) == min(MOST_LEFT_OUT[reason], pages - 1)


def test_of_whom_something_is_kept() -> None:
    """Of a worker that died or had to be stopped; not of one that lied, nor of one that somebody else has killed."""
    assert MOST_LEFT_OUT.keys() == OWN_DOING - {Reason.PROTOCOL}
