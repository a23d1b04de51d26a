"""The real clock. The rest of the engine is told the time; only a composition root makes one of these."""

from __future__ import annotations

import time


class SystemClock:
    """Time as the machine has it (ports.Clock)."""

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()
