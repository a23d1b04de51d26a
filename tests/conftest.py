"""What all tests share: where real files are, and a data directory of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real files; tests that need it are skipped where it is absent."""
    place = Path(os.environ.get("NIGHTMILL_CORPUS") or REPOSITORY.parent / "shared" / "corpus")
    if not place.is_dir():
        pytest.skip(f"no corpus of real files at {place} (set NIGHTMILL_CORPUS)")
    return place
