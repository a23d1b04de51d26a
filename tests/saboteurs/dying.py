"""Die at the n-th step: a process that calls `die_at` is SIGKILLed by itself just before the n-th line it comes to.

Rule: the code under test knows nothing of it. The interpreter's trace function is asked about each line of the named
files, in every thread. A line counts at its first `visits` visits only: what loops, as a watcher does, would otherwise
be all there is.

The file `report` says afterwards where the process died, or how many steps it counted if it did not.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any


class Countdown:
    """Counts lines of some modules, from the moment that the file `trigger` is there (None: at once)."""

    def __init__(
        self, at: int, modules: Sequence[ModuleType], *, visits: int, report: Path, trigger: Path | None = None
    ) -> None:
        self._at, self._visits, self._report, self._trigger = at, visits, report, trigger
        self._files = {str(module.__file__): module.__name__ for module in modules}
        self._seen: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()
        self.count = 0

    def start(self) -> None:
        """In this thread, for what it calls from now on, and in all threads that begin from now on."""
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def survived(self) -> None:
        """The process ends by itself."""
        sys.settrace(None)
        self._report.write_text(f"survived {self.count}")

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and (self._trigger is None or self._trigger.exists()):
            key = (frame.f_code.co_filename, frame.f_lineno)
            with self._lock:
                self._seen[key] += 1
                if self._seen[key] > self._visits:
                    return self._line
                self.count += 1
                if self.count == self._at:
                    place = f"{self._files[key[0]]}:{key[1]} {frame.f_code.co_name}, visit {self._seen[key]}"
                    self._report.write_text(f"died {place}")
                    os.kill(os.getpid(), signal.SIGKILL)
                    signal.pause()
        return self._line
