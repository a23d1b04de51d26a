"""The real stage; of a file called "deadly" the third page ends the worker, "greedy" never has enough memory, and
"unlucky" is killed as from outside at first, and then crashes."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.ports import Place, StageRunner
from engine.workers import extract


class _Deadly:
    """A place that ends its worker when two pages are done."""

    def __init__(self, place: Place) -> None:
        self.inbox: Path = place.inbox
        self.outbox: Path = place.outbox

    def progress(self, done: int, total: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGSEGV)

    def memory_left(self) -> int:
        return 1 << 62


class _Costly:
    def __init__(self, real: StageRunner) -> None:
        self._real = real

    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        name = str(order["name"])
        if "unlucky" in name:
            os.kill(os.getpid(), signal.SIGSEGV if order["journal"] else signal.SIGKILL)
        if "greedy" in name:
            raise MemoryError
        return self._real.run(order, _Deadly(place) if "deadly" in name else place)


def open_stage(options: Mapping[str, Any]) -> _Costly:
    """Nothing more is loaded."""
    return _Costly(extract.open_stage(options))
