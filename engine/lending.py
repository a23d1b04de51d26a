"""One desk, lent to any number of threads of this process.

Rule: a grant goes to the thread whose wish it answers, whichever thread hears of it; one that nobody waits for any
longer goes straight back. So no token is lost between a time-out, an interruption and a grant of the same moment.

    borrow --exchange--> desk        granted at once: no other thread is involved
       |                   ^
       +-- waits           |  the bell rings, or a second has passed
                        clerk        one thread: collects grants for those who wait, and tidies up after interruptions

Ctrl-C may fall anywhere, in the midst of tidying up too. So a thread that is interrupted only says so, in one call of C
that cannot itself be interrupted (`_cry`); the clerk, which is never interrupted, compares what the desk holds with
what threads here know of, and returns the rest.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import select
import threading
import time
import weakref
from dataclasses import dataclass, field
from functools import partial

from engine.desk import Desk
from engine.errors import CannotRunError, NightmillError, UsageError
from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.ports import Answer, Ask, Return

_log = logging.getLogger(__name__)

#: The clerk looks without being called so often while somebody waits: the bell of a killed scheduler does not ring.
LOOK_SECONDS = 1.0
_COME, _TIDY = b".", b"!"


@dataclass(slots=True, eq=False, kw_only=True)
class Wish:
    """An ask of one thread: the gate opens when it is granted, called off or failed.

    kept       its loan is returned by `release`, of whatever thread
    abandoned  its thread was interrupted and will not hear of it
    """

    ask: Ask
    kept: bool
    gate: threading.Event = field(default_factory=threading.Event)
    loan: Loan | None = None
    error: NightmillError | None = None
    abandoned: bool = False

    def call_off(self) -> None:
        """From any thread: whoever waits for it goes on without, unless it was granted already."""
        self.gate.set()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Loan:
    """A token in the hands of a thread. Its user is charged for the time since `began` (monotonic seconds)."""

    lease_id: LeaseId
    wish: Wish
    began: float


class Lender:
    """Tokens for the threads of one process. Every method may be called from any thread."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._numbers = itertools.count(1)
        #: Guards what follows. Never held while the desk is spoken to.
        self._lock = threading.RLock()
        self._wishes: dict[str, Wish] = {}
        #: In the order in which they were lent.
        self._loans: dict[LeaseId, Loan] = {}
        self._untidy = False
        self._closed = False
        self._ear, mouth = os.pipe()
        for end in (self._ear, mouth):
            os.set_blocking(end, False)
        # Closed with this object, not with the desk: a late call must not reach a file that has got the same number.
        weakref.finalize(self, _close_all, self._ear, mouth).atexit = False
        voice = io.FileIO(mouth, "w", closefd=False)
        self._call_clerk = partial(voice.write, _COME)
        self._cry = partial(voice.write, _TIDY)
        threading.Thread(target=self._serve, daemon=True, name="nightmill-clerk").start()

    def wish(self, user: UserId, *, lane: Lane, kind: TokenKind, cost_seconds: float, kept: bool = False) -> Wish:
        """A wish to `borrow` with. cost_seconds: how long the token will probably be held; orders users only."""
        ask_id = f"{next(self._numbers)}"
        return Wish(ask=Ask(ask_id=ask_id, user=user, lane=lane, kind=kind, cost_seconds=cost_seconds), kept=kept)

    def borrow(
        self, wish: Wish, *, timeout_seconds: float | None = None, instead_of: Loan | None = None
    ) -> Loan | None:
        """Wait for the token; `instead_of` goes back in the same call that asks. None: timed out, or called off.

        Raises SchedulerUnreachable and CannotRunError; then, too, nothing stands any longer, and nothing is out.
        """
        ask_id = wish.ask.ask_id
        try:
            with self._lock:
                if self._closed:
                    raise closed_error()
                self._wishes[ask_id] = wish
            self._exchange(asks=(wish.ask,), back=() if instead_of is None else (instead_of,))
            if not wish.gate.is_set():
                _log.debug("wait: %r, a %s %s token, for %s", wish.ask.user, wish.ask.lane, wish.ask.kind, ask_id)
                if timeout_seconds != 0.0:
                    self._call_clerk()
                wish.gate.wait(timeout_seconds)
            if wish.loan is None and wish.error is None:
                self._exchange(withdraw=(ask_id,))
                with self._lock:
                    self._wishes.pop(ask_id, None)
            # Granted while it was being withdrawn: the token is here, so it may as well be used.
            if wish.loan is None and wish.error is not None:
                raise wish.error
            if wish.loan is None:
                _log.debug("no lease: %r, for %s: timed out, or called off", wish.ask.user, ask_id)
            else:
                _log.debug(
                    "lease %s: %r, a %s %s token, for %s",
                    *(wish.loan.lease_id, wish.ask.user, wish.ask.lane, wish.ask.kind, ask_id),
                )
            return wish.loan
        except BaseException:
            wish.abandoned = True
            self._cry()
            raise

    def release(self, user: UserId) -> bool:
        """End the newest loan of that user that was to be kept. False, and no change, when there is none."""
        try:
            with self._lock:
                mine = (loan for loan in reversed(self._loans.values()) if loan.wish.ask.user == user)
                loan = next((loan for loan in mine if loan.wish.kept and not loan.wish.abandoned), None)
                if loan is None:
                    return False
                del self._loans[loan.lease_id]
            self.give_back(loan)
            return True
        except BaseException:
            self._cry()
            raise

    def give_back(self, loan: Loan) -> None:
        """End a loan. Cannot fail: where no scheduler answers, the next one is not told of this lease."""
        loan.wish.abandoned = True
        try:
            self._exchange(back=(loan,))
        except NightmillError as error:
            if not self._closed:
                _log.warning(
                    "a token of %s went back to a scheduler that does not answer: %s", loan.wish.ask.user, error
                )
        except BaseException:
            self._cry()
            raise

    def close(self) -> None:
        """All that wait are told so, all that is out goes back. Idempotent."""
        with self._lock:
            self._closed = True
            wishes = list(self._wishes.values())
        for wish in wishes:
            wish.error = closed_error()
            wish.gate.set()
        self._call_clerk()
        self.desk.close()

    # --- how ---

    def _exchange(
        self, *, asks: tuple[Ask, ...] = (), back: tuple[Loan, ...] = (), withdraw: tuple[str, ...] = ()
    ) -> None:
        """One round trip, and everything that the answer says handed to whom it concerns."""
        now = time.monotonic()
        returns = tuple(Return(lease_id=loan.lease_id, cost_seconds=now - loan.began) for loan in back)
        with self._lock:
            for loan in back:
                self._loans.pop(loan.lease_id, None)
        while True:
            try:
                answer = self.desk.exchange(asks=asks, returns=returns, withdraw=withdraw, explain=False)
            except OSError:
                if self._closed:
                    raise closed_error() from None  # In this very moment.
                raise
            strays = self._settle(answer)
            if not strays:
                return
            asks, withdraw = (), ()
            returns = tuple(Return(lease_id=lease_id, cost_seconds=0.0) for lease_id in strays)

    def _settle(self, answer: Answer) -> list[LeaseId]:
        """Each grant to its wish; answers with those that nobody waits for."""
        return self._hand_over([(g.ask_id, g.lease_id) for g in answer.grants]) if answer.grants else []

    def _hand_over(self, granted: list[tuple[str, LeaseId]]) -> list[LeaseId]:
        """May be done again for the same grants, and from the middle: the clerk does what an interruption left."""
        strays = []
        now = time.monotonic()
        with self._lock:
            for ask_id, lease_id in granted:
                wish, loan = self._wishes.get(ask_id), self._loans.get(lease_id)
                if wish is None and loan is None:
                    strays.append(lease_id)
                if wish is None:
                    continue
                if loan is None:
                    loan = self._loans[lease_id] = Loan(lease_id=lease_id, wish=wish, began=now)
                wish.loan = loan
                wish.gate.set()
                del self._wishes[ask_id]
        return strays

    # --- the clerk ---

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._ear, select.POLLIN)
        poller.register(self.desk.bell_fd, select.POLLIN)
        while not self._closed:
            # While nobody waits it sleeps, without a look: an idle process costs nothing.
            rung = poller.poll(LOOK_SECONDS * 1000 if self._wishes or self._untidy else None)
            if any(descriptor == self._ear for descriptor, _ in rung):
                self._untidy = _TIDY in os.read(self._ear, 1 << 16) or self._untidy
            try:
                if self._untidy:
                    self._untidy = False
                    self._tidy()
                elif self._wishes or rung:
                    self._exchange()
            except NightmillError as error:
                self._untidy = True
                self._fail_all(error)
            except OSError as error:
                if not self._closed:
                    # Whoever waits hears of it: without the clerk they would wait for ever.
                    self._untidy = True
                    self._fail_all(CannotRunError(f"the desk cannot be spoken to: {error}"))

    def _tidy(self) -> None:
        """What the desk holds is the truth: what no thread here waits for or has is withdrawn and returned.

        Another thread may be about to do the same with some of it; the desk passes over the second time.
        """
        with self._lock:
            for ask_id in [ask_id for ask_id, wish in self._wishes.items() if wish.abandoned]:
                del self._wishes[ask_id]
        asks, leases = self.desk.standing()
        strays = self._hand_over([(ask.ask_id, lease_id) for lease_id, ask in leases.items()])
        with self._lock:
            withdraw = [ask_id for ask_id in asks if ask_id not in self._wishes]
            given_up = [lease_id for lease_id, loan in self._loans.items() if loan.wish.abandoned]
            for lease_id in given_up:
                del self._loans[lease_id]
        returns = [Return(lease_id=lease_id, cost_seconds=0.0) for lease_id in (*strays, *given_up)]
        answer = self.desk.exchange(returns=returns, withdraw=withdraw, explain=False)
        if self._settle(answer):
            self._untidy = True

    def _fail_all(self, error: NightmillError) -> None:
        """Everybody who waits hears it from the thread that found out."""
        with self._lock:
            wishes, self._wishes = list(self._wishes.values()), {}
        for wish in wishes:
            wish.error = error
            wish.gate.set()


def _close_all(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def closed_error() -> UsageError:
    """What a manager says that is closed."""
    return UsageError("this manager is closed; get_thread_pool_manager() gives another")
