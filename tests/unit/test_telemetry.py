"""How a run reports: lines, a bar on a real pseudo-terminal, and a reporter that fails."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from typing import TextIO

import pytest

from engine.model import ItemState, Stage, UserId
from engine.reasons import Reason
from engine.telemetry import (
    BarReporter,
    Event,
    Guarded,
    ItemSettled,
    LineReporter,
    Notice,
    Progressed,
    SilentReporter,
    UserBegan,
    WorkerDied,
    choose_reporter,
    printable,
    set_up_logging,
)

ANN = UserId("ann")
HOSTILE = "in\x1b[2Jvoice\r\n\x07\x9b31m\u202efdp.exe\udc80"
DEATH = WorkerDied(stage=Stage.EXTRACT, detail="signal 11", path="a.pdf")


class Clock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Terminal:
    """A pseudo-terminal of 100 columns: write to `stream`, see what came out with `shown`."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        os.set_blocking(self._master, False)
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")

    def shown(self) -> str:
        """All that was written since the last look."""
        parts = []
        while True:
            try:
                parts.append(os.read(self._master, 65536))
            except OSError:
                return b"".join(parts).decode().replace("\r\n", "\n")

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    found = Terminal()
    yield found
    found.close()


@pytest.fixture
def clean_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("engine", "indexes")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def failed(path: str = "q3.pdf", state: ItemState = ItemState.FAILED) -> ItemSettled:
    return ItemSettled(user=ANN, path=path, state=state, reason=Reason.DAMAGED, detail="no xref table")


def progress(indexed: int = 10, pending: int = 5) -> Progressed:
    return Progressed(
        indexed=indexed,
        skipped=3,
        failed=2,
        pending=pending,
        users_done=1,
        users_total=4,
        active=6,
        waits={"memory": 2, "cpu_cap": 0, "comet": 1},
        vectors=77,
    )


# --- lines ---


def test_each_failure_is_one_line() -> None:
    """Failed and quarantined items are named with reason and detail; indexed and skipped ones are only counted."""
    stream = io.StringIO()
    reporter = LineReporter(stream)
    for event in (
        failed(),
        failed("b.pdf", ItemState.QUARANTINED),
        ItemSettled(user=ANN, path="good.pdf", state=ItemState.INDEXED),
        ItemSettled(user=ANN, path="film.mkv", state=ItemState.SKIPPED, reason=Reason.UNSUPPORTED_TYPE),
        DEATH,
        WorkerDied(stage=Stage.EMBED, detail="killed"),
        Notice(text="ann is being re-indexed elsewhere; later"),
    ):
        reporter.say(event)
    assert stream.getvalue().splitlines() == [
        "failed ann: q3.pdf: damaged (no xref table)",
        "quarantined ann: b.pdf: damaged (no xref table)",
        "a worker of stage extract ended while it read a.pdf: signal 11",
        "a worker of stage embed ended: killed",
        "ann is being re-indexed elsewhere; later",
    ]


def test_progress_is_said_at_most_once_in_a_while() -> None:
    """The first state at once, then none before the pause is over, and at the end the last one."""
    stream, clock = io.StringIO(), Clock()
    reporter = LineReporter(stream, clock=clock, pause_seconds=30.0)
    reporter.say(UserBegan(user=ANN, found=20))
    for indexed in range(10):
        reporter.say(progress(indexed))
    clock.seconds += 29.9
    reporter.say(progress(10))
    assert len(stream.getvalue().splitlines()) == 1
    clock.seconds += 0.1
    reporter.say(progress(11))
    reporter.say(progress(12))
    reporter.close()
    reporter.close()
    lines = stream.getvalue().splitlines()
    assert [re.findall(r"(\d+) indexed", line) for line in lines] == [["0"], ["11"], ["12"]]
    assert lines[1] == (
        "1/4 users, ann: 16/21 items, 11 indexed, 3 skipped, 77 vectors, 6 busy, 2 failed, "
        "2 wait for memory, 1 wait for comet"
    )


def test_a_run_without_progress_has_no_progress_line() -> None:
    """Nothing began, nothing is claimed."""
    stream = io.StringIO()
    LineReporter(stream).close()
    assert stream.getvalue() == ""


EVENTS_WITH_NAMES: list[Event] = [
    failed(HOSTILE),
    ItemSettled(user=UserId(HOSTILE), path="a", state=ItemState.FAILED, reason=Reason.DAMAGED, detail=HOSTILE),
    WorkerDied(stage=Stage.OCR, detail=HOSTILE, path=HOSTILE),
    Notice(text=HOSTILE),
]


@pytest.mark.parametrize("event", EVENTS_WITH_NAMES)
def test_no_control_character_leaves(event: Event, terminal: Terminal) -> None:
    """Whatever a file is called: one line, nothing that moves a cursor, clears a screen or turns the reading order."""
    stream = io.StringIO()
    LineReporter(stream).say(event)
    assert stream.getvalue().endswith("\n")
    assert stream.getvalue()[:-1].isprintable()
    BarReporter(terminal.stream).say(event)
    assert terminal.shown()[:-1].isprintable()


def test_a_poor_character_set_costs_characters_and_no_line() -> None:
    """A name in Greek on a Latin-1 terminal has question marks; nothing is raised."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    LineReporter(stream).say(failed("λόγος.pdf"))
    assert raw.getvalue().startswith(b"failed ann: ?????.pdf: damaged")


@pytest.mark.parametrize(("text", "wanted"), [("a\tb\n", "a b"), ("é\udcff", "é?"), ("x" * 3000, "x" * 2000), ("", "")])
def test_printable_is_one_bounded_line(text: str, wanted: str) -> None:
    """Tabs and line ends become blanks, half a character a question mark."""
    assert printable(text) == wanted


# --- the bar ---


def test_the_bar_shows_items_users_and_what_waits(terminal: Terminal) -> None:
    """One drawing has it all, and fits into the line."""
    reporter = BarReporter(terminal.stream)
    reporter.say(UserBegan(user=UserId("an\x1bn"), found=20))
    reporter.say(progress())
    drawn = terminal.shown().rsplit("\r", 1)[-1]
    assert re.match(r"1/4 users, an n: \s*75% \|", drawn)
    assert "15/20" in drawn
    assert "2 failed, 2 wait for memory, 1 wait for comet" in drawn
    assert len(drawn) <= 100
    reporter.close()


def test_a_line_goes_above_the_bar(terminal: Terminal) -> None:
    """The bar is taken away, the line is written from the left edge, and the bar comes back below."""
    reporter = BarReporter(terminal.stream)
    reporter.say(progress())
    terminal.shown()
    reporter.say(failed())
    before, line, after = terminal.shown().partition("failed ann: q3.pdf: damaged (no xref table)\n")
    assert line
    assert re.fullmatch(r"\r +\r", before)
    assert "15/20" in after
    reporter.close()


def test_the_bar_is_drawn_no_oftener_than_an_eye_follows(terminal: Terminal) -> None:
    """A thousand events between two looks are one drawing; the last state is drawn at the end."""
    clock = Clock()
    reporter = BarReporter(terminal.stream, clock=clock)
    for indexed in range(1000):
        reporter.say(progress(indexed, pending=1000 - indexed))
    assert terminal.shown().count("/1005") == 1
    clock.seconds += 0.1
    reporter.say(progress(500, pending=500))
    assert "505/1005" in terminal.shown()
    reporter.say(progress(999, pending=1))
    reporter.close()
    reporter.close()
    last = terminal.shown()
    assert "1004/1005" in last
    assert last.endswith("\n")


def test_work_done_before_counts_as_done_and_not_as_speed(terminal: Terminal) -> None:
    """A run that continues another does not promise to end in a second."""
    reporter = BarReporter(terminal.stream)
    reporter.say(progress(100_000, pending=1000))
    assert "<?" in terminal.shown()
    reporter.close()


def test_the_bar_starts_no_thread(terminal: Terminal) -> None:
    """The coordinator has one thread of its own making; a bar adds none."""
    reporter = BarReporter(terminal.stream)
    reporter.say(progress())
    assert [thread for thread in threading.enumerate() if type(thread).__name__ == "TMonitor"] == []
    reporter.close()


def test_the_log_goes_above_the_bar_too(terminal: Terminal, clean_loggers: None) -> None:
    """Two writers, one terminal: no half lines."""
    set_up_logging("warning", terminal.stream)
    reporter = BarReporter(terminal.stream)
    reporter.say(progress())
    terminal.shown()
    logging.getLogger("engine.pipeline").warning("hm")
    assert re.match(r"\r +\r[\d :,-]+ WARNING engine\.pipeline: hm\n.*15/20", terminal.shown(), flags=re.DOTALL)
    reporter.close()


# --- which one, and what if it fails ---


def test_a_terminal_gets_the_bar_and_all_else_lines(terminal: Terminal) -> None:
    """Chosen by the stream; `quiet` and a closed stream get nothing."""
    reporter = choose_reporter(terminal.stream)
    reporter.say(progress())
    assert "|" in terminal.shown()
    reporter.close()
    terminal.shown()
    stream = io.StringIO()
    choose_reporter(stream).say(progress())
    assert stream.getvalue().startswith("1/4 users: 15/20 items")
    choose_reporter(terminal.stream, quiet=True).say(failed())
    assert terminal.shown() == ""
    stream.close()
    assert isinstance(choose_reporter(stream), SilentReporter)
    assert isinstance(choose_reporter(None), SilentReporter)


class Broken(io.StringIO):
    """A pipe whose reader has gone."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0

    def write(self, text: str) -> int:
        self.tries += 1
        raise BrokenPipeError(32, "Broken pipe")


def test_a_reporter_that_fails_ends_reports_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, in the log, and the broken stream is left in peace."""
    stream = Broken()
    reporter = choose_reporter(stream)
    for event in (failed(), DEATH, progress()):
        reporter.say(event)
    reporter.close()
    reporter.close()
    assert stream.tries == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the run goes on without reports: BrokenPipeError: [Errno 32] Broken pipe"
    ]


def test_an_interrupt_is_not_swallowed() -> None:
    """Ctrl-C while a line is written still ends the run."""

    class Interrupted(SilentReporter):
        def say(self, event: Event) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guarded(Interrupted()).say(progress())


def test_a_bar_whose_terminal_goes_away_ends_reports_only(terminal: Terminal, clean_loggers: None) -> None:
    """The window is closed in the middle of the night; the run goes on, and so does its log."""
    log = io.StringIO()
    set_up_logging("warning", log)
    stream = os.fdopen(os.dup(terminal.stream.fileno()), "w")
    reporter = choose_reporter(stream)
    reporter.say(progress())
    stream.close()
    reporter.say(failed())
    reporter.say(progress(11))
    reporter.close()
    assert "without reports" in log.getvalue()


# --- the log ---


def test_the_log_is_ours_alone(clean_loggers: None) -> None:
    """From the asked level on, our two packages; the root logger and other libraries are left as they are."""
    stream, root = io.StringIO(), list(logging.getLogger().handlers)
    set_up_logging("info", io.StringIO())
    set_up_logging("warning", stream)
    logging.getLogger("engine.desk").info("quiet")
    logging.getLogger("engine.desk").warning("loud")
    logging.getLogger("indexes.store").error("too")
    logging.getLogger("sqlalchemy").error("not ours")
    assert [line.split(" ", 2)[2] for line in stream.getvalue().splitlines()] == [
        "WARNING engine.desk: loud",
        "ERROR indexes.store: too",
    ]
    assert logging.getLogger().handlers == root


def test_a_record_cannot_pass_for_two(clean_loggers: None) -> None:
    """A line end in a name is followed by an indent, and its control characters are gone; tracebacks stay legible."""
    stream = io.StringIO()
    set_up_logging("debug", stream)
    logging.getLogger("engine").warning("read %s", "a\n2026 ERROR engine: forged\x1b[2J")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("engine").exception("oh")
    lines = stream.getvalue().splitlines()
    assert lines[1] == "  2026 ERROR engine: forged [2J"
    assert lines[-1] == "  ValueError: why"
    assert "  Traceback (most recent call last):" in lines


def test_importing_it_loads_no_bar() -> None:
    """Settings and every command import this file; the bar's library takes longer to load than all of it."""
    code = "import sys, engine.telemetry; sys.exit('tqdm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
