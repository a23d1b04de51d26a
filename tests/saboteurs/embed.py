"""A stage that is never ready."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any, NoReturn


def open_stage(options: Mapping[str, Any]) -> NoReturn:
    """Loads for ever."""
    while True:
        signal.pause()
