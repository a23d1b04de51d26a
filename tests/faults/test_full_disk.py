"""A file system that is full: a real small one, mounted for the test. What cannot mount one skips with a message."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from engine.clock import SystemClock
from engine.errors import CannotRunError
from engine.ledger import open_ledger
from indexes import paths
from indexes.errors import IndexFull
from indexes.writer import open_writer
from tests.mill import Mill, contents_of

pytestmark = pytest.mark.timeout(120)

FILES, WORDS = 72, 2_000
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(place: Path, size: str, *, again: bool = False) -> None:
    """A tmpfs of that size. Raises OSError."""
    remount = 32 if again else 0  # MS_REMOUNT, mount(2)
    if _libc.mount(b"none", os.fsencode(place), b"tmpfs", remount, f"size={size},mode=0700".encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a size, at the same place each time; a second call makes it larger."""
    place = tmp_path / "disk"
    mounted = False

    def mount(size: str) -> Path:
        nonlocal mounted
        place.mkdir(exist_ok=True)
        try:
            _mount(place, size, again=mounted)
        except OSError as error:
            pytest.skip(f"no file system can be mounted here: {error.strerror}")
        mounted = True
        return place

    yield mount
    if mounted:
        assert _libc.umount2(os.fsencode(place), 2) == 0  # MNT_DETACH


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts that hardly get smaller when they are packed: 900 KB in all, and more than one unit takes."""
    folder = tmp_path_factory.mktemp("home")
    luck = random.Random(4)
    for number in range(FILES):
        words = ("".join(luck.choices("abcdefghijklmnop", k=5)) for _ in range(WORDS))
        (folder / f"{number}.txt").write_text(f"bittern{number} " + " ".join(words))
    return folder


@pytest.fixture(scope="module")
def undisturbed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    """What an index says that always had room."""
    mill = Mill(tmp_path_factory.mktemp("room"), NIGHTMILL_EMBEDDER="none")
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    mill.stop_scheduler()
    return contents_of(_index(mill))


def _index(mill: Mill) -> Path:
    return paths.user_dir(mill.data_dir / "indexes", "ann")


def _is_whole(mill: Mill) -> None:
    for file in (mill.data_dir / "ledger.db", _index(mill) / "index.db"):
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_databases_are_made_whole_or_not_at_all(small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    """However little room there is when they are first opened, page by page: it is said so, and with room it works."""
    full = 0
    for pages in range(1, 120, 3):
        disk = small_disk(f"{4096 * pages}")
        folder = disk / f"{pages}"
        try:
            with suppress(OSError):
                folder.mkdir()
                with open_writer(paths.make_user_dir(folder, "ann")) as writer:
                    writer.save_read(1, "a", "f", "c")
        except IndexFull:
            full += 1
        said = ""
        try:
            open_ledger(folder / "ledger.db", SystemClock()).close()
        except CannotRunError as error:
            said = str(error)
            full += 1
        assert not said or re.search("the disk is full|No space left", said)
        small_disk("8m")
        with open_writer(paths.make_user_dir(folder, "ann")) as writer:
            writer.save_read(1, "a", "f", "c")
        with open_ledger(folder / "ledger.db", SystemClock()) as ledger:
            assert ledger.users() == []
        shutil.rmtree(folder)
    assert full > 20


def test_a_disk_that_is_full_stops_the_run_and_harms_nothing(
    small_disk: Callable[[str], Path], home: Path, undisturbed: list[tuple[object, ...]]
) -> None:
    """Without a reserve the disk fills to the last byte: exit code 4, both databases whole; with room it goes on."""
    mill = Mill(small_disk("4500k"), NIGHTMILL_EMBEDDER="none", NIGHTMILL_DISK_RESERVE="0")
    mill.run("users", "add", "ann", f"folder:{home}")
    done = mill.run("init", code=4)
    assert re.search("the disk (is full|of .* has no room)", done.stdout + done.stderr)
    mill.stop_scheduler()
    _is_whole(mill)
    assert os.listdir(mill.data_dir / "spool") == []
    small_disk("100m")
    mill.run("init")
    mill.stop_scheduler()
    assert contents_of(_index(mill)) == undisturbed


def test_below_the_reserve_nothing_is_begun_and_what_is_there_is_published(
    small_disk: Callable[[str], Path], home: Path, undisturbed: list[tuple[object, ...]]
) -> None:
    """The run that eats up the room ends with exit code 4 and the numbers, and the reserve is not eaten up."""
    disk = small_disk("14m")
    mill = Mill(disk, NIGHTMILL_EMBEDDER="none", NIGHTMILL_DISK_RESERVE="12MB")
    mill.run("users", "add", "ann", f"folder:{home}")
    report = mill.json("init", code=4)
    assert re.search(r"\d+ MB (are )?free, .*NIGHTMILL_DISK_RESERVE.*[ (]1?\d MB", report["message"])
    assert shutil.disk_usage(disk).free > 6_000_000
    counts = report["counts"]
    assert 0 < counts["indexed"] < FILES
    assert (counts["indexed"] + counts["pending"], counts["failed"]) == (FILES, 0)
    found = mill.ledger("SELECT path FROM items WHERE state = 'indexed'")
    number = Path(found[0][0]).stem
    assert mill.hits("ann", f"bittern{number}", "--mode", "keyword") == [f"{number}.txt"]
    _is_whole(mill)
    small_disk("100m")
    mill.run("init")
    mill.stop_scheduler()
    assert contents_of(_index(mill)) == undisturbed
