"""Memory: who may start beside what runs, and how a large unit gets its turn."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.policy.admission import Reservation
from engine.policy.book import Book
from tests.policy.simulation import Player, Simulation, Unit
from tests.policy.words import Talk, a_book, an_ask, any_limits, end_lease_of, examples, granted_names, limits

SEEDS = st.integers(0, 2**32)


@examples(40)
@given(seed=SEEDS)
def test_a_reservation_is_served_in_time(seed: int) -> None:
    """A large unit starts at the latest when those that ran when it got the reservation are done.

    Whoever asks meanwhile, for whatever, in its lane, and whose promise grows or shrinks: time is simulated, and all
    units need the same kind of token.
    """
    luck = random.Random(seed)
    lane = luck.choice(list(Lane))
    memory = 1000

    def manner() -> Player:
        largest, longest = luck.choice((50, 300, 900, 1500)), luck.choice((0.5, 3.0, 30.0))

        def unit(_kind: TokenKind) -> Unit:
            true = luck.uniform(0.1, longest)
            error = luck.choice((0.1, 1.0, 5.0))
            need = luck.randint(0, largest)
            return Unit(estimated_seconds=true * error, true_seconds=true, memory_bytes=need)

        return Player(f"user{len(players)}", unit, lane=lane, depth=luck.randint(1, 3), weight=luck.choice((1.0, 3.0)))

    players: list[Player] = []
    for _ in range(luck.randint(2, 5)):
        players.append(manner())
    book = a_book(limits(total=12, per_user=12, cores=luck.randint(1, 5), memory=memory))
    night = Simulation(book, players)
    night.start()
    held: Reservation | None = None
    deadline = 0.0
    for _ in range(150):
        now_held = book.memory.reservation
        if now_held is not None and now_held != held:
            running = [since + unit.true_seconds for player in players for since, unit in player.running.values()]
            deadline = max(running)
        held = now_held
        out = [lease_id for player in players for lease_id in player.running]
        if out and luck.random() < 0.3:
            night.claim(luck.choice(out), luck.randint(0, memory))
            if book.memory.reservation != held:
                continue
        night.step()
        if held is not None and book.memory.reservation == held:
            assert night.now < deadline, f"{held} is not served, though all that ran before it are done"


@examples(60)
@given(seed=SEEDS)
def test_what_is_reserved_is_there_when_those_that_ran_are_done(seed: int) -> None:
    """Whatever is said, limits lowered aside: newcomers of its lane and the holder's unit never exceed the memory.

    And nobody of its lane starts with a token of its kind while it fits. So when all that ran are done it has started,
    or others have the tokens of its kind, and it takes the next that comes back.
    """
    luck = random.Random(seed)
    held: Reservation | None = None
    before: set[str] = set()
    room_left: list[tuple[LeaseId, int]] = []
    talk = Talk(
        any_limits(luck),
        at_grant=lambda started: room_left.append((started.lease_id, budget - talk.promised_bytes())),
    )
    budget = talk.limits.memory_limit_bytes
    for _ in range(80):
        talk.say_anything(luck, limits_change=False)
        room_left.clear()
        talk.grants()
        if talk.book.memory.reservation is not held:
            held, before = talk.book.memory.reservation, set(talk.out)
            continue
        if held is None:
            continue
        for lease_id, free in room_left:
            lease = talk.book.tokens.leases[lease_id]
            if lease.lane is held.lane and lease.kind is held.kind:
                assert min(held.size, budget) > free, f"{lease} went before {held}, which fits"
        newcomers = [out for lease_id, out in talk.out.items() if lease_id not in before]
        if held.lane is Lane.BULK and any(out.lane is Lane.INTERACTIVE for out in newcomers):
            before = set(
                talk.out
            )  # Interactive does not wait for bulk's reservation; what it took does not count here.
            continue
        assert sum(out.promise for out in newcomers) + min(held.size, budget) <= budget
        if not before & set(talk.out):
            why = talk.book.why(*held.key)
            assert why in ("cpu_cap", "total_cap"), f"all that ran before are done, and it waits for {why}"


def test_a_large_unit_starts_when_those_that_run_are_done() -> None:
    """The reservation holds back small units of others, so that a stream of them cannot starve a large one."""
    book = a_book(limits(memory=100))
    book.ask("night", an_ask("s0", "ann", memory=40))
    book.grants()
    book.ask("night", an_ask("large", "bob", memory=80))
    for name in ("s1", "s2"):
        book.ask("night", an_ask(name, "ann", memory=20))
    assert granted_names(book) == ["s1"]
    assert book.waits("night") == {"bob": "memory", "ann": "reserved"}
    end_lease_of(book, "s0")
    assert granted_names(book) == ["large"]


def test_a_unit_larger_than_the_budget_runs_alone() -> None:
    """An ask beyond the whole budget is granted when nothing else holds memory, and only what needs none joins it."""
    book = a_book(limits(memory=100))
    book.ask("night", an_ask("small", "ann", memory=1))
    book.grants()
    book.ask("night", an_ask("huge", "bob", memory=500))
    assert book.grants() == []
    end_lease_of(book, "small")
    for name, memory in (("small-2", 1), ("nothing", 0)):
        book.ask("night", an_ask(name, name, memory=memory))
    assert granted_names(book) == ["huge", "nothing"]
    assert book.memory.promised_bytes == 100


def test_a_unit_that_fits_does_not_wait_behind_one_that_does_not() -> None:
    """One user's small unit starts though its large one came before and does not fit."""
    book = a_book(limits(memory=100))
    for name, memory in (("s0", 40), ("large", 80), ("small", 10)):
        book.ask("night", an_ask(name, "ann", memory=memory))
    assert granted_names(book) == ["s0", "small"]


def a_held_book(**ceilings: int) -> Book:
    """A book of 100 bytes in which 40 are out and bob's unit of 80 has the reservation."""
    book = a_book(limits(memory=100, **ceilings))
    book.ask("night", an_ask("s0", "ann", memory=40))
    assert granted_names(book) == ["s0"]
    book.ask("night", an_ask("large", "bob", memory=80))
    assert granted_names(book) == []
    assert holder(book) == "large"
    return book


def holder(book: Book) -> str | None:
    """The ask that has the reservation."""
    held = book.memory.reservation
    return None if held is None else held.key[1]


def test_interactive_does_not_wait_for_bulks_reservation() -> None:
    """An interactive unit starts in the memory that is kept for a bulk one; a bulk unit does not."""
    book = a_held_book()
    book.ask("night", an_ask("bulk", "cy", memory=50))
    assert granted_names(book) == []
    book.ask("day", an_ask("urgent", "dee", memory=50, lane=Lane.INTERACTIVE))
    assert granted_names(book) == ["urgent"]


def test_interactive_takes_the_reservation_over() -> None:
    """A large interactive unit is next, though a bulk one had the reservation; bulk does not take it back."""
    book = a_held_book()
    book.ask("day", an_ask("urgent", "dee", memory=70, lane=Lane.INTERACTIVE))
    assert granted_names(book) == []
    assert holder(book) == "urgent"
    end_lease_of(book, "s0")
    assert granted_names(book) == ["urgent"]
    assert holder(book) == "large"


@pytest.mark.parametrize("end", ["withdrawn", "its session ends", "its user at the cap", "cap lowered", "promoted"])
def test_a_reservation_ends_with_its_reason(end: str) -> None:
    """Nothing is kept for an ask that is gone, or whose user may not be served."""
    book = a_held_book(per_user=2)
    book.ask("night", an_ask("next", "cy", memory=50))
    assert granted_names(book) == []
    match end:
        case "withdrawn":
            book.withdraw("night", "large")
        case "its session ends":
            book.begin_session("other")
            book.ask("other", an_ask("next", "cy", memory=50))
            book.end_asks("night")
        case "its user at the cap" | "cap lowered":
            for name in ("c1", "c2")[: 1 if end == "cap lowered" else 2]:
                book.ask("day", an_ask(name, "bob", kind=TokenKind.API))
            book.grants()
            if end == "cap lowered":
                book.set_limits(limits(memory=100, per_user=1))
        case "promoted":
            # It gets the reservation again in its new lane; there it does not hold back interactive work of others.
            book.promote(UserId("bob"))
            assert holder(book) is None
            return
    book.grants()
    assert "next" in {lease.ask_id for lease in book.tokens.leases.values()}


def test_a_reservation_is_over_when_it_is_served() -> None:
    """Once the large unit runs, nothing more is kept."""
    book = a_held_book()
    end_lease_of(book, "s0")
    assert granted_names(book) == ["large"]
    assert holder(book) is None
    book.ask("night", an_ask("small", "cy", memory=20))
    assert granted_names(book) == ["small"]


def test_what_ran_before_a_reservation_does_not_count_against_it() -> None:
    """A newcomer of an earlier reservation is an old one for the next: what lies beyond is the budget less the need."""
    book = a_held_book()
    book.ask("night", an_ask("newcomer", "cy", memory=20))
    assert granted_names(book) == ["newcomer"]
    book.withdraw("night", "large")
    book.ask("night", an_ask("larger", "bob", memory=88))
    assert granted_names(book) == []
    assert holder(book) == "larger"
    for name in ("beyond", "too much"):
        book.ask("night", an_ask(name, name, memory=10))
    assert granted_names(book) == ["beyond"]


def test_less_memory_starts_nothing_until_there_is_room_and_more_does_at_once() -> None:
    """After the budget is lowered below what is out, only units without need start; raised, what waits starts."""
    book = a_book(limits(memory=100))
    for name in ("a", "b"):
        book.ask("night", an_ask(name, name, memory=40))
    book.grants()
    book.set_limits(limits(memory=50))
    for name, memory in (("c", 10), ("nothing", 0)):
        book.ask("night", an_ask(name, name, memory=memory))
    assert granted_names(book) == ["nothing"]
    end_lease_of(book, "a")
    assert granted_names(book) == ["c"]
    book.ask("night", an_ask("d", "d", memory=40))
    assert granted_names(book) == []
    book.set_limits(limits(memory=90))
    assert granted_names(book) == ["d"]


# --- what others take, promises that grow, closed memory ---


def lease_of(book: Book, ask_id: str) -> LeaseId:
    """The lease that was lent for this ask."""
    return next(lease.lease_id for lease in book.tokens.leases.values() if lease.ask_id == ask_id)


def a_busy_book(**asked: int) -> Book:
    """A book of 100 bytes, with a lease out for each name, of so many bytes."""
    book = a_book(limits(memory=100))
    for name, memory in asked.items():
        book.ask("night", an_ask(name, name, memory=memory))
    assert granted_names(book) == list(asked)
    return book


@examples(40)
@given(seed=SEEDS)
def test_nothing_is_lent_or_grows_beyond_what_is_free(seed: int) -> None:
    """Whatever was read before: what is lent, and what a promise grows by, was free. Only who is alone may have more
    than that, and never more than the budget."""
    luck = random.Random(seed)
    talk = Talk(any_limits(luck))
    limit = talk.limits.memory_limit_bytes
    for _ in range(50):
        talk.say_anything(luck)
        talk.grants()
        talk.set_limits(limits(memory=limit))
        if not talk.out:
            continue
        lease_id = luck.choice(list(talk.out))
        before, free = talk.out[lease_id], talk.free_bytes()
        is_alone = before.promise == talk.promised_bytes()
        met = talk.claim(before.session, lease_id, luck.randint(0, limit + 5))
        after = talk.out[lease_id]
        assert after.promise <= limit
        if met and after.promise > before.promise and not is_alone:
            assert max(after.promise, after.used) - max(before.promise, before.used) <= free
        assert met or after == before


def test_what_others_take_is_not_lent() -> None:
    """Of 100 bytes others have 30 and one unit 40: a unit of 40 waits until others give some of it back."""
    book = a_busy_book(ann=40)
    book.note_memory(30, {}, False)
    book.ask("night", an_ask("bob", "bob", memory=40))
    assert book.grants() == []
    assert book.waits("night") == {"bob": "memory"}
    book.note_memory(20, {}, False)
    assert granted_names(book) == ["bob"]


def test_a_unit_begins_alone_whatever_others_have() -> None:
    """Where nothing is promised a unit starts though its need is not free: it may never be, and it must get a try."""
    book = a_book(limits(memory=100))
    book.note_memory(60, {}, False)
    book.ask("night", an_ask("large", "ann", memory=90))
    assert granted_names(book) == ["large"]


def test_what_a_unit_uses_beyond_its_promise_is_not_lent() -> None:
    """A unit of 40 that uses 70 leaves 30; when it has shrunk to its promise again, 60."""
    book = a_busy_book(ann=40)
    book.note_memory(0, {lease_of(book, "ann"): 70}, False)
    book.ask("night", an_ask("bob", "bob", memory=50))
    assert book.grants() == []
    book.note_memory(0, {lease_of(book, "ann"): 35}, False)
    assert granted_names(book) == ["bob"]


def test_a_promise_grows_into_what_is_free_and_shrinks() -> None:
    """Beside 40 of another, a promise of 20 grows to 60 and no further; shrunk, it makes room for a third."""
    book = a_busy_book(ann=40, bob=20)
    bob = lease_of(book, "bob")
    assert not book.claim("night", bob, 62)
    assert book.memory.promised_bytes == 60
    assert book.claim("night", bob, 60)
    book.ask("night", an_ask("cy", "cy", memory=30))
    assert book.grants() == []
    assert book.claim("night", bob, 30)
    assert granted_names(book) == ["cy"]
    assert not book.claim("day", bob, 20), "it is another session's"
    end_lease_of(book, "bob")
    assert book.memory.promised_bytes == 70
    assert not book.claim("night", bob, 20), "it has ended"


def test_what_is_used_already_is_not_asked_for_twice() -> None:
    """A unit of 20 that uses 50 of the 60 that are left can be promised all of the 60."""
    book = a_busy_book(ann=40, bob=20)
    book.note_memory(0, {lease_of(book, "bob"): 50}, False)
    assert book.claim("night", lease_of(book, "bob"), 60)


def test_who_is_alone_may_grow_to_the_whole_budget_and_no_further() -> None:
    """Others have taken a part, as they may before a unit starts alone; in closed memory that is over."""
    book = a_busy_book(ann=20)
    ann = lease_of(book, "ann")
    book.note_memory(50, {}, False)
    assert book.claim("night", ann, 96)
    assert not book.claim("night", ann, 104)
    assert book.claim("night", ann, 20)
    book.note_memory(50, {}, True)
    assert not book.claim("night", ann, 60)
    assert book.claim("night", ann, 50)


def test_growth_leaves_room_for_the_reservation() -> None:
    """A newcomer cannot grow into what is kept; the unit that the holder waits for can."""
    book = a_held_book()
    book.ask("night", an_ask("newcomer", "cy", memory=10))
    assert granted_names(book) == ["newcomer"]
    assert not book.claim("night", lease_of(book, "newcomer"), 24)
    assert book.claim("night", lease_of(book, "newcomer"), 20)
    assert book.claim("night", lease_of(book, "s0"), 80)
    end_lease_of(book, "s0")
    assert granted_names(book) == ["large"]


def test_in_closed_memory_nothing_starts_beside_what_is_out() -> None:
    """However small it is. Alone one unit starts if its need is free; when memory is open again, all do."""
    book = a_busy_book(ann=20)
    book.note_memory(60, {}, True)
    for name, memory in (("large", 50), ("small", 30), ("nothing", 0)):
        book.ask("night", an_ask(name, name, memory=memory))
    assert book.grants() == []
    assert set(book.waits("night").values()) == {"memory"}
    end_lease_of(book, "ann")
    assert granted_names(book) == ["small"]
    book.note_memory(10, {}, False)
    assert granted_names(book) == ["large", "nothing"]


def test_tokens_without_need_keep_nobody_out_of_closed_memory() -> None:
    """A product holds them for as long as its calls take, many at once, while others have filled the machine."""
    book = a_busy_book(ann=0)
    book.note_memory(60, {}, True)
    for name, memory in (("call", 0), ("small", 30), ("late", 0)):
        book.ask("night", an_ask(name, name, memory=memory))
    assert granted_names(book) == ["call", "small"]
    assert book.waits("night") == {"late": "memory"}


def test_closed_memory_reserves_nothing() -> None:
    """A unit that waits only because memory is closed has no reservation, which would keep others out afterwards."""
    book = a_busy_book(ann=20)
    book.note_memory(0, {}, True)
    book.ask("night", an_ask("small", "bob", memory=30))
    assert book.grants() == []
    assert holder(book) is None
