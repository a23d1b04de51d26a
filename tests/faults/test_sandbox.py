"""What a confined worker can still do, tried by real workers, beside the same worker without a sandbox."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.clock import SystemClock
from engine.model import Failure, Stage
from engine.processes import is_alive, start_time
from engine.workers.sandbox import MAX_FILE_BYTES, find_protections
from engine.workers.supervisor import Ended, Finished, Lost, Supervisor
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.timeout(120)
_HERE = find_protections()
#: However busy the machine.
PATIENCE_LOOKS = 600
ALLOWED = (
    "write a result",
    "start a thread",
    "signal itself",
    "set its own limit",
    "measure itself",
    "make a temporary file",
)
