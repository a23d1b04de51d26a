"""The exception tree. An error's class says whose fault it is, and with it the exit code.

    NightmillError                1   ours: a defect
    +-- UsageError                2   the caller's: a wrong word, path, user or source
    |   +-- SettingsError         2   wrong settings, all of them in one error
    +-- CannotRunError            4   the surroundings': locked, disk full, newer data, no scheduler
    |   +-- SchedulerUnreachable  4
    |   +-- NewerDataError        4   the data directory belongs to a newer release
    +-- SourceUnavailable         3   one source cannot be listed; the run goes on without it
    +-- MalformedMessage          -   a worker said something that no honest worker says

What goes wrong with one item is not an exception outside its worker: it travels as a `Failure` value.
"""

from __future__ import annotations

import errno
from typing import Final

#: What the system says when a disk, or somebody's part of it, is full. It passes, and is no fault of what was written.
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class NightmillError(Exception):
    """Something failed that should not have. Please report it, with the log."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or type(self).__name__).split("\n")[0])


class UsageError(NightmillError):
    """The command line asks for something that does not exist or makes no sense."""

    exit_code = 2


class SettingsError(UsageError):
    """One or more settings are wrong; `problems` has a line for each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("wrong settings:\n" + "\n".join(f"  {line}" for line in problems))
        self.problems = problems


class CannotRunError(NightmillError):
    """The surroundings do not allow a run: locked, disk full, no permission."""

    exit_code = 4


class SchedulerUnreachable(CannotRunError):  # noqa: N818 - a state, named as the field names it
    """The scheduler of this data directory could neither be reached nor started."""


class NewerDataError(CannotRunError):
    """The data directory was written by a newer release; install that release or restore a backup."""


class SourceUnavailable(NightmillError):  # noqa: N818
    """A source cannot be listed completely. `reason` is the value of a `Reason` of the catalogue."""

    exit_code = 3

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class MalformedMessage(NightmillError):  # noqa: N818
    """A message or a result of a worker breaks the protocol; the worker is killed and blamed."""
