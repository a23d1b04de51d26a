"""A command line with a data directory of its own, and nothing left running afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mill import Mill, wait_until


@pytest.fixture
def mill(tmp_path: Path) -> Iterator[Mill]:
    """With the fast model: what is tested here does not depend on which one it is."""
    made = Mill(tmp_path, NIGHTMILL_EMBEDDER="fast")
    yield made
    made.stop_scheduler()
    wait_until(lambda: not made.processes(), "the end of every process of this data directory", seconds=20.0)
