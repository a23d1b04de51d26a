"""How a run reports: small frozen events, and reporters that turn them into a bar, into lines or into nothing.

Rule: whoever reports never ends what is reported on. `Guarded` swallows what a reporter raises; the one broad
`except` of reporting is there. Names of files are anybody's words: no control character of theirs is written.

    pipeline, run --say(event)--> Guarded --> BarReporter     a terminal
                                          --> LineReporter    a file, a pipe, a service's journal
                                          --> SilentReporter  --json
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO, TypeAlias, assert_never

from engine.model import ItemState, Stage, UserId
from engine.printing import printable
from engine.reasons import Reason

if TYPE_CHECKING:
    from tqdm import tqdm

_log = logging.getLogger(__name__)

#: Our two packages; the root logger belongs to whoever embeds us.
_LOGGERS: Final = ("engine", "indexes")
#: Between two progress lines. A night of eight hours stays under a thousand of them.
PROGRESS_SECONDS: Final = 30.0
#: Between two drawings of the bar: as often as an eye can follow, and no more work than that.
_DRAW_SECONDS: Final = 0.1
#: The desk's words (ports.Answer.waits), for people.
WAITS: Final = {
    "user_cap": "the limit per user",
    "total_cap": "the limit in all",
    "cpu_cap": "a core",
    "memory": "memory",
    "reserved": "memory that is kept for another",
    "turn": "its turn",
    "recovering": "the scheduler",
    "spool": "room in the spool",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UserBegan:
    """Work on a user begins; `found` items are known of it so far."""

    user: UserId
    found: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSettled:
    """An item came to its end in this run. `reason` is None where it was indexed."""

    user: UserId
    path: str
    state: ItemState
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDied:
    """A worker ended that should not have, while it read `path` ("" while it did nothing)."""

    stage: Stage
    detail: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """Anything else that a person should read: one line."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """Where the run stands. May be said as often as one likes: reporters choose what they show.

    indexed, skipped, failed, pending   items of all users of the run; they add up to what was found so far
    active   workers that are busy
    waits    reason of waiting, as the desk says it -> how many users wait for it
    vectors  texts embedded in this run
    """

    indexed: int
    skipped: int
    failed: int
    pending: int
    users_done: int
    users_total: int
    active: int = 0
    waits: Mapping[str, int] = field(default_factory=dict)
    vectors: int = 0

    @property
    def settled(self) -> int:
        """Items that are not pending."""
        return self.indexed + self.skipped + self.failed

    @property
    def found(self) -> int:
        """All items found so far."""
        return self.settled + self.pending


Event: TypeAlias = UserBegan | ItemSettled | WorkerDied | Notice | Progressed


class Reporter(Protocol):
    """Hears what a run says. Used by one thread."""

    def say(self, event: Event) -> None:
        """Take note of an event; shown now, later or never."""
        ...

    def close(self) -> None:
        """Show what is still to be shown. Idempotent; leaves the stream open."""
        ...


def choose_reporter(stream: TextIO | None, quiet: bool = False) -> Reporter:
    """A bar for a terminal, lines for any other stream, nothing when quiet (or without a stream).

    What it returns never raises.
    """
    if quiet or stream is None or stream.closed:
        return SilentReporter()
    return Guarded(BarReporter(stream) if stream.isatty() else LineReporter(stream))


class Guarded:
    """Passes events on until the reporter fails (its terminal was closed, the disk of its log is full)."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter: Reporter = reporter

    def say(self, event: Event) -> None:
        """See Reporter. Never raises."""
        self._try(lambda: self._reporter.say(event))

    def close(self) -> None:
        """See Reporter. Never raises."""
        self._try(self._reporter.close)
        self._reporter = SilentReporter()

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - the reporter's: hours of work must not end with a closed terminal
            self._reporter = SilentReporter()
            _log.warning("the run goes on without reports: %s: %s", type(error).__name__, error)


class SilentReporter:
    """Says nothing, because somebody else reads the output."""

    def say(self, event: Event) -> None:
        """See Reporter."""

    def close(self) -> None:
        """See Reporter."""


class LineReporter:
    """Plain lines: each failure, death and notice one, progress at most one in `pause_seconds`."""

    def __init__(
        self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic, pause_seconds: float = PROGRESS_SECONDS
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._pause_seconds = pause_seconds
        self._next = clock()
        self._unsaid: Progressed | None = None
        self._user: UserId | None = None

    def say(self, event: Event) -> None:
        """See Reporter."""
        match event:
            case Progressed():
                self._unsaid = event
                if self._clock() >= self._next:
                    self._next = self._clock() + self._pause_seconds
                    self._say_progress()
            case UserBegan():
                self._user = event.user
            case _:
                line = _line_of(event)
                if line:
                    _write(self._stream, line)

    def close(self) -> None:
        """See Reporter. The last state is said, whenever the one before was."""
        self._say_progress()

    def _say_progress(self) -> None:
        if self._unsaid is not None:
            _write(self._stream, _progress_line(self._unsaid, self._user))
            self._unsaid = None


class BarReporter:
    """A bar over the items, with the users done before it and what waits behind it; other lines go above it."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._bar: tqdm[Any] | None = None
        self._next = clock()
        self._last: Progressed | None = None
        self._user: UserId | None = None

    def say(self, event: Event) -> None:
        """See Reporter."""
        match event:
            case Progressed():
                self._last = event
                if self._clock() >= self._next:
                    self._next = self._clock() + _DRAW_SECONDS
                    self._draw(event)
            case UserBegan():
                self._user = event.user
            case _:
                line = _line_of(event)
                if line:
                    with _bars_set_aside(self._stream):
                        _write(self._stream, line)

    def close(self) -> None:
        """See Reporter. The bar stays where it stands; an interrupted run shows how far it came."""
        if self._last is not None:
            self._draw(self._last)
        if self._bar is not None:
            self._bar.close()
        self._bar, self._last = None, None

    def _draw(self, progress: Progressed) -> None:
        people = _fit(self._stream, _people_of(progress, self._user)) + " "
        state = _fit(self._stream, _state_of(progress))
        if self._bar is None:
            # What was done before counts as done, and not as speed: `initial` keeps the time left honest.
            self._bar = _bar_class()(
                desc=people,
                postfix=state,
                file=self._stream,
                total=progress.found,
                initial=progress.settled,
                position=0,
                leave=True,
                dynamic_ncols=True,
                bar_format="{desc}{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
            )
            return
        self._bar.total = progress.found
        self._bar.n = progress.settled
        self._bar.set_description_str(people, refresh=False)
        self._bar.set_postfix_str(state, refresh=False)
        self._bar.refresh()


def set_up_logging(level: str, stream: TextIO) -> None:
    """Send our two packages' log to `stream`, one line for each line of a record, from `level` on ("debug", ...).

    The root logger is left alone. A second call replaces the first. For the command line only.
    """
    handler = _LogHandler(stream)
    handler.setFormatter(_LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for earlier in [one for one in logger.handlers if isinstance(one, _LogHandler)]:
            logger.removeHandler(earlier)
        logger.addHandler(handler)
        logger.setLevel(level.upper())


# --- words ---


def _line_of(event: ItemSettled | WorkerDied | Notice) -> str:
    """The one line of an event, "" when it has none: what was indexed or skipped is counted, not named."""
    match event:
        case ItemSettled():
            if event.state not in (ItemState.FAILED, ItemState.QUARANTINED):
                return ""
            why = event.reason or "no reason given"
            return f"{event.state} {event.user}: {event.path}: {why}" + (f" ({event.detail})" if event.detail else "")
        case WorkerDied():
            doing = f" while it read {event.path}" if event.path else ""
            return f"a worker of stage {event.stage} ended{doing}: {event.detail}"
        case Notice():
            return event.text
        case _:
            assert_never(event)


def _progress_line(progress: Progressed, user: UserId | None) -> str:
    return (
        f"{_people_of(progress, user)} {progress.settled}/{progress.found} items, {progress.indexed} indexed, "
        f"{progress.skipped} skipped, {progress.vectors} vectors, {progress.active} busy, {_state_of(progress)}"
    )


def _people_of(progress: Progressed, user: UserId | None) -> str:
    """`3/12 users, ann:`; who has begun last is named while somebody is still to be done."""
    now = f", {user}" if user is not None and progress.users_done < progress.users_total else ""
    return f"{progress.users_done}/{progress.users_total} users{now}:"


def _state_of(progress: Progressed) -> str:
    """What needs an eye. Failures always, so that none looks like none. Short: a bar has to fit beside it."""
    waits = [f"{count} wait for {WAITS.get(why, why)}" for why, count in progress.waits.items() if count]
    return ", ".join([f"{progress.failed} failed", *waits])


def _fit(stream: TextIO, text: str) -> str:
    """One line that the stream can write: an old terminal's character set may lack half of a name."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return printable(text).encode(encoding, "replace").decode(encoding)


def _write(stream: TextIO, text: str) -> None:
    stream.write(_fit(stream, text) + "\n")
    stream.flush()


# --- the bar and the log on one terminal ---


@cache
def _bar_class() -> type[tqdm[Any]]:
    """Loaded when a bar is drawn: the import takes 50 ms, and most commands draw none."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]  # cannot be subscripted when it runs
        # Without its watching thread, and with a plain lock: tqdm's own makes a semaphore between processes.
        monitor_interval = 0

    Bar.set_lock(threading.RLock())
    return Bar


@contextmanager
def _bars_set_aside(stream: TextIO) -> Iterator[None]:
    """Take a bar on that stream away, and draw it again afterwards. Costs nothing where there is none."""
    if _bar_class.cache_info().currsize == 0:
        yield
        return
    with _bar_class().external_write_mode(file=stream):
        yield


class _LogHandler(logging.StreamHandler[TextIO]):
    """Writes above a bar, not into it."""

    def emit(self, record: logging.LogRecord) -> None:
        with _bars_set_aside(self.stream):
            super().emit(record)


class _LogFormatter(logging.Formatter):
    """A traceback keeps its lines, indented so that none passes for a record; nothing else moves the cursor."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n  ".join(printable(line) for line in super().format(record).split("\n"))
