"""Room in the spool: the limit and the reserve hold at every instant, one may always go alone, and nobody starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.document import parts_limit
from engine.model import Stage
from engine.policy.spool import DOCUMENT_JSON_BYTES, Need, SpoolBudget, Verdict, need_of, outbox_limit

LIMIT, RESERVE, LEAST = 100, 50, 20


def need(size: int) -> Need:
    return Need(spool_bytes=size, disk_bytes=size)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 150), st.booleans()), max_size=60),
    st.integers(0, 400),
)
def test_what_is_out_fits_or_is_alone(steps: list[tuple[str, int, bool]], disk: int) -> None:
    """Whoever asks for whatever in whatever order: what runs is within limit and reserve, or one alone."""
    budget = SpoolBudget(LIMIT, RESERVE, LEAST)
    out: dict[int, int] = {}
    for number, (asker, size, ends) in enumerate(steps):
        if ends and out:
            ended = min(out)
            budget.give_back(ended)
            del out[ended]
            continue
        # What is free already counts what is written; the worst for the policy is that nothing is written yet.
        verdict = budget.ask(asker, need(size), disk)
        if verdict is Verdict.GO:
            budget.take(number, asker, need(size))
            out[number] = size
            assert sum(out.values()) <= LIMIT or len(out) == 1
            assert disk - sum(out.values()) >= RESERVE
        if verdict in (Verdict.NEVER, Verdict.FULL):
            assert not out
            assert disk - size < RESERVE
            assert (verdict is Verdict.FULL) == (disk - RESERVE < LEAST)
        assert budget.spool_bytes == sum(out.values())


@given(st.lists(st.integers(1, 150), min_size=1, max_size=20), st.integers(1, 150))
def test_the_first_to_wait_starts_when_those_before_it_are_done(others: list[int], size: int) -> None:
    """However many small ones come meanwhile: none that began after it waited keeps it waiting."""
    budget = SpoolBudget(LIMIT, RESERVE, LEAST)
    budget.take("before", "x", need(LIMIT))
    assert budget.ask("large", need(size), 1000) is Verdict.WAIT
    for number, other in enumerate(others):
        if budget.ask(f"other {number}", need(other), 1000) is Verdict.GO:
            budget.take(number, f"other {number}", need(other))
    budget.give_back("before")
    for number, other in enumerate(others):
        if budget.ask(f"other {number}", need(other), 1000) is Verdict.GO:
            budget.take(number, f"other {number}", need(other))
    verdict = budget.ask("large", need(size), 1000)
    assert verdict is Verdict.GO or (size > LIMIT and budget.spool_bytes == 0)


def test_one_larger_than_the_spool_goes_alone() -> None:
    """It waits until nothing is out, and while it waits nothing else begins; nor while it runs."""
    budget = SpoolBudget(LIMIT, RESERVE, LEAST)
    budget.take(1, "a", need(10))
    assert budget.ask("large", need(500), 1000) is Verdict.WAIT
    assert budget.ask("b", need(1), 1000) is Verdict.WAIT
    budget.give_back(1)
    assert budget.ask("b", need(1), 1000) is Verdict.WAIT
    assert budget.ask("large", need(500), 1000) is Verdict.GO
    budget.take(2, "large", need(500))
    assert budget.ask("b", need(1), 1000) is Verdict.WAIT
    budget.give_back(2)
    assert budget.ask("b", need(1), 1000) is Verdict.GO


def test_who_is_gone_keeps_nobody_waiting() -> None:
    """A user whose turn is over loses its place in front."""
    budget = SpoolBudget(LIMIT, RESERVE, LEAST)
    budget.take(1, "a", need(10))
    assert budget.ask("large", need(500), 1000) is Verdict.WAIT
    budget.forget("large")
    assert budget.ask("b", need(90), 1000) is Verdict.GO


def test_the_disk_keeps_its_reserve() -> None:
    """One that would eat into it waits for others, and can never start where there is nobody to wait for: because it
    is too large, or because the disk is full.
    """
    budget = SpoolBudget(LIMIT, RESERVE, LEAST)
    assert budget.ask("a", need(51), 100) is Verdict.NEVER
    assert budget.ask("a", need(51), 69) is Verdict.FULL
    assert budget.ask("a", need(50), 100) is Verdict.GO
    budget.take(1, "a", need(30))
    assert budget.ask("b", need(30), 100) is Verdict.WAIT
    assert budget.ask("b", need(20), 100) is Verdict.GO


def test_what_takes_nothing_never_waits() -> None:
    """Texts to be embedded go on whatever the disk is like."""
    budget = SpoolBudget(LIMIT, RESERVE, LEAST)
    budget.take(1, "a", need(500))
    assert budget.ask("b", need_of(Stage.EMBED, 256), 0) is Verdict.GO


def test_honest_results_are_within_the_limit_of_an_outbox() -> None:
    """A mail of nothing but attachments, a text of 20 million Chinese characters, 256 vectors of 384 numbers."""
    assert outbox_limit(Stage.EXTRACT, 1, 10**9) > 10**9
    for size in (0, 10**6, 10**8):
        assert outbox_limit(Stage.EXTRACT, 1, size) >= DOCUMENT_JSON_BYTES + parts_limit(size)
    assert outbox_limit(Stage.CHUNK, 1, 20_000_000) > 14.3 * 20_000_000
    assert outbox_limit(Stage.EMBED, 1, 256) > 256 * 384 * 4
    assert outbox_limit(Stage.INDEX, 1, 10**9) > 10**9
