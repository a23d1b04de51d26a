"""`scripts/bench hostile` and `scripts/bench workers` in a small size: what they measure is there. Never how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import bombs
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


def bench(name: str, place: Path, *words: str, code: int = 0) -> dict[str, Any]:
    """What it writes as JSON."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "benches" / f"{name}.py"), "--place", str(place), "--json"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=270, stdin=subprocess.DEVNULL)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    table: dict[str, Any] = json.loads(done.stdout)
    assert table["schema_version"] == 1
    return table


def test_hostile_files_end_and_honest_ones_are_indexed(tmp_path: Path) -> None:
    """A bomb, a damaged file, an empty one and one of no known kind; what workers hold is looked at all the time."""
    (tmp_path / "files").mkdir()
    bombs.write("frames_60000.tif", tmp_path / "files")
    (tmp_path / "files" / "damaged.pdf").write_bytes(b"%PDF-1.7\nnothing else")
    (tmp_path / "files" / "empty.docx").write_bytes(b"")
    (tmp_path / "files" / "noise").write_bytes(bytes(range(256)) * 40)
    table = bench("hostile", tmp_path, "--files", str(tmp_path / "files"), "--honest", "4")
    assert table["broken"] == []
    figures = {figure["name"]: figure["value"] for figure in table["figures"]}
    assert figures["leases"] > 0
    assert 0.0 < figures["most_share"] <= 1.25
    assert list(tmp_path.glob("nightmill-*")) == []


def test_what_a_lost_worker_and_a_unit_cost(tmp_path: Path) -> None:
    table = bench("workers", tmp_path, "--rounds", "1", "--files", "20", "--deadly", "1", "--units", "20")
    assert table["broken"] == []
    figures = {figure["name"]: figure["value"] for figure in table["figures"]}
    # Twice, and then it is set aside.
    assert figures["deaths"] == 2
    assert figures["unit_nothing_auto"] > 0
    assert figures["unit_text_off"] > 0
    assert list(tmp_path.glob("nightmill-*")) == []
