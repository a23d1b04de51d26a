"""A command line with a data directory of its own, and nothing left running afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mill import Mill


@pytest.fixture
def mill(tmp_path: Path) -> Iterator[Mill]:
    """With the fast model: what is tested here does not depend on which one it is."""
    made = Mill(tmp_path, NIGHTMILL_EMBEDDER="fast")
    yield made
    made.stop_scheduler()
    left = [process for process in made.processes() if process.is_running() and process.status() != "zombie"]
    for process in left:
        process.kill()
    assert not left, f"left running: {left}"
