"""What a worker has taken of the disk, wherever it hides it: this process is the worker."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import clearing
from engine.spool import NAME_BYTES, written_by

MIB = 1 << 20
MOST = 100 * MIB


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "worker-1"
    (home / "outbox").mkdir(parents=True)
    (home / "slate").write_text("1 0")
    return home


@pytest.fixture
def written(home: Path) -> Callable[[Path], int]:
    """Without what the test runner has open."""
    others = written_by(os.getpid(), home / "none", MOST)
    return lambda home: written_by(os.getpid(), home, MOST) - others


def test_what_lies_in_the_outbox_and_on_the_slate_counts(home: Path, written: Callable[[Path], int]) -> None:
    """As the disk has it; a hole in a file is nothing."""
    assert written(home) == NAME_BYTES
    (home / "outbox" / "result").write_bytes(b"x" * 3 * MIB)
    (home / "outbox" / "sparse").touch()
    os.truncate(home / "outbox" / "sparse", 1 << 30)
    assert written(home) == 3 * MIB + 2 * NAME_BYTES
    (home / "slate").write_bytes(b"x" * 5 * MIB)
    assert written(home) == 8 * MIB + NAME_BYTES


def test_many_small_files_are_much(home: Path, written: Callable[[Path], int]) -> None:
    """And nobody counts them to the end: what is too much is too much."""
    for number in range(2000):
        (home / "outbox" / f"{number}").touch()
    assert MOST - MIB < written(home) <= MOST + NAME_BYTES


def test_a_folder_is_more_than_allowed(home: Path, written: Callable[[Path], int]) -> None:
    """No honest worker makes one, and nobody looks for what lies in it."""
    (home / "outbox" / "folder").mkdir()
    assert written(home) > MOST - MIB


def test_a_file_that_was_removed_counts_while_it_is_open(home: Path, written: Callable[[Path], int]) -> None:
    """With a name before, or never; and as much as you like when it is only mapped."""
    with (home / "outbox" / "gone").open("wb") as file:
        file.write(b"x" * 2 * MIB)
        file.flush()
        (home / "outbox" / "gone").unlink()
        assert written(home) == 2 * MIB + NAME_BYTES
    assert written(home) == NAME_BYTES
    with (home / "outbox" / "gone").open("w+b") as file:
        file.write(b"x" * MIB)
        file.flush()
        mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
    assert written(home) == MIB + NAME_BYTES
    (home / "outbox" / "gone").unlink()
    assert written(home) > MOST - MIB
    mapped.close()
    assert written(home) == NAME_BYTES


def test_folders_within_folders_are_removed_however_deep(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deeper than Python calls itself; what links lead to stays."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    monkeypatch.chdir(home / "outbox")
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
        os.symlink(tmp_path / "kept", "link")
    monkeypatch.chdir(tmp_path)
    try:
        clearing.empty(home / "outbox")
        assert os.listdir(home / "outbox") == []
    finally:
        # Those who remove what tests leave would not manage.
        subprocess.run(["rm", "-rf", str(home / "outbox")], check=True)
    (home / "link").symlink_to(tmp_path / "kept")
    clearing.remove(home / "link")
    clearing.remove(home)
    assert (tmp_path / "kept" / "file").is_file()
