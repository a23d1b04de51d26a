"""Every Python example of README and docs/python.md runs as it stands, and prints what stands below it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from engine.desk import stop_scheduler
from engine.errors import CannotRunError

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/python.md")


def examples(page: str) -> list[tuple[str, str]]:
    """The program and the output of each example, in the order of the page."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```\n\n```output\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def shown(output: str) -> re.Pattern[str]:
    """What may be printed: as it stands; `...` for some characters, or alone on its line for any number of lines."""
    lines = []
    for line in output.splitlines():
        if line == "...":
            lines.append(r"(?:.*\n)*")
        else:
            lines.append(".*".join(re.escape(part) for part in line.split("...")) + r"\n")
    return re.compile("".join(lines))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder without a data directory; the scheduler that an example starts is ended."""
    yield tmp_path
    with suppress(CannotRunError):
        stop_scheduler(tmp_path / "var")


@pytest.mark.parametrize(
    ("program", "output"),
    [
        pytest.param(*example, id=f"{Path(page).stem}-{number}")
        for page in PAGES
        for number, example in enumerate(examples(page), start=1)
    ],
)
def test_the_example_runs_and_prints_what_is_shown(program: str, output: str, place: Path) -> None:
    """As a script of its own, with the default settings."""
    (place / "example.py").write_text(program)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("NIGHTMILL_", "MAX_", "DEBUG_MODE"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=place,
        env={**environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert shown(output).fullmatch(done.stdout), f"{done.stdout!r} is not {output!r}"


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_is_an_example_with_an_output(page: str) -> None:
    """None is passed over because its output is missing."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert len(examples(page)) == text.count("```python\n") > 0


def test_the_page_names_every_public_function() -> None:
    """What `engine` offers is described."""
    import engine

    text = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in engine.__all__ if name not in text and name != "ThreadPoolManager"] == []
    described = engine.ThreadPoolManager.__dict__
    assert [name for name in described if not name.startswith("_") and f"{name}(" not in text] == []
