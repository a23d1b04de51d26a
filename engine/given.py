"""What a product has in hand already, mails, events or files, brought into one user's index: three public functions.

    items --composed--> <user's folder>/given/ --listed--> a run over this one source --> how each item ended
           (under the user's lock, by the surveyor's thread)

Rule: no second way into an index. What is given is kept as a source of the user, and then worked on as any source is:
same workers, limits, tokens, ledger and publish; a later run reads it again when it has to. One item that cannot be
read costs itself alone: only a call that makes no sense as a whole raises. Loads no library that reads documents.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from engine import guards
from engine.composing import CannotComposeError, Composed, compose_event, compose_mail, id_one_line, own_id
from engine.coordinator import EXIT_CANNOT
from engine.errors import CannotRunError, NightmillError, UsageError
from engine.manager import get_thread_pool_manager
from engine.model import Failure, ItemKey, ItemState, Lane, UserId
from engine.opening import make_data_dir
from engine.ports import FetchFailed, ItemRecord
from engine.reasons import CATALOGUE, Reason
from engine.run import open_own_ledger, run
from engine.settings import Settings, own_settings
from engine.sources import beneath, given
from engine.sources.rules import DEFAULT_MAX_SIZE_BYTES
from engine.survey import Orders
from engine.telemetry import Event, Guarded, ItemSettled, Progressed, Reporter, UserBegan

_log = logging.getLogger(__name__)

OnProgress = Callable[[float, str], None]
#: Of the span between `start` and `end`, what keeping takes: it is copying, the rest is reading and embedding.
_KEEPING_SHARE: Final = 0.1
#: Items brought to the disk together: the wait for it is then a small part of writing them.
_TOGETHER: Final = 500
#: Of each thread: `telling` is set while it is in an `on_progress`.
_thread: Final = threading.local()
#: CannotComposeError, and what numbers of a thousand digits, lists in lists without end, and time zones, messages and
#: mappings of the caller's own bring about.
_MALFORMED: Final = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenFailure:
    """One item that is not in the index, or an attachment of one.

    index       of the item in the call, from 0; id: the caller's own, or "" where it has none
    attachment  its name, "" when it is the item itself
    reason      a code of docs/reasons.md; `detail` says what was found
    """

    index: int
    id: str
    reason: str
    detail: str
    attachment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenReport:
    """How a call went. given == indexed + skipped + failed + pending.

    indexed    can be found now; `unchanged` of the items were given before, with the same content, and cost nothing
    pending    kept, and not reached: the next run goes on with them
    failures   what failed, attachments included, which are not counted above; skips: the same for what rules leave out
    """

    user_id: str
    given: int
    indexed: int
    skipped: int
    failed: int
    pending: int = 0
    unchanged: int = 0
    failures: tuple[GivenFailure, ...] = ()
    skips: tuple[GivenFailure, ...] = ()


def create_email_embeddings(
    user_id: str,
    emails: Iterable[object],
    start: float = 0.0,
    end: float = 100.0,
    *,
    interactive: bool = False,
    settings: Settings | None = None,
    on_progress: OnProgress | None = None,
) -> GivenReport:
    """Bring mails into the user's index, and say how it went.

    emails: each RFC 822 bytes, an `email.message.Message`, or a mapping: id, subject, from (or sender), to, cc, bcc,
    date, body (or text), html, thread_id, message_id, in_reply_to, references, attachments (mappings of name and
    content); or id and raw. The same id again replaces what was there; without one the bytes are the identity.
    start, end: percent. Progress from start to end is told by `update_user_status`, and on_progress(percent, text) is
    called in this thread.
    interactive: somebody waits: before all bulk work. settings: default from the environment and `.env`.
    Raises UsageError and its SettingsError, and CannotRunError: data directory, scheduler, disk. What was kept by then
    is gone on with by the next run. Waits while another process works on the user. Safe in any thread.
    """
    items = _listed("emails", emails)
    progress = _Progress(start, end, on_progress, len(items))
    return _bring_in(
        user_id, "mail", [_Composes(item, compose_mail) for item in items], progress, interactive, settings
    )


def create_schedule_embeddings(
    user_id: str,
    schedules: Iterable[object],
    start: float = 0.0,
    end: float = 100.0,
    *,
    interactive: bool = False,
    settings: Settings | None = None,
    on_progress: OnProgress | None = None,
) -> GivenReport:
    """Bring events into the user's index; as `create_email_embeddings`.

    schedules: each iCalendar text or bytes, or a mapping: id, summary (or title), start, end, location, description,
    organizer, attendees, recurrence, status. Times are datetimes, dates, ISO 8601 texts, or the mappings of the Google
    Calendar API. Without an id its UID names an event.
    """
    items = _listed("schedules", schedules)
    progress = _Progress(start, end, on_progress, len(items))
    forms = [_Composes(item, compose_event) for item in items]
    return _bring_in(user_id, "events", forms, progress, interactive, settings)


def create_file_embeddings(
    user_id: str,
    files: Iterable[object],
    credentials: object = None,
    start: float = 0.0,
    end: float = 100.0,
    *,
    interactive: bool = False,
    settings: Settings | None = None,
    on_progress: OnProgress | None = None,
) -> GivenReport:
    """Bring files into the user's index; as `create_email_embeddings`.

    files: each a path, or a mapping of path, or of name and content (bytes or text), and id. Without an id the
    absolute path, or the name, is the id. What a path names is copied: it may go afterwards.
    credentials: for files of Google Drive, which come with a later release; not looked at. A file that only has an id
    raises UsageError.
    """
    items = _listed("files", files)
    _refuse_drive(items)
    progress = _Progress(start, end, on_progress, len(items))
    return _bring_in(user_id, "files", [_FileForm(item) for item in items], progress, interactive, settings)


# --- what is asked ---------------------------------------------------------------------------------------------------


def _listed(name: str, items: Iterable[object]) -> list[object]:
    if isinstance(items, str | bytes | bytearray | Mapping | os.PathLike) or not isinstance(items, Iterable):
        raise UsageError(f"{name} is of type {type(items).__name__}; give a list, also of a single one")
    return list(items)


def _refuse_drive(items: Sequence[object]) -> None:
    for number, item in enumerate(items):
        if isinstance(item, Mapping) and item.get("path") is None and item.get("content") is None and item.get("id"):
            raise UsageError(
                f"files[{number}] has only an id ({str(item['id'])[:100]!r}), as files of Google Drive have; reading "
                "Drive comes with a later release; download the file, and give its name and content, or its path"
            )


class _Form:
    """One item as it was given, which is looked at when its turn comes."""

    @contextmanager
    def open(self, data_dir: Path) -> Iterator[_Opened]:
        """What is kept of it. Raises CannotComposeError and FetchFailed."""
        raise NotImplementedError

    def id(self) -> str:
        """The caller's own id, as far as there is one."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    key: ItemKey
    path: str
    content: bytes | Iterator[bytes]
    size_bytes: int
    modified: float = 0.0


@dataclass(frozen=True, slots=True)
class _Composes(_Form):
    """A mail or an event."""

    item: object
    compose: Callable[[object], Composed]

    @contextmanager
    def open(self, data_dir: Path) -> Iterator[_Opened]:
        """See _Form."""
        made = self.compose(self.item)
        key = given.key_of_id(made.space, made.id)
        size = len(made.content)
        yield _Opened(key=key, path=made.path, content=made.content, size_bytes=size, modified=made.modified)

    def id(self) -> str:
        """See _Form."""
        return _id_in(self.item)


@dataclass(frozen=True, slots=True)
class _FileForm(_Form):
    """A path, or a mapping."""

    item: object

    @contextmanager
    def open(self, data_dir: Path) -> Iterator[_Opened]:
        """See _Form."""
        match self.item:
            case str() | os.PathLike():
                with self._file(self.item, "", data_dir) as opened:
                    yield opened
            case Mapping() if self.item.get("path") is not None:
                with self._file(self.item["path"], own_id(self.item), data_dir) as opened:
                    yield opened
            case Mapping():
                yield self._content(self.item)
            case _:
                found = type(self.item).__name__
                raise CannotComposeError(f"a file is a path or a mapping of path, or name and content, not a {found}")

    def id(self) -> str:
        """See _Form."""
        return _id_in(self.item) if isinstance(self.item, Mapping) else str(self.item)

    @contextmanager
    def _file(self, place: object, id_: str, data_dir: Path) -> Iterator[_Opened]:
        if not isinstance(place, str | os.PathLike) or isinstance(os.fspath(place), bytes) or "\0" in str(place):
            raise CannotComposeError(f"its path {place!r} is not the path of a file")
        path = os.path.abspath(place)
        if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(data_dir)):
            # Indexes and ledger of everybody: no user's content.
            raise beneath.failed(Reason.UNREADABLE, f"{beneath.shown(path)} is Nightmill's own data")
        with beneath.open_single_for_fetch(path) as descriptor:
            before = os.fstat(descriptor)
            if before.st_size > DEFAULT_MAX_SIZE_BYTES:
                detail = f"{before.st_size:,} bytes; at most {DEFAULT_MAX_SIZE_BYTES:,} are taken"
                raise beneath.failed(Reason.TOO_LARGE, detail)
            yield _Opened(
                key=given.key_of_id("id", id_ or path),
                path=_path_of(id_, os.path.basename(path)) if id_ else path,
                content=_steady(descriptor, before, path),
                size_bytes=before.st_size,
                modified=before.st_mtime,
            )

    def _content(self, item: Mapping[str, object]) -> _Opened:
        name, content = item.get("name"), item.get("content")
        if not isinstance(name, str) or not name:
            raise CannotComposeError("it has neither a path nor a name; give a path, or a name and content")
        if isinstance(content, str):
            content = content.encode("utf-8", "replace")
        if not isinstance(content, bytes | bytearray | memoryview):
            raise CannotComposeError(f"its content is of type {type(content).__name__}; give bytes")
        data, id_ = bytes(content), own_id(item)
        shown = id_one_line(name)
        return _Opened(
            key=given.key_of_id("id", id_ or name),
            path=_path_of(id_, shown) if id_ else shown,
            content=data,
            size_bytes=len(data),
        )


def _path_of(id_: str, name: str) -> str:
    """The id, by which the caller knows it, and the name, whose ending may decide how it is read."""
    return name if id_ == name else f"{id_one_line(id_)}/{name}"


def _steady(descriptor: int, before: os.stat_result, path: str) -> Iterator[bytes]:
    """The bytes of a file that nobody writes to meanwhile. Raises FetchFailed."""
    # One byte more than there were shows that it grows.
    yield from beneath.blocks(descriptor, 0, before.st_size + 1, beneath.shown(path))
    after = os.fstat(descriptor)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise beneath.failed(Reason.CHANGED_WHILE_READING, f"{beneath.shown(path)} was written to while it was copied")


def _id_in(item: object) -> str:
    try:
        found = item.get("id") if isinstance(item, Mapping) else None
        return "" if found is None else id_one_line(str(found)[:1000])
    except _MALFORMED:
        return ""


# --- what is done ----------------------------------------------------------------------------------------------------


def _bring_in(
    user_id: str,
    kind: str,
    forms: Sequence[_Form],
    progress: _Progress,
    interactive: bool,
    settings: Settings | None,
) -> GivenReport:
    if getattr(_thread, "telling", False):
        # Of the same user it would wait for ever, and of others as soon as two do so crosswise.
        raise UsageError("on_progress began a call of its own while the first holds its user; begin it afterwards")
    settings = settings or own_settings()
    if not isinstance(user_id, str):
        raise UsageError(f"user_id is of type {type(user_id).__name__}; give the user's name")
    user, uri = UserId(user_id), f"{given.SCHEME}:{kind}"
    make_data_dir(settings)
    with closing(open_own_ledger(settings)) as ledger:
        # A name that cannot be a user's is refused here.
        ledger.add_user(user, [uri])
    manager = get_thread_pool_manager(settings)
    progress.show = lambda percent, text: manager.update_user_status(
        user, "done" if percent >= 100 else f"indexing {kind}", percent, text
    )
    reporter = Guarded(progress)
    reporter.say(_BEGUN)
    keeping = _Keeping(forms=forms, kind=kind, settings=settings, progress=progress)
    try:
        result = _work(user, uri, forms, keeping, progress, reporter, interactive)
    except BaseException as error:
        # Nobody is to be shown for ever how far it came.
        with suppress(NightmillError):
            manager.update_user_status(user, "failed", None, f"{type(error).__name__}: {error}"[:500])
        raise
    progress.finish()
    reporter.close()
    return result


def _work(
    user: UserId,
    uri: str,
    forms: Sequence[_Form],
    keeping: _Keeping,
    progress: _Progress,
    reporter: Reporter,
    interactive: bool,
) -> GivenReport:
    """Keep, read, embed, publish. Raises CannotRunError."""
    settings = keeping.settings
    progress.records = lambda: _records(user, uri, keeping, settings)
    troubles: tuple[str, ...] = ()
    if forms:
        report = run(
            settings,
            [user],
            kind="given",
            lane=Lane.INTERACTIVE if interactive else Lane.BULK,
            orders=Orders(only=frozenset({uri}), prepare=keeping.keep_all),
            reporter=reporter,
            # They belong to the program that calls us.
            own_signals=False,
        )
        if report.exit_code == EXIT_CANNOT:
            raise CannotRunError(report.message)
        troubles = report.troubles
        if not keeping.done:
            said = "; ".join(troubles) or f"{user} was removed meanwhile; nothing of what was given is kept"
            raise CannotRunError(said)
    result = _result(user, keeping, _records(user, uri, keeping, settings))
    if result.pending and troubles:
        raise CannotRunError(f"{'; '.join(troubles)}; what was given is kept, and the next run goes on with it")
    return result


@dataclass(slots=True, eq=False)
class _Keeping:
    """The items of one call being laid by: for each what it is called, or why it could not be kept.

    `keep_all` is called by another thread than that which reads the rest; it has ended when `done` is true.
    """

    forms: Sequence[_Form]
    kind: str
    settings: Settings
    progress: _Progress
    keys: dict[int, ItemKey] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    unchanged: set[int] = field(default_factory=set)
    done: bool = False

    def keep_all(self, user_folder: Path) -> None:
        """Orders.prepare. Raises OSError when the folder itself cannot be written."""
        keeper = given.Keeper(user_folder, self.kind)
        for number, form in enumerate(self.forms):
            try:
                self._keep(keeper, number, form)
            except _MALFORMED as error:
                self.failures[number] = Failure(reason=Reason.MALFORMED, detail=str(error)[:2000])
            except FetchFailed as error:
                self.failures[number] = error.failure
            except OSError as error:
                reason = Reason.DISK_FULL if error.errno in beneath.NO_ROOM else Reason.UNREADABLE
                self.failures[number] = Failure(reason=reason, detail=f"it could not be kept: {error.strerror}")
            self.progress.kept += 1
            if (number + 1) % _TOGETHER == 0:
                keeper.settle()
        keeper.settle()
        self.done = True

    def _keep(self, keeper: given.Keeper, number: int, form: _Form) -> None:
        with form.open(self.settings.data_dir) as opened:
            free = guards.disk_free_bytes(self.settings.data_dir)
            if free - opened.size_bytes < self.settings.disk_reserve_bytes:
                raise beneath.failed(Reason.DISK_FULL, f"{free // 10**6:,} MB are free; NIGHTMILL_DISK_RESERVE is kept")
            if not keeper.keep(opened.key, opened.path, opened.content, modified=opened.modified):
                self.unchanged.add(number)
            self.keys[number] = opened.key


def _records(user: UserId, uri: str, keeping: _Keeping, settings: Settings) -> list[ItemRecord]:
    """What was kept, with its attachments, as the ledger has it."""
    with closing(open_own_ledger(settings)) as ledger:
        source = next((known.id for known in ledger.sources(user) if known.uri == uri), None)
        if source is None:
            raise CannotRunError(f"{uri} of {user} was removed meanwhile; nothing of what was given is kept")
        return ledger.find_trees(source, sorted(set(keeping.keys.values())))


def _result(user: UserId, keeping: _Keeping, records: Sequence[ItemRecord]) -> GivenReport:
    """How each item ended."""
    by_id = {record.id: record for record in records}
    trees: dict[ItemKey, list[ItemRecord]] = {}
    for record in records:
        top = record
        while top.parent is not None:
            top = by_id[top.parent]
        trees.setdefault(top.key, []).append(record)
    states: Counter[str] = Counter()
    failures: list[GivenFailure] = []
    skips: list[GivenFailure] = []
    for number, form in enumerate(keeping.forms):
        failure = keeping.failures.get(number)
        if failure is not None:
            skip = CATALOGUE[failure.reason].skip
            states["skipped" if skip else "failed"] += 1
            said = GivenFailure(index=number, id=form.id(), reason=failure.reason.value, detail=failure.detail)
            (skips if skip else failures).append(said)
            continue
        for record in trees.get(keeping.keys[number], ()):
            state = ItemState.FAILED if record.state is ItemState.QUARANTINED else record.state
            if record.parent is None:
                states[state.value] += 1
            if record.reason is not None and state in (ItemState.FAILED, ItemState.SKIPPED):
                said = GivenFailure(
                    index=number,
                    id=form.id(),
                    reason=record.reason.value,
                    detail=record.detail,
                    attachment="" if record.parent is None else record.path.rpartition("/")[2],
                )
                (skips if state is ItemState.SKIPPED else failures).append(said)
    count = len(keeping.forms)
    indexed, skipped, failed = (states[name] for name in ("indexed", "skipped", "failed"))
    return GivenReport(
        user_id=str(user),
        given=count,
        indexed=indexed,
        skipped=skipped,
        failed=failed,
        pending=count - indexed - skipped - failed,
        unchanged=len(keeping.unchanged),
        failures=tuple(failures),
        skips=tuple(skips),
    )


#: Said before anything is done: progress begins at `start`.
_BEGUN: Final = Progressed(indexed=0, skipped=0, failed=0, pending=0, users_done=0, users_total=1)


class _Progress:
    """What a run reports -> percent between `start` and `end`, rising, told in the caller's thread.

    kept     counted by the thread that keeps; all else belongs to the caller's
    records  asked when the work begins: what of it is still to be done, by a call that was killed perhaps
    """

    def __init__(self, start: float, end: float, tell: OnProgress | None, total: int) -> None:
        for name, value in (("start", start), ("end", end)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UsageError(f"{name} is {value!r}; give percent, a number from 0 to 100")
        if not 0 <= start <= end <= 100:
            raise UsageError(f"start is {start} and end is {end}; give 0 <= start <= end <= 100")
        self._start, self._end, self._tell, self._total = start, end, tell, total
        self._last: float | None = None
        self._finished = False
        self.kept = 0
        self.records: Callable[[], Sequence[ItemRecord]] = tuple
        #: Puts the same into everybody's statistics.
        self.show: OnProgress = lambda percent, text: None
        #: Paths of items that have not ended -> how many of them; None before the work begins.
        self._waiting: Counter[str] | None = None

    def say(self, event: Event) -> None:
        """telemetry.Reporter."""
        match event:
            case UserBegan():
                top = [record for record in self.records() if record.parent is None]
                self._waiting = Counter(record.path for record in top if record.state is ItemState.PENDING)
            case ItemSettled():
                if self._waiting is not None and self._waiting[event.path] > 0:
                    self._waiting[event.path] -= 1
            case Progressed():
                settled = 0 if self._waiting is None else max(0, self._total - self._waiting.total())
                done = _KEEPING_SHARE * self.kept + (1 - _KEEPING_SHARE) * settled
                # Never `end` itself, which says that all of it is over.
                share = min(done / self._total, 0.999) if self._total else 0.0
                self._say(self._start + (self._end - self._start) * share, f"{settled:,} of {self._total:,} done")
            case _:
                pass

    def finish(self) -> None:
        """The work has come to its end: `close` says so."""
        self._finished = True

    def close(self) -> None:
        """telemetry.Reporter."""
        if self._finished:
            self._say(self._end, f"{self._total:,} of {self._total:,} done")

    def _say(self, percent: float, text: str) -> None:
        if self._last is None or percent > self._last:
            self._last = percent
            with suppress(NightmillError):
                # Without a scheduler the run itself says so, to whom it concerns.
                self.show(percent, text)
            if self._tell is not None:
                _thread.telling = True
                try:
                    self._tell(percent, text)
                except Exception:  # noqa: BLE001 - the caller's: the work, and what others see of it, go on
                    _log.exception("on_progress(%s, %r) failed", percent, text)
                finally:
                    _thread.telling = False
