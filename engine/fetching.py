"""Threads that copy files into workers' inboxes, so that a slow disk or network folder holds nobody but itself.

Rule: they are given calls and nothing else, and nobody waits for them at the end: a copy of gigabytes must not keep an
interrupted run alive. What such a thread still writes goes into a folder that is gone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class FetchThreads:
    """A fixed number of threads, started with the first call."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = False
        self._stopped = threading.Event()

    def submit(self, call: Callable[[], None]) -> None:
        """Run the call on one of the threads, soon. It must not raise."""
        if not self._started:
            self._started = True
            for number in range(self._count):
                # Daemons: the end of the process does not wait for them.
                threading.Thread(target=self._work, name=f"fetch-{number}", daemon=True).start()
        self._calls.put(call)

    def stop(self) -> None:
        """Begin no further call. Does not wait. Idempotent."""
        self._stopped.set()
        for _ in range(self._count):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None and not self._stopped.is_set():
            call()
