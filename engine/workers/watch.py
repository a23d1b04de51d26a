"""Hold busy workers to the memory that they were promised, and to a few threads and processes.

Rule: looked at every 100 ms by a thread of its own, for the loop that owns the workers is busy for seconds at times,
and by then a worker has taken the machine. The thread knows nothing of units: it weighs what it was told to, and kills
whoever is far over its promise. Who is to blame for that is the supervisor's to say.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from engine import processes
from engine.model import Failure
from engine.reasons import Reason

#: A worker that allocates as fast as it can takes some 200 MB between two looks. A look at one takes 20 microseconds.
LOOK_SECONDS = 0.1
#: So far over its promise a worker is stopped, whatever anybody answers: predictions are right to a quarter or so.
FAR = 1.25
#: Two looks in a row must find it there, so long apart: a moment's peak harms nobody. Together with the time until the
#: first look, and that of the kill, it stays under 300 ms.
FAR_SECONDS = 0.09
#: Threads of one worker: native libraries are told to use one, and some start one or two more. A machine has some ten
#: thousand for everybody. Processes are as many: an honest worker runs one program at a time.
MOST_THREADS = 64
#: How often what workers have started is looked for, and what share of a core that may take: it reads all of /proc.
_DESCENT_SECONDS, _DESCENT_SHARE = 0.5, 0.02


@dataclass(slots=True, eq=False, kw_only=True)
class Weighed:
    """A worker that does a unit, as it is seen from outside.

    promised_bytes  what it may hold, with all that it has started; 0: nobody counts
    before_bytes    what it held too much before the unit began, which is not that unit's doing
    peak_bytes      the most that it was seen to hold since the present order began
    seen            processes that it was seen to have started: id -> start time
    struck          it was killed here, for this reason
    """

    watched: processes.Watched
    promised_bytes: int
    before_bytes: int = 0
    resident_bytes: int = 0
    peak_bytes: int = 0
    seen: dict[int, float] = field(default_factory=dict)
    far_since: float | None = None
    is_news: bool = False
    struck: Failure | None = None

    @property
    def own_doing(self) -> bool:
        """Too much would be held also by a worker that had begun the unit as new."""
        return self.resident_bytes - self.before_bytes > self.promised_bytes


class Watch:
    """All busy workers of one supervisor. Its thread lives from the first `begin` until `close`."""

    def __init__(self, *, may_start: bool = True) -> None:
        """may_start: workers may start programs; these are weighed as well, and for that looked for."""
        self._may_start = may_start
        #: Held for each look at one worker: what is not in the table is not touched.
        self._lock = threading.Lock()
        self._table: set[Weighed] = set()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._next_descent = 0.0

    def begin(self, weighed: Weighed) -> None:
        """Weigh it from now on."""
        with self._lock:
            self._table.add(weighed)
        if self._thread is None:
            self._thread = threading.Thread(target=self._go_on, daemon=True, name="nightmill-watch")
            self._thread.start()

    def end(self, weighed: Weighed) -> None:
        """Leave it alone: when this returns nothing happens to it any more."""
        with self._lock:
            self._table.discard(weighed)

    def allow(self, weighed: Weighed, promised_bytes: int) -> None:
        """It was promised more."""
        with self._lock:
            weighed.promised_bytes = max(weighed.promised_bytes, promised_bytes)
            if weighed.resident_bytes <= FAR * weighed.promised_bytes:
                weighed.far_since = None

    def take_news(self, weighed: Weighed) -> bool:
        """It was found over its promise since this was last asked."""
        with self._lock:
            news, weighed.is_news = weighed.is_news, False
            return news and weighed.resident_bytes > weighed.promised_bytes

    def close(self) -> None:
        """Idempotent."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    # --- the thread ---

    def _go_on(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            with self._lock:
                table = list(self._table)
            # Descriptors may be short: the next look will tell.
            with suppress(OSError):
                self._look_for_helpers(table)
            for weighed in table:
                with self._lock, suppress(OSError):
                    if weighed in self._table and weighed.struck is None:
                        self._look(weighed)

    def _look(self, weighed: Weighed) -> None:
        resident = processes.resident_bytes(weighed.watched.pid)
        for pid in list(weighed.seen):
            try:
                if processes.start_time(pid) != weighed.seen[pid]:
                    raise ProcessLookupError
                resident += processes.resident_bytes(pid)
            except ProcessLookupError:
                del weighed.seen[pid]
        running = {"threads": processes.threads(weighed.watched.pid), "processes": len(weighed.seen)}
        for what, count in running.items():
            if count > MOST_THREADS:
                self._kill(weighed, Failure(reason=Reason.PROTOCOL, detail=f"its worker ran {count:,} {what}"))
                return
        weighed.resident_bytes = resident
        weighed.peak_bytes = max(weighed.peak_bytes, resident)
        promised = weighed.promised_bytes
        weighed.is_news = weighed.is_news or 0 < promised < resident
        if not promised or resident <= FAR * promised:
            weighed.far_since = None
            return
        now = time.monotonic()
        if weighed.far_since is None:
            weighed.far_since = now
        if now - weighed.far_since >= FAR_SECONDS:
            detail = f"its worker held {resident // 10**6:,} MB; {promised // 10**6:,} MB were promised"
            self._kill(weighed, Failure(reason=Reason.OUT_OF_MEMORY, detail=detail))

    def _kill(self, weighed: Weighed, why: Failure) -> None:
        weighed.struck = why
        # In the table it has not been waited for, so its id, and its group's, are its own. What has left the group is
        # found by whoever waits for it.
        with suppress(ProcessLookupError):
            os.killpg(weighed.watched.pid, signal.SIGKILL)

    def _look_for_helpers(self, table: list[Weighed]) -> None:
        began = time.monotonic()
        if not self._may_start or not table or began < self._next_descent:
            return
        found = processes.find_descent([weighed.watched.pid for weighed in table])
        with self._lock:
            for weighed in table:
                if weighed in self._table:
                    weighed.seen.update(found[weighed.watched.pid])
        now = time.monotonic()
        self._next_descent = now + max(_DESCENT_SECONDS, (now - began) / _DESCENT_SHARE)
