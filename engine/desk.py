"""The coordinator's side of the scheduler: find it, start it, ask and return, and come back when it was killed.

Rule: what this side holds is the truth. Standing asks and leases are kept here and told to whichever scheduler
answers; a lease that a scheduler no longer counts is returned without effect.

    Desk.exchange -> DeskProxy -> socket -> scheduler
    watch thread  -> the scheduler's pidfd -> reconnects at once, though the coordinator may be busy for minutes
"""

from __future__ import annotations

import itertools
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from multiprocess import AuthenticationError

from engine import rendezvous
from engine.errors import CannotRunError, SchedulerUnreachable
from engine.logfile import find_log
from engine.model import LeaseId, UserId
from engine.policy.tokens import Limits
from engine.ports import Answer, Ask, Claim, DeskStats, Grant, Return
from engine.processes import Watched
from engine.rows import claim_row_of, row_of

#: How long a coordinator tries to reach or start a scheduler. A start takes half a second, and up to ten more when
#: the coordinators of a killed one do not come back.
PATIENCE_SECONDS = 30.0
#: A call that takes longer has met a scheduler that is stopped.
CALL_SECONDS = 10.0
#: The scheduler's own end when nobody needs it; long enough for one command to follow another.
IDLE_SECONDS = 5.0
#: The pause before a coordinator starts a scheduler again, so that few processes lose elections.
_START_PAUSE_SECONDS = 2.0
#: What talking to a scheduler that is not there, or that goes away, raises.
_LOST = (OSError, EOFError, AuthenticationError)
#: What an exchange says of asks, returns and withdrawals once the greeting has told what stands: nothing.
_NOTHING: tuple[Any, ...] = ([], [], [])

#: What is taken for the answer of a scheduler that does not know us right after our greeting.
_NO_ANSWER: tuple[Any, ...] = ((), {}, (), None, (), {}, 0)

_Result = TypeVar("_Result")


class Desk:
    """Implements ports.Desk for one coordinator process. Made by `open_desk`."""

    def __init__(self, data_dir: Path, limits: Limits, *, scaling: bool, debug: bool) -> None:
        #: Those in force at the scheduler: the strictest of all that are there.
        self.limits = self._own_limits = limits
        self._scaling, self._debug = scaling, debug
        self._data_dir = data_dir.resolve()
        self._place = rendezvous.make_runtime_dir(self._data_dir)
        self._client_file = rendezvous.ClientFile(self._place)
        self._asks: dict[str, Ask] = {}
        #: Each with the ask that it answered, which says what it is promised now.
        self._leases: dict[LeaseId, Ask] = {}
        #: Who works on a lease, as far as that has been said.
        self._claims: dict[LeaseId, Claim] = {}
        self._backlog: dict[UserId, int] = {}
        self._told: dict[UserId, Mapping[str, Any]] = {}
        self._proxy: rendezvous.DeskProxy | None = None
        self._scheduler: tuple[int, float] = (0, 0.0)
        self._scheduler_process: Watched | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._started_at = -_START_PAUSE_SECONDS
        self._lock = threading.RLock()
        self._closing = threading.Event()
        #: Tells greetings apart: one that was given up may reach the scheduler after the next.
        self._visits = itertools.count(1)
        #: An exchange did not come to its end (Ctrl-C): the scheduler may have granted what was not noted here. The
        #: greeting after a hang-up settles it.
        self._in_doubt = False
        try:
            self._connect()
        except BaseException:
            self._client_file.close()
            raise
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="desk-watch")
        self._watcher.start()

    @property
    def bell_fd(self) -> int:
        """Readable when there is news; for a loop of one's own. `exchange` takes it off."""
        return self._client_file.bell_fd

    def exchange(
        self,
        *,
        asks: Sequence[Ask] = (),
        returns: Sequence[Return] = (),
        withdraw: Sequence[str] = (),
        claims: Sequence[Claim] = (),
        backlog: Mapping[UserId, int] | None = None,
        explain: bool = True,
        patience_seconds: float = 0.0,
    ) -> Answer:
        """See ports.Desk. Raises SchedulerUnreachable after 30 s without a scheduler."""
        answer = self._exchange(asks, returns, withdraw, claims, backlog or {}, explain)
        if patience_seconds <= 0:
            return answer
        until, denied = time.monotonic() + patience_seconds, answer.denied
        while not (answer.grants or answer.stops) and self._asks and (left := until - time.monotonic()) > 0:
            self.wait_news(left)
            answer = self._exchange((), (), (), (), {}, explain)
        return replace(answer, denied=denied)

    def wait_news(self, timeout_seconds: float) -> bool:
        """See ports.Desk."""
        poller = select.poll()
        poller.register(self._client_file.bell_fd, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout_seconds) * 1000))

    def tell(self, user: UserId, status: Mapping[str, Any]) -> None:
        """See ports.Desk."""
        with self._lock:
            if not self._call("tell", self._client_file.session, str(user), dict(status)):
                self._hang_up()
                self._call("tell", self._client_file.session, str(user), dict(status))
            # Kept only now that it was found sound: it goes into every greeting.
            self._told.pop(user, None)
            if status:
                self._told[user] = dict(status)

    def promote(self, user: UserId) -> bool:
        """See ports.Desk."""
        with self._lock:
            return bool(self._call("promote", user))

    def note_worker(self, pid: int, started: float) -> None:
        """See ports.Desk. The worker leads its own process group; `started` is processes.start_time(pid)."""
        with self._lock:
            self._client_file.add(pid, started)

    def note_worker_gone(self, pid: int) -> None:
        """See ports.Desk."""
        with self._lock:
            self._client_file.remove(pid)

    def standing(self) -> tuple[frozenset[str], Mapping[LeaseId, Ask]]:
        """The asks that stand, and the leases that are out, each with the ask that it answered."""
        with self._lock:
            return frozenset(self._asks), dict(self._leases)

    def statistics(self) -> DeskStats:
        """See ports.Desk."""
        with self._lock:
            return DeskStats(**self._call("statistics"))

    def close(self) -> None:
        """Return every lease, withdraw every ask, disconnect. Idempotent; never starts a scheduler to say goodbye."""
        self._closing.set()
        with self._lock:
            if self._proxy is not None:
                with suppress(*_LOST):
                    self._proxy.call("leave", self._client_file.session)
            self._hang_up()
            self._client_file.close()
            if self._scheduler_process is not None:
                self._scheduler_process.close()
            if self._child is not None:
                self._child.poll()

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- how ---

    def _exchange(
        self,
        asks: Sequence[Ask],
        returns: Sequence[Return],
        withdraw: Sequence[str],
        claims: Sequence[Claim],
        backlog: Mapping[UserId, int],
        explain: bool,
    ) -> Answer:
        with self._lock:
            if self._in_doubt:
                self._hang_up()
            self._in_doubt = True
            ended = [given.lease_id for given in returns if self._leases.pop(given.lease_id, None) is not None]
            for lease_id in ended:
                self._claims.pop(lease_id, None)
            claimed = [claim_row_of(claim) for claim in claims if claim.lease_id in self._leases]
            for ask_id in withdraw:
                self._asks.pop(ask_id, None)
            for ask in asks:
                self._asks[ask.ask_id] = ask
            for user, waiting in backlog.items():
                self._backlog.pop(user, None)
                if waiting:
                    self._backlog[user] = waiting
            # Before the call: what rings from here on may not be in its answer.
            self._client_file.silence()
            session = self._client_file.session
            answer = self._call(
                "exchange",
                session,
                [row_of(ask) for ask in asks],
                [(given.lease_id, given.cost_seconds) for given in returns],
                list(withdraw),
                claimed,
                {str(user): waiting for user, waiting in backlog.items()},
                explain,
                meanwhile=(lambda: self._client_file.note_leases({}, ended)) if ended else None,
            )
            if answer is None:
                # The scheduler does not know us: it is a new one, or gave us up. The greeting tells it all.
                self._hang_up()
                answer = self._call("exchange", session, *_NOTHING, claimed, {}, explain) or _NO_ANSWER
            granted, waits, promoted, limits, denied, stops, room_bytes = answer
            if limits is not None:
                self.limits = Limits(**limits)
            grants = self._take(granted)
            if claims:
                self._keep_claims(claims, denied)
            self._in_doubt = False
            return Answer(
                grants=grants,
                waits=None if waits is None else {UserId(user): why for user, why in waits.items()},
                promoted=frozenset(UserId(user) for user in promoted),
                denied=frozenset(LeaseId(lease_id) for lease_id in denied),
                stops={LeaseId(lease_id): why for lease_id, why in stops.items()},
                room_bytes=room_bytes,
            )

    def _keep_claims(self, claims: Sequence[Claim], denied: Sequence[str]) -> None:
        """Note who works on what, and what is promised now: told to the next scheduler, and listed for one that we do
        not come back to."""
        changed: dict[str, Sequence[str | float]] = {}
        for claim in claims:
            ask = self._leases.get(claim.lease_id)
            if ask is None:
                # It ended, or was found not to be counted.
                continue
            if claim.lease_id in denied:
                claim = replace(claim, memory_bytes=ask.memory_bytes)
            self._claims[claim.lease_id] = claim
            if claim.memory_bytes != ask.memory_bytes:
                ask = self._leases[claim.lease_id] = replace(ask, memory_bytes=claim.memory_bytes)
                changed[claim.lease_id] = row_of(ask)
        if changed:
            # On a full disk the list keeps the old number, which counts only for one who is stopped while the
            # scheduler is killed; the worker's memory is seen by then whatever is listed.
            with suppress(CannotRunError):
                self._client_file.note_leases(changed, ())

    def _take(self, granted: Sequence[tuple[str, str]]) -> tuple[Grant, ...]:
        """Note what is held from now on. Raises CannotRunError when that cannot be written; the next exchange greets.

        A lease is used only when it stands beside the client file, and the scheduler that lent it still lived
        afterwards. So the next one, which begins when this one has ended, finds there whatever is used by somebody who
        is stopped and does not come back to it.
        """
        begun = {LeaseId(lease_id): self._asks[ask_id] for ask_id, lease_id in granted if ask_id in self._asks}
        if not begun:
            return ()
        self._client_file.note_leases({lease_id: row_of(ask) for lease_id, ask in begun.items()}, ())
        assert self._scheduler_process is not None
        if not self._scheduler_process.alive:
            # These asks stand as if nothing had been granted, and are told to the next scheduler.
            self._hang_up()
            self._client_file.note_leases({}, begun)
            return ()
        self._leases.update(begun)
        for ask in begun.values():
            del self._asks[ask.ask_id]
        return tuple(Grant(ask_id=ask.ask_id, lease_id=lease_id) for lease_id, ask in begun.items())

    def _call(self, method: str, *arguments: Any, meanwhile: Callable[[], None] | None = None) -> Any:
        """One call, made again after a reconnection when the scheduler went away in between.

        An exchange is not made again: the greeting has already told the new scheduler what stands.
        """
        try:
            if self._proxy is None:
                self._connect()
                arguments = _less_the_greeting(method, arguments)
            assert self._proxy is not None
            return self._proxy.call(method, *arguments, meanwhile=meanwhile)
        except _LOST:
            self._hang_up()
            self._connect()
            arguments = _less_the_greeting(method, arguments)
            assert self._proxy is not None
            try:
                return self._proxy.call(method, *arguments, meanwhile=meanwhile)
            except _LOST as error:
                raise SchedulerUnreachable(f"the scheduler went away twice in a row: {error}") from error

    def _connect(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        problem: BaseException | None = None
        while time.monotonic() < until and not self._closing.is_set():
            try:
                self._greet()
                return
            except (*_LOST, CannotRunError) as error:
                problem = error
                self._hang_up()
                if isinstance(error, _Refused):
                    raise CannotRunError(str(error)) from error
            self._start_if_needed()
            # Jitter keeps the coordinators of a killed scheduler from coming back in step.
            time.sleep(random.uniform(0.01, 0.05))  # noqa: S311 - nothing secret
        raise SchedulerUnreachable(
            f"the scheduler of {self._data_dir} could not be reached in {PATIENCE_SECONDS:.0f} s: {problem}; "
            f"its log is {find_log(self._place)}"
        )

    def _greet(self) -> None:
        self._proxy = rendezvous.DeskProxy(self._place, timeout_seconds=CALL_SECONDS)
        greeting = self._proxy.call(
            "greet",
            rendezvous.PROTOCOL,
            self._client_file.session,
            {
                "asks": [row_of(ask) for ask in self._asks.values()],
                "leases": [(lease_id, row_of(ask)) for lease_id, ask in self._leases.items()],
                "claims": [claim_row_of(claim) for claim in self._claims.values()],
                "limits": asdict(self._own_limits),
                "backlog": {str(user): waiting for user, waiting in self._backlog.items()},
                "told": {str(user): status for user, status in self._told.items()},
                "visit": next(self._visits),
            },
        )
        if "refused" in greeting:
            raise _Refused(greeting["refused"])
        pid, started = greeting["scheduler"]
        watched = Watched(int(pid), float(started))
        before, self._scheduler_process = self._scheduler_process, watched
        if before is not None:
            before.close()
        self._scheduler = watched.pid, watched.started
        for lease_id in greeting["void"]:
            # Not counted: told to a third scheduler, it would be.
            self._leases.pop(LeaseId(lease_id), None)
            self._claims.pop(LeaseId(lease_id), None)
        if greeting["void"]:
            self._client_file.note_leases({}, greeting["void"])
        self.limits = Limits(**greeting["limits"])
        self._started_at = -_START_PAUSE_SECONDS

    def _start_if_needed(self) -> None:
        """Start a scheduler unless one holds the lock. Two that start at once settle it by that lock."""
        if self._child is not None and self._child.poll() not in (None, 0, 75):
            code, self._child = self._child.returncode, None
            if code > 0:
                raise CannotRunError(f"the scheduler ended with code {code}: {self._last_words()}")
        now = time.monotonic()
        if now - self._started_at < _START_PAUSE_SECONDS or rendezvous.scheduler_runs(self._place):
            return
        self._started_at = now
        limits = self._own_limits
        with find_log(self._place).open("ab") as log:
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "engine.scheduler",
                    f"--data-dir={self._data_dir}",
                    f"--max-total-workers={limits.max_total_workers}",
                    f"--max-workers-per-user={limits.max_workers_per_user}",
                    f"--cpu-limit={limits.cpu_limit}",
                    f"--memory-limit-bytes={limits.memory_limit_bytes}",
                    f"--idle-seconds={IDLE_SECONDS}",
                    *([] if self._scaling else ["--no-scaling"]),
                    *(["--debug"] if self._debug else []),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _last_words(self) -> str:
        lines = find_log(self._place).read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "no reason given"

    def _hang_up(self) -> None:
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            proxy.close()

    def _watch(self) -> None:
        """Reconnect as soon as the scheduler has ended: the next one grants nothing before we are back."""
        while not self._closing.is_set():
            if self._child is not None:
                self._child.poll()
            pid, started = self._scheduler
            try:
                watched = Watched(pid, started)
            except ProcessLookupError:
                ended = True
            except OSError:
                # Out of descriptors. Whoever asks meanwhile finds the scheduler's end out by itself.
                self._closing.wait(1.0)
                continue
            else:
                ended = watched.wait_end(1.0)
                watched.close()
            if not ended:
                continue
            with self._lock:
                assert self._scheduler_process is not None
                if self._closing.is_set() or self._scheduler_process.alive:
                    continue
                self._hang_up()
                try:
                    self._connect()
                except CannotRunError:
                    # The next exchange says so to somebody who can act on it.
                    self._closing.wait(1.0)


class _Refused(CannotRunError):  # noqa: N818
    """The scheduler answered, and will not have us."""


def _less_the_greeting(method: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What is left to say once the greeting has told what stands: an ask that is told twice would be granted twice.

    Claims are said again: the greeting tells of those that were met, and one is the same when it is said twice.
    """
    return (arguments[0], *_NOTHING, arguments[4], {}, arguments[-1]) if method == "exchange" else arguments


def open_desk(
    *,
    data_dir: Path,
    max_total_workers: int,
    max_workers_per_user: int,
    cpu_limit: int,
    memory_limit_bytes: int,
    scaling: bool = True,
    debug: bool = False,
) -> Desk:
    """A desk of this process at the scheduler of `data_dir`, which is started if none runs.

    The limits hold as long as this desk is open; in force are the strictest of all desks (`Desk.limits`).
    scaling, debug: of a scheduler that is started here. Raises CannotRunError (runtime folder not private, other
    release) and SchedulerUnreachable (after 30 s).
    """
    limits = Limits(
        max_total_workers=max_total_workers,
        max_workers_per_user=max_workers_per_user,
        cpu_limit=cpu_limit,
        memory_limit_bytes=memory_limit_bytes,
    )
    return Desk(data_dir, limits, scaling=scaling, debug=debug)


def find_statistics(data_dir: Path) -> DeskStats | None:
    """The counters of the scheduler that runs for this data directory; None when none runs. Starts nothing."""
    return _visit(data_dir, lambda proxy: DeskStats(**proxy.call("statistics")))


def stop_scheduler(data_dir: Path) -> bool:
    """End the scheduler and wait until it has ended (5 s at most). False when none runs, or it has not ended.

    Coordinators that still work start another one.
    """

    def say_stop(proxy: rendezvous.DeskProxy) -> Watched | None:
        pid, started = proxy.call("whoami")
        try:
            scheduler = Watched(pid, started)
        except ProcessLookupError:
            return None
        with suppress(*_LOST):
            # It may be gone before its answer is out.
            proxy.call("stop")
        return scheduler

    scheduler = _visit(data_dir, say_stop)
    if scheduler is None:
        return False
    try:
        return scheduler.wait_end(5.0)
    finally:
        scheduler.close()


def _visit(data_dir: Path, action: Callable[[rendezvous.DeskProxy], _Result | None]) -> _Result | None:
    place = rendezvous.find_scheduler(data_dir)
    if place is None:
        return None
    try:
        proxy = rendezvous.DeskProxy(place, timeout_seconds=CALL_SECONDS)
        try:
            return action(proxy)
        finally:
            proxy.close()
    except _LOST:
        return None
