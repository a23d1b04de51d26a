"""What a worker has taken of the disk, wherever it hides it: this process is the worker."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import clearing
from engine.clearing import MOST_REUSED
from engine.coordinator import _IDLE_BYTES
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


def test_files_of_names_that_come_again_are_emptied_and_stay(home: Path) -> None:
    """The same inode, without a byte of what it held, and without room that was taken beyond its end."""
    outbox = home / "outbox"
    names = ["again0.bytes", "again63.document.json", "again63.chunks.json", "again7.part12"]
    for name in names:
        (outbox / name).write_bytes(b"secret" * 1000)
    with (outbox / names[0]).open("r+b") as file:
        file.truncate(0)
        os.posix_fallocate(file.fileno(), 0, MIB)
        file.truncate(0)
    before = {name: (outbox / name).stat().st_ino for name in names}
    clearing.empty(outbox)
    assert {entry.name: entry.inode() for entry in os.scandir(outbox)} == before
    assert {(outbox / name).stat().st_size for name in names} == {0}
    assert {(outbox / name).stat().st_blocks for name in names} == {0}
    clearing.remove(outbox)
    assert not outbox.exists()


@pytest.mark.parametrize(
    "name",
    [
        "u1-0.bytes",
        "again0.journal",
        "again.bytes",
        "again0000.bytes",
        "again0.bytes2",
        "again0.part100",
        "0again0.bytes",
    ],
)
def test_files_of_other_names_are_removed(home: Path, name: str) -> None:
    """A journal above all: one that was left would be another file's."""
    (home / "outbox" / name).touch()
    clearing.empty(home / "outbox")
    assert os.listdir(home / "outbox") == []


@pytest.mark.parametrize("what", ["link", "dangling", "hard link", "fifo", "read fifo", "folder", "socket", "mode"])
def test_only_plain_files_are_used_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Whatever a worker has put under such a name is removed; what it leads to stays as it was."""
    other, left = tmp_path / "other", home / "outbox" / "again0.document.json"
    other.write_text("kept")
    reader = -1
    match what:
        case "link":
            left.symlink_to(other)
        case "dangling":
            left.symlink_to(tmp_path / "nowhere")
        case "hard link":
            left.hardlink_to(other)
        case "folder":
            left.mkdir()
            (left / "again0.bytes").write_text("within")
        case "socket":
            # Its address may have 107 bytes.
            with monkeypatch.context() as patch, socket.socket(socket.AF_UNIX) as bound:
                patch.chdir(left.parent)
                bound.bind(left.name)
        case "mode":
            left.touch(mode=0)
        case _:
            os.mkfifo(left)
            if what == "read fifo":
                reader = os.open(left, os.O_RDONLY | os.O_NONBLOCK)
    clearing.empty(home / "outbox")
    if reader >= 0:
        os.close(reader)
    if what != "mode" or os.getuid():
        assert os.listdir(home / "outbox") == []
    assert other.read_text() == "kept"
    assert not (tmp_path / "nowhere").exists()


def test_two_names_of_one_file_are_both_removed(home: Path) -> None:
    """Else what one order writes would stand in the result of another."""
    (home / "outbox" / "again0.document.json").touch()
    (home / "outbox" / "again1.document.json").hardlink_to(home / "outbox" / "again0.document.json")
    clearing.empty(home / "outbox")
    assert os.listdir(home / "outbox") == []


def test_no_more_stay_than_an_idle_worker_may_have(home: Path, written: Callable[[Path], int]) -> None:
    """Whoever makes thousands of such names keeps some of them, all empty."""
    for number in range(MOST_REUSED + 100):
        (home / "outbox" / f"again{number}.bytes").write_bytes(b"x")
    clearing.empty(home / "outbox")
    assert len(os.listdir(home / "outbox")) == MOST_REUSED
    assert written(home) == (MOST_REUSED + 1) * NAME_BYTES
    assert written(home) < _IDLE_BYTES


def test_a_file_that_is_kept_may_have_such_a_name(home: Path) -> None:
    """The one that is not to be touched is not emptied either."""
    (home / "outbox" / "again0.bytes").write_text("held")
    clearing.empty(home / "outbox", but="again0.bytes")
    assert (home / "outbox" / "again0.bytes").read_text() == "held"
