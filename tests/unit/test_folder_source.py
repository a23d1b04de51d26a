"""A folder with everything in it that a file system may hold: what is listed, what is copied, what leads nowhere."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import SourceUnavailable
from engine.model import Listed
from engine.ports import FetchFailed
from engine.reasons import Reason
from engine.sources import beneath
from engine.sources.folder import PAGE_ITEMS, FolderSource, walk
from engine.sources.rules import Rules

NOBODY = 65534


def source(root: Path, **rules: Any) -> FolderSource:
    """The folder as a source, with rules."""
    return FolderSource(f"folder:{root}", str(root), Rules(**rules))


def listed(root: Path, **rules: Any) -> dict[str, Listed]:
    """All items of a complete listing by key; no key comes twice."""
    items = [item for page in source(root, **rules).list("") for item in page]
    assert len({item.key for item in items}) == len(items)
    return {item.key: item for item in items}


def listed_until_trouble(root: Path) -> tuple[set[str], SourceUnavailable]:
    """The keys of a listing that does not end well, and how it ends."""
    keys: set[str] = set()
    pages = source(root).list("")
    with pytest.raises(SourceUnavailable) as caught:
        keys.update(item.key for page in pages for item in page)
    return keys, caught.value


def fetch(root: Path, item: Listed, target: Path, **rules: Any) -> bytes:
    """The bytes that arrive, checked against what is said of them."""
    fetched = source(root, **rules).fetch(item.locator, target)
    data = target.read_bytes()
    assert (fetched.size_bytes, fetched.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert fetched.fingerprint == item.fingerprint
    target.unlink()
    return data


def refused(root: Path, locator: Any, target: Path, **rules: Any) -> Reason:
    """Why an item is not copied. Nothing is left of the attempt."""
    with pytest.raises(FetchFailed) as caught:
        source(root, **rules).fetch(locator, target)
    assert not target.exists()
    return caught.value.failure.reason


def open_descriptors() -> int:
    """How many descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a source, empty."""
    place = tmp_path / "root"
    place.mkdir()
    return place


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a copy is to go."""
    return tmp_path / "copy"


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that other accounts can reach, unlike pytest's own."""
    place = Path(tempfile.mkdtemp(prefix="nightmill-test-"))
    place.chmod(0o755)
    yield place
    for entry in place.rglob("*"):
        if entry.is_dir():
            entry.chmod(0o755)
    shutil.rmtree(place)


def as_an_ordinary_account(task: Callable[[], Any]) -> Any:
    """What `task` returns (JSON-able) when it is run without the rights of root, for whom nothing is forbidden."""
    if os.geteuid() != 0:
        return task()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writing, json.dumps(task()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return json.loads(said)


# --- what is listed --------------------------------------------------------------------------------------------------


def test_files_of_all_folders_are_listed_and_copied(root: Path, target: Path) -> None:
    """Nested files come with size, time and path; empty folders are nothing; the bytes arrive."""
    (root / "a" / "b").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "top.txt").write_bytes(b"top")
    (root / "a" / "b" / "deep.txt").write_bytes(b"deep" * 1_000_000)
    (root / "a" / "nothing").write_bytes(b"")
    os.utime(root / "top.txt", (1_000_000_000, 1_000_000_000))
    items = listed(root)
    assert set(items) == {"top.txt", "a/b/deep.txt", "a/nothing"}
    top = items["top.txt"]
    assert (top.path, top.size_bytes, top.modified, top.skip) == ("top.txt", 3, 1e9, None)
    assert fetch(root, top, target) == b"top"
    assert fetch(root, items["a/b/deep.txt"], target) == b"deep" * 1_000_000
    assert fetch(root, items["a/nothing"], target) == b""
    json.dumps(top.locator)


def test_a_change_moves_the_fingerprint(root: Path) -> None:
    """Other content, another file under the name, or a changed file with its old time put back; nothing else does."""
    file = root / "file"
    file.write_bytes(b"one")
    prints = [listed(root)["file"].fingerprint]
    assert listed(root)["file"].fingerprint == prints[0]
    file.write_bytes(b"three")
    prints.append(listed(root)["file"].fingerprint)
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns - 5_000_000_000))
    prints.append(listed(root)["file"].fingerprint)
    (root / "other").write_bytes(b"three")
    os.utime(root / "other", ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(root / "other", file)
    prints.append(listed(root)["file"].fingerprint)
    assert len(set(prints)) == 4


def test_a_change_with_the_old_time_put_back_moves_the_fingerprint(root: Path) -> None:
    """Same size, same time: the clock that nobody can put back, of the last change of the entry, has moved."""
    file = root / "file"
    file.write_bytes(b"one")
    before, old = file.stat(), listed(root)["file"].fingerprint
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # it ticks a few hundred times a second
        file.write_bytes(b"two")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert listed(root)["file"].fingerprint != old


def test_links_are_listed_and_lead_nowhere(root: Path, target: Path, tmp_path: Path) -> None:
    """To a file, a folder, upwards in a circle, out of the root, to nothing: each is one skipped item."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    (root / "real").write_bytes(b"real")
    for name, to in {
        "to-file": "real", "to-folder": str(secret), "loop": ".", "up": "..", "self": "self", "broken": "nowhere",
        "out": str(secret / "file"),
    }.items():  # fmt: skip
        (root / name).symlink_to(to)
    items = listed(root)
    assert {key for key, item in items.items() if item.skip is None} == {"real"}
    assert {item.skip for key, item in items.items() if key != "real"} == {Reason.SYMBOLIC_LINK}
    assert len(items) == 8
    for key in ("to-file", "self", "broken", "out", "to-folder"):
        assert refused(root, items[key].locator, target) is Reason.SYMBOLIC_LINK


def test_what_is_no_file_is_listed_as_such_and_never_opened(
    root: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named pipe that nobody writes to, and a socket: neither is waited for."""
    os.mkfifo(root / "pipe")
    monkeypatch.chdir(root)  # the path of a socket may have 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        items = listed(root)
        assert {item.skip for item in items.values()} == {Reason.NOT_A_FILE}
        assert items["pipe"].skip_detail.startswith("p")
        for item in items.values():
            assert refused(root, item.locator, target) is Reason.NOT_A_FILE


def test_a_device_is_no_file(root: Path, target: Path) -> None:
    """A character device is listed as such and not read."""
    try:
        os.mknod(root / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")
    item = listed(root)["zero"]
    assert (item.skip, item.skip_detail[0]) == (Reason.NOT_A_FILE, "c")
    assert refused(root, item.locator, target) is Reason.NOT_A_FILE


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"\xff\xfe name", "\ufffd\ufffd name"),
        (b"two\nlines", "two\\nlines"),
        (b"\x1b[2Jclear", "\\x1b[2Jclear"),
        (b"\xc2\x9bcsi", "\\x9bcsi"),
        ("annual\u202efdp.exe".encode(), "annual\\u202efdp.exe"),
        ("annual\u200f.exe".encode(), "annual\\u200f.exe"),
        (b"100%25 %", "100%25 %"),
        ("Müller".encode(), "Müller"),
        ("Mu\u0308ller".encode(), "Mu\u0308ller"),
        (b" ", " "),
        (b"\\x1b", "\\x1b"),
        (b"a" * 255, "a" * 255),
    ],
)
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_name_is_bytes(root: Path, target: Path, name: bytes, shown: str, as_folder: bool) -> None:
    """Whatever a name holds, it is listed, stored as clean text, shown without harm, and found again."""
    place = os.fsencode(root) + b"/" + name
    if as_folder:
        os.mkdir(place)
        place += b"/file"
    with open(place, "wb") as file:
        file.write(b"content")
    (item,) = listed(root).values()
    item.key.encode()
    assert not set(item.key) & {chr(code) for code in (*range(32), *range(127, 160))}
    assert item.path == shown + ("/file" if as_folder else "")
    assert fetch(root, item, target) == b"content"


@given(st.binary(min_size=1).filter(lambda name: b"/" not in name and b"\0" not in name))
@example(b"%")
@example(b"%41")
@example(b"\xed\xb2\x80")
@example("\u0085".encode())
def test_a_key_is_clean_text_and_loses_nothing(name: bytes) -> None:
    """Any name becomes text without controls and surrogates, and the same name again; different ones stay different."""
    key = beneath.key_of(os.fsdecode(name))
    key.encode()
    assert "/" not in key
    assert not any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in key)
    assert os.fsencode(beneath.name_of(key)) == name


def test_a_tree_deeper_than_any_path_is_listed_and_copied(root: Path, target: Path) -> None:
    """300 folders deep, 15,000 bytes of path, a side folder at each level: all found with few descriptors."""
    names = ["d" * 50] * 300
    descriptor = os.open(root, os.O_RDONLY)
    for depth, name in enumerate(names):
        for folder_name in (name, "side"):
            os.mkdir(folder_name, dir_fd=descriptor)
        side = os.open("side", os.O_RDONLY, dir_fd=descriptor)
        os.close(os.open(f"file-{depth}", os.O_CREAT, dir_fd=side))
        os.close(side)
        deeper = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    with os.fdopen(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor), "wb") as file:
        file.write(b"at the bottom")
    os.close(descriptor)
    before, most, found = open_descriptors(), 0, set()
    for thing in walk(str(root), enter=lambda path, name: True):
        most = max(most, open_descriptors())
        found.add(thing.path)
    assert len(found) == 301
    assert {path.rpartition("/")[2] for path in found} == {"bottom", *(f"file-{depth}" for depth in range(300))}
    assert most - before < 80
    assert open_descriptors() == before
    bottom = listed(root)["/".join([*names, "bottom"])]
    assert fetch(root, bottom, target) == b"at the bottom"


def test_pages_hold_a_thousand_items(root: Path) -> None:
    """The most that a page may hold, and no item twice or never."""
    for number in range(2 * PAGE_ITEMS + 1):
        (root / str(number)).touch()
    pages = list(source(root).list(""))
    assert [len(page) for page in pages] == [1000, 1000, 1]
    assert {item.key for page in pages for item in page} == {str(number) for number in range(2001)}


def test_a_listing_that_is_given_up_leaves_no_descriptor_open(root: Path) -> None:
    """A run that is stopped in the middle of a listing closes what it opened."""
    for number in range(1500):
        (root / str(number)).touch()
    before = open_descriptors()
    pages = source(root).list("")
    next(pages)
    assert open_descriptors() > before
    pages.close()  # type: ignore[attr-defined]
    assert open_descriptors() == before


# --- rules -----------------------------------------------------------------------------------------------------------


def test_rules_skip_with_a_reason_and_never_hide(root: Path) -> None:
    """Too large, too old, excluded: listed all the same, with the reason and its figures."""
    (root / "big").write_bytes(b"x" * 11)
    (root / "fits").write_bytes(b"x" * 10)
    (root / "old").touch()
    (root / "just").touch()
    os.utime(root / "old", (999_999_999, 999_999_999))
    os.utime(root / "just", (1_000_000_000, 1_000_000_000))
    (root / "a.tmp").touch()
    items = listed(root, max_size_bytes=10, since=1e9, exclude=("*.tmp", "*.bak"))
    assert {key: item.skip for key, item in items.items()} == {
        "big": Reason.TOO_LARGE, "fits": None, "old": Reason.TOO_OLD, "just": None, "a.tmp": Reason.EXCLUDED,
    }  # fmt: skip
    assert items["big"].skip_detail == "11 bytes; max_size is 10"
    assert items["old"].skip_detail == "last changed 2001-09-09; since is 2001-09-09"


def test_an_excluded_folder_is_one_item_and_is_not_entered(root: Path) -> None:
    """By its name or by its path; what lies in it is neither listed nor looked at."""
    for name in ("node_modules", "keep", "keep/cache"):
        (root / name).mkdir()
        (root / name / "file").touch()
    items = listed(root, exclude=("node_modules", "keep/cache"))
    assert {key: item.skip for key, item in items.items()} == {
        "node_modules": Reason.EXCLUDED, "keep/cache": Reason.EXCLUDED, "keep/file": None,
    }  # fmt: skip
    assert items["node_modules"].skip_detail == "the folder as a whole"


@pytest.mark.parametrize(
    ("pattern", "hit"),
    [
        ("*.TMP", {"c.TMP"}),
        ("a*", {"a.txt"}),
        ("*/b?.txt", {"x/b1.txt"}),
        ("[ac].*", {"a.txt", "c.TMP"}),
        ("\udcff*", {"%FFname"}),
    ],
)
def test_patterns_are_those_of_the_shell(root: Path, pattern: str, hit: set[str]) -> None:
    """Compared with the path and with its last part, case and all; bytes that are no text too."""
    (root / "x").mkdir()
    for name in ("a.txt", "c.TMP", "x/b1.txt", "x/b12.txt", "\udcffname"):
        (root / name).touch()
    assert {key for key, item in listed(root, exclude=(pattern,)).items() if item.skip} == hit


def test_a_time_beyond_the_calendar_is_no_trouble(root: Path) -> None:
    """A file from before the year 1 (as some file systems give them) is too old, with what can be said of when."""
    verdict = Rules(since=0.0).verdict(size_bytes=0, modified=-1e14)
    assert verdict == (Reason.TOO_OLD, "last changed -100000000000000 s from 1970; since is 1970-01-01")


# --- roots -----------------------------------------------------------------------------------------------------------


def test_a_missing_root_is_said_at_once(tmp_path: Path, target: Path) -> None:
    """Nothing is listed: not even as nothing, which would remove all that is known."""
    keys, error = listed_until_trouble(tmp_path / "absent")
    assert (keys, error.reason) == (set(), Reason.SOURCE_MISSING)
    assert "mount or restore it" in str(error)
    assert refused(tmp_path / "absent", {"path": "file"}, target) is Reason.VANISHED


def test_a_root_may_be_a_link(root: Path, tmp_path: Path, target: Path) -> None:
    """The one link that is followed: people move their folders to larger disks."""
    (root / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(root)
    assert fetch(tmp_path / "link", listed(tmp_path / "link")["file"], target) == b"content"
    (tmp_path / "broken").symlink_to("nowhere")
    assert listed_until_trouble(tmp_path / "broken")[1].reason == Reason.SOURCE_MISSING


def test_a_root_that_is_a_file_is_no_folder(tmp_path: Path) -> None:
    """The message says what is meant."""
    (tmp_path / "file").touch()
    error = listed_until_trouble(tmp_path / "file")[1]
    assert error.reason == Reason.SOURCE_UNREADABLE
    assert str(error).endswith("is not a folder; name the folder that is meant")


def test_a_folder_is_never_unchanged_without_a_look(root: Path) -> None:
    """A folder's own times say nothing of the files beneath."""
    assert not source(root).unchanged_since(source(root).cursor())


def test_an_unreadable_subfolder_makes_the_listing_incomplete(open_to_all: Path) -> None:
    """The rest is listed; the end of the listing says that it is not all, so that nothing is taken for removed."""
    for name in ("closed", "names-only", "open"):
        (open_to_all / name).mkdir()
        (open_to_all / name / "file").touch()
    (open_to_all / "closed").chmod(0o000)
    (open_to_all / "names-only").chmod(0o644)

    def look() -> list[Any]:
        keys, error = listed_until_trouble(open_to_all)
        return [sorted(keys), error.reason, str(error)]

    keys, reason, message = as_an_ordinary_account(look)
    assert keys == ["open/file"]
    assert reason == Reason.SOURCE_INCOMPLETE
    assert "Permission denied (and 1 more)" in message


def test_an_unreadable_root_or_file_is_said(open_to_all: Path) -> None:
    """A root is an unreadable source; a file is listed, and fails when it is to be copied."""
    (open_to_all / "root").mkdir(mode=0o700)
    (open_to_all / "file").touch(mode=0o600)
    if os.geteuid() != 0:
        (open_to_all / "root").chmod(0)
        (open_to_all / "file").chmod(0)

    def look() -> list[str]:
        error = listed_until_trouble(open_to_all / "root")[1]
        with pytest.raises(FetchFailed) as caught:
            source(open_to_all).fetch({"path": "file"}, Path("/nonexistent/target"))
        return [error.reason, str(error), caught.value.failure.reason]

    reason, message, failure = as_an_ordinary_account(look)
    assert reason == Reason.SOURCE_UNREADABLE
    assert "give the engine's account the right to read it" in message
    assert failure == Reason.UNREADABLE


# --- what changes meanwhile ------------------------------------------------------------------------------------------


def test_a_file_swapped_for_something_else_is_not_followed(root: Path, target: Path, tmp_path: Path) -> None:
    """Between listing and copy: a link, a named pipe, a folder, nothing."""
    (tmp_path / "secret").write_bytes(b"secret")
    file = root / "file"
    file.write_bytes(b"mine")
    locator = listed(root)["file"].locator
    file.unlink()
    assert refused(root, locator, target) is Reason.VANISHED
    file.symlink_to(tmp_path / "secret")
    assert refused(root, locator, target) is Reason.SYMBOLIC_LINK
    file.unlink()
    os.mkfifo(file)
    assert refused(root, locator, target) is Reason.NOT_A_FILE
    file.unlink()
    file.mkdir()
    assert refused(root, locator, target) is Reason.NOT_A_FILE


@pytest.mark.parametrize("becomes", ["link", "pipe"])
def test_a_file_swapped_between_the_look_and_the_opening_is_not_followed(
    root: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    """However narrow the moment: the descriptor that is opened is of a regular file, or of nothing."""
    (tmp_path / "secret").write_bytes(b"secret")
    file = root / "file"
    file.write_bytes(b"mine")
    locator = listed(root)["file"].locator
    real_stat = os.stat

    def stat_then_swap(name: Any, **options: Any) -> os.stat_result:
        status = real_stat(name, **options)
        if name == "file" and stat.S_ISREG(status.st_mode):
            file.unlink()
            file.symlink_to(tmp_path / "secret") if becomes == "link" else os.mkfifo(file)
        return status

    monkeypatch.setattr(os, "stat", stat_then_swap)
    reason = refused(root, locator, target)
    assert reason is (Reason.SYMBOLIC_LINK if becomes == "link" else Reason.NOT_A_FILE)


def test_a_folder_swapped_for_a_link_leads_nowhere(root: Path, target: Path, tmp_path: Path) -> None:
    """Between listing and copy, on any level."""
    secret = tmp_path / "secret"
    (secret / "b").mkdir(parents=True)
    (secret / "file").write_bytes(b"secret")
    (secret / "b" / "file").write_bytes(b"secret")
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_bytes(b"mine")
    locator = listed(root)["a/b/file"].locator
    (root / "a" / "b").rename(root / "aside")
    (root / "a" / "b").symlink_to(secret)
    assert refused(root, locator, target) is Reason.SYMBOLIC_LINK
    (root / "a").rename(root / "away")
    (root / "a").symlink_to(secret)
    assert refused(root, locator, target) is Reason.SYMBOLIC_LINK
    (root / "a").unlink()
    (root / "a").touch()
    assert refused(root, locator, target) is Reason.VANISHED


@pytest.mark.parametrize("becomes", ["link", "gone"])
def test_a_folder_swapped_during_the_listing_leads_nowhere(root: Path, tmp_path: Path, becomes: str) -> None:
    """What it held may have been moved to where we have been already: the listing is not complete."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").touch()
    (root / "folder").mkdir()
    (root / "top").touch()
    things = walk(str(root), enter=lambda path, name: True)
    assert next(things).path == "top"  # the root is being read; the folder is still to be opened
    (root / "folder").rmdir()
    if becomes == "link":
        (root / "folder").symlink_to(secret)
    with pytest.raises(SourceUnavailable) as caught:
        next(things)
    assert caught.value.reason == Reason.SOURCE_INCOMPLETE


def test_a_file_removed_during_the_listing_is_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name was read and its state was not: it is not listed, and the listing is complete."""
    for number in range(10):
        (root / f"file-{number}").touch()
    things = walk(str(root), enter=lambda path, name: True)
    found = [next(things).name]
    gone = next(entry.name for entry in root.iterdir() if entry.name not in found)
    (root / gone).unlink()
    found += [thing.name for thing in things]
    assert len(found) == 9
    assert gone not in found


def test_a_file_that_grows_while_it_is_copied_is_refused(
    root: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one that is written faster than we read: the copy ends."""
    file = root / "log"
    file.write_bytes(b"x" * 3_000_000)
    locator = listed(root)["log"].locator
    real_pread, reads = os.pread, 0

    def pread_while_it_grows(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal reads
        reads += 1
        assert reads < 10, "the copy does not end"
        with file.open("ab") as more:
            more.write(b"y" * beneath.BLOCK_BYTES)
        return real_pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", pread_while_it_grows)
    assert refused(root, locator, target) is Reason.CHANGED_WHILE_READING


@pytest.mark.parametrize("change", ["shrinks", "is rewritten"])
def test_a_file_that_changes_while_it_is_copied_is_refused(
    root: Path, target: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A copy of which the first half is old and the second new would be of a file that never was."""
    file = root / "file"
    file.write_bytes(b"x" * 3_000_000)
    locator = listed(root)["file"].locator
    real_pread = os.pread

    def pread_then_change(descriptor: int, length: int, offset: int) -> bytes:
        data = real_pread(descriptor, length, offset)
        if offset == 0:
            file.write_bytes(b"y" * (10 if change == "shrinks" else 3_000_000))
            os.utime(file, (1, 1))
        return data

    monkeypatch.setattr(os, "pread", pread_then_change)
    assert refused(root, locator, target) is Reason.CHANGED_WHILE_READING


def test_a_file_that_does_not_tell_its_size_is_not_copied(target: Path) -> None:
    """Files that the kernel makes up as they are read say that they are empty, and are not."""
    assert refused(Path("/proc/self"), {"path": "status"}, target) is Reason.CHANGED_WHILE_READING


def test_a_file_that_outgrew_its_limit_is_not_copied(root: Path, target: Path) -> None:
    """Between listing and copy a small file may have become one that fills the disk."""
    (root / "file").write_bytes(b"x" * 10)
    locator = listed(root, max_size_bytes=100)["file"].locator
    (root / "file").write_bytes(b"x" * 101)
    assert refused(root, locator, target, max_size_bytes=100) is Reason.TOO_LARGE
    os.truncate(root / "file", 100)
    source(root, max_size_bytes=100).fetch(locator, target)


def test_a_file_changed_after_the_listing_comes_with_its_new_fingerprint(root: Path, target: Path) -> None:
    """The fingerprint is of the very bytes that were copied, so the next listing calls them unchanged."""
    (root / "file").write_bytes(b"old")
    old = listed(root)["file"]
    (root / "file").write_bytes(b"newer")
    fetched = source(root).fetch(old.locator, target)
    assert target.read_bytes() == b"newer"
    assert fetched.fingerprint == listed(root)["file"].fingerprint != old.fingerprint


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "..%2Fsecret", "a%2F..%2F..%2Fsecret", "", ".", "%00"])
def test_a_damaged_locator_leads_nowhere(root: Path, target: Path, tmp_path: Path, path: str) -> None:
    """Nothing but the name of a file beneath the root is followed, whatever the ledger says."""
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "a").mkdir()
    assert refused(root, {"path": path}, target) is Reason.UNREADABLE


# --- where copies go -------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_behind(root: Path, target: Path) -> None:
    """The copy that found no room is removed, and the reason is the disk, not the item."""
    (root / "file").write_bytes(b"x" * 3_000_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        assert refused(root, {"path": "file"}, target) is Reason.DISK_FULL
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_copy_replaces_nothing(root: Path, target: Path, tmp_path: Path) -> None:
    """A file or a link that stands where the copy is to go is a defect of the caller; neither is written through."""
    (root / "file").write_bytes(b"new")
    target.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        source(root).fetch({"path": "file"}, target)
    assert target.read_bytes() == b"old"
    target.unlink()
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        source(root).fetch({"path": "file"}, target)
    assert not (tmp_path / "elsewhere").exists()


def test_a_copy_goes_into_a_file_that_is_empty(root: Path, target: Path) -> None:
    """It was emptied for that: the same inode, and no bytes but those of the copy."""
    (root / "file").write_bytes(b"new")
    target.touch(0o600)
    inode = target.stat().st_ino
    source(root).fetch({"path": "file"}, target)
    assert (target.stat().st_ino, target.read_bytes()) == (inode, b"new")
    (root / "file").write_bytes(b"")
    target.write_bytes(b"")
    assert source(root).fetch({"path": "file"}, target).size_bytes == 0


@pytest.mark.parametrize("what", ["hard link", "fifo", "read fifo", "folder"])
def test_what_is_empty_and_no_plain_file_is_not_written_to(root: Path, target: Path, tmp_path: Path, what: str) -> None:
    """Nor waited for: somebody may have it open under another name."""
    (root / "file").write_bytes(b"new")
    reader = -1
    match what:
        case "hard link":
            (tmp_path / "other").touch()
            target.hardlink_to(tmp_path / "other")
        case "folder":
            target.mkdir()
        case _:
            os.mkfifo(target)
            reader = os.open(target, os.O_RDONLY | os.O_NONBLOCK) if what == "read fifo" else -1
    with pytest.raises(FileExistsError):
        source(root).fetch({"path": "file"}, target)
    if what == "hard link":
        assert (tmp_path / "other").read_bytes() == b""
    if reader >= 0:
        assert os.read(reader, 10) == b""
        os.close(reader)


def test_a_disk_that_cannot_be_read_is_said(root: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the device is the item's, and leaves no half copy."""
    (root / "file").write_bytes(b"content")

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    assert refused(root, {"path": "file"}, target) is Reason.UNREADABLE


def test_every_way_closes_its_descriptors(root: Path, target: Path) -> None:
    """Good or bad, a listing or a copy holds nothing afterwards."""
    (root / "a").mkdir()
    (root / "a" / "file").touch()
    (root / "link").symlink_to("a")
    before = open_descriptors()
    listed(root)
    source(root).fetch({"path": "a/file"}, target)
    target.unlink()
    for path in ("a/none", "none/file", "link/file", "a", "link", "../x"):
        refused(root, {"path": path}, target)
    assert open_descriptors() == before
