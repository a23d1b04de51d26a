"""One desk, lent to any number of threads of this process.

Rule: a grant goes to the thread whose wish it answers, whichever thread hears of it; one that nobody waits for any
longer goes straight back. So no token is lost between a time-out, an interruption and a grant of the same moment.

    borrow --exchange--> desk          granted at once: no other thread is involved
       |                   ^
       +-- waits           |  the bell rings, or a second has passed
                        clerk          one thread, there while somebody waits: collects grants, hands them over
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from dataclasses import dataclass, field

from engine.desk import Desk
from engine.errors import CannotRunError, NightmillError, UsageError
from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.ports import Answer, Ask, Return

_log = logging.getLogger(__name__)

#: The clerk looks without being called so often: the bell of a scheduler that was killed does not ring.
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """A token in the hands of a thread. Its user is charged for the time since `began` (monotonic seconds)."""

    lease_id: LeaseId
    user: UserId
    began: float


@dataclass(slots=True, eq=False, kw_only=True)
class Wish:
    """An ask of one thread: the gate opens when it is granted, called off or failed."""

    ask: Ask
    gate: threading.Event = field(default_factory=threading.Event)
    loan: Loan | None = None
    error: NightmillError | None = None

    def call_off(self) -> None:
        """From any thread: whoever waits for it goes on without, unless it was granted already."""
        self.gate.set()


class Lender:
    """Tokens for the threads of one process. Every method may be called from any thread."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._numbers = itertools.count(1)
        #: Guards what follows. Never held while the desk is spoken to.
        self._state = threading.Condition()
        self._wishes: dict[str, Wish] = {}
        self._loans: dict[LeaseId, Loan] = {}
        #: Asks that nobody waits for, of which the desk could not be told yet.
        self._dropped: set[str] = set()
        self._clerk: threading.Thread | None = None
        self._closed = False

    def wish(self, user: UserId, *, lane: Lane, kind: TokenKind, cost_seconds: float) -> Wish:
        """A wish to `borrow` with. cost_seconds: how long the token will probably be held; orders users only."""
        ask_id = f"{next(self._numbers)}"
        return Wish(ask=Ask(ask_id=ask_id, user=user, lane=lane, kind=kind, cost_seconds=cost_seconds))

    def borrow(
        self, wish: Wish, *, timeout_seconds: float | None = None, instead_of: Loan | None = None
    ) -> Loan | None:
        """Wait for the token; `instead_of` goes back in the same call that asks. None: timed out, or called off.

        Raises SchedulerUnreachable and CannotRunError; then, too, nothing stands any longer, and nothing is out.
        """
        ask_id = wish.ask.ask_id
        with self._state:
            self._refuse_if_closed()
            self._wishes[ask_id] = wish
        try:
            self._exchange(asks=(wish.ask,), back=() if instead_of is None else (instead_of,))
            if not wish.gate.is_set():
                if timeout_seconds != 0.0:
                    self._call_clerk()
                wish.gate.wait(timeout_seconds)
            if wish.loan is None:
                self._drop(ask_id)
        except CannotRunError:
            # The desk has tried for its whole patience: the clerk goes on trying, the caller hears of it now.
            self._drop_later({ask_id})
            raise
        except BaseException:
            self._drop(ask_id)
            if wish.loan is not None:
                self.give_back(wish.loan)
            raise
        # Granted while it was being withdrawn: the token is here, so it may as well be used.
        if wish.loan is None and wish.error is not None:
            raise wish.error
        return wish.loan

    def give_back(self, loan: Loan) -> None:
        """End a loan. Cannot fail: where no scheduler answers, the next one is not told of this lease."""
        if self._closed:
            return
        try:
            self._exchange(back=(loan,))
        except CannotRunError as error:
            _log.warning("a token of %s was given back to a scheduler that does not answer: %s", loan.user, error)

    def close(self) -> None:
        """All that wait are told so, all that is out goes back. Idempotent."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            wishes = list(self._wishes.values())
            self._state.notify_all()
        for wish in wishes:
            wish.error = _closed()
            wish.gate.set()
        self.desk.close()

    # --- how ---

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise _closed()

    def _exchange(
        self, *, asks: tuple[Ask, ...] = (), back: tuple[Loan, ...] = (), withdraw: tuple[str, ...] = ()
    ) -> None:
        """One round trip, and everything that the answer says handed to whom it concerns."""
        now = time.monotonic()
        returns = tuple(Return(lease_id=loan.lease_id, cost_seconds=now - loan.began) for loan in back)
        with self._state:
            for loan in back:
                self._loans.pop(loan.lease_id, None)
        try:
            while True:
                answer = self.desk.exchange(asks=asks, returns=returns, withdraw=withdraw)
                strays = self._hand_over(answer)
                if not strays:
                    return
                asks, withdraw = (), ()
                returns = tuple(Return(lease_id=lease_id, cost_seconds=0.0) for lease_id in strays)
        except NightmillError:
            raise
        except BaseException:
            self._mend()
            raise

    def _hand_over(self, answer: Answer) -> list[LeaseId]:
        """Each grant to its wish; answers with those that nobody waits for."""
        return self._settle([(grant.ask_id, grant.lease_id) for grant in answer.grants]) if answer.grants else []

    def _settle(self, granted: list[tuple[str, LeaseId]]) -> list[LeaseId]:
        strays = []
        now = time.monotonic()
        with self._state:
            for ask_id, lease_id in granted:
                if lease_id in self._loans:
                    continue
                wish = self._wishes.pop(ask_id, None)
                if wish is None:
                    strays.append(lease_id)
                    continue
                wish.loan = self._loans[lease_id] = Loan(lease_id=lease_id, user=wish.ask.user, began=now)
                wish.gate.set()
        return strays

    def _mend(self) -> None:
        """An interruption (Ctrl-C) fell between the desk's answer and its hand-over: what the desk holds is the truth.

        Another thread may be about to hand over the same grants; `_settle` and the scheduler pass over the second time.
        """
        held = self.desk.leases()
        with self._state:
            unknown = [(ask.ask_id, lease_id) for lease_id, ask in held.items() if lease_id not in self._loans]
        strays = self._settle(unknown)
        if strays:
            self.desk.exchange(returns=[Return(lease_id=lease_id, cost_seconds=0.0) for lease_id in strays])

    def _drop(self, ask_id: str) -> None:
        """Nobody waits for this ask any longer. Never raises for a scheduler that is away: the clerk says it later."""
        with self._state:
            if self._wishes.get(ask_id) is None or self._closed:
                self._wishes.pop(ask_id, None)
                return
        try:
            self._exchange(withdraw=(ask_id,))
        except CannotRunError:
            self._drop_later({ask_id})
        finally:
            with self._state:
                self._wishes.pop(ask_id, None)

    def _drop_later(self, ask_ids: set[str]) -> None:
        with self._state:
            for ask_id in ask_ids:
                self._wishes.pop(ask_id, None)
            self._dropped |= ask_ids
        self._call_clerk()

    def _call_clerk(self) -> None:
        with self._state:
            if self._clerk is None and not self._closed:
                self._clerk = threading.Thread(target=self._serve, daemon=True, name="nightmill-clerk")
                self._clerk.start()
            self._state.notify_all()

    def _serve(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._wishes or self._dropped or self._closed)
                if self._closed:
                    return
                dropped = tuple(self._dropped)
            try:
                if not dropped:
                    self.desk.wait_news(LOOK_SECONDS)
                self._exchange(withdraw=dropped)
            except NightmillError as error:
                self._fail_all(error)
            else:
                with self._state:
                    self._dropped.difference_update(dropped)

    def _fail_all(self, error: NightmillError) -> None:
        """Everybody who waits hears it from the thread that found out."""
        with self._state:
            wishes, self._wishes = list(self._wishes.values()), {}
            self._dropped.update(wish.ask.ask_id for wish in wishes)
        for wish in wishes:
            wish.error = error
            wish.gate.set()


def _closed() -> UsageError:
    return UsageError("this manager is closed; get_thread_pool_manager() gives another")
