"""No page finds room on the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from engine.ports import Place


class _FullDisk:
    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_stage(options: Mapping[str, Any]) -> _FullDisk:
    """Nothing is loaded."""
    return _FullDisk()
