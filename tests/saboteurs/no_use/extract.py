"""Loads, and does not survive its first order, whatever that is."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from engine.ports import Place


class _Broken:
    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        os.kill(os.getpid(), signal.SIGILL)
        raise AssertionError("survived")


def open_stage(options: Mapping[str, Any]) -> _Broken:
    """The library that is broken is loaded by the first order."""
    return _Broken()
