"""What docs/python.md says of the functions that embed what one already has: its example runs, its words are true."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from engine.given import GivenFailure, GivenReport
from tests.mill import Mill, wait_until

SECTION = re.compile(r"^## Embed what you already have\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def section() -> str:
    """Of the page."""
    found = SECTION.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    return found.group(1)


def test_the_example_runs(tmp_path: Path) -> None:
    """As it stands; afterwards the user finds the mail, its attachment, the event and the file."""
    (code,) = re.findall(r"```python\n(.*?)```", section(), re.DOTALL)
    mill = Mill(tmp_path, NIGHTMILL_EMBEDDER="none")
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=mill.environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert (said[0], said[-3:-1]) == ("0 %: 0 of 1 done", ["50 %: 1 of 1 done", "1 0 ()"])
    assert mill.hits("ann", "lease mill")[0] == "17"
    assert mill.hits("ann", "tenant") == ["17/lease.txt"]
    assert mill.hits("ann", "viewing") == ["e1"]
    assert mill.hits("ann", "wheel") == ["plan.md"]
    mill.run("users", "remove", "ann", "given:mail")
    assert mill.hits("ann", "tenant") == []
    assert mill.json("init", "--dry-run")["users"][0]["new"] == 0
    mill.stop_scheduler()
    wait_until(lambda: not mill.processes(), "the end of every process of this data directory")


def test_every_field_of_the_report_is_told() -> None:
    """By its name, in the paragraph on what comes back."""
    for field in (*fields(GivenReport), *fields(GivenFailure)):
        assert f"`{field.name}`" in section() or field.name == "user_id", field.name
