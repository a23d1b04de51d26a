"""Attachments wait in the user's folder between the mail that they came in and their own turn."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from engine import parts as parts_module
from engine.errors import MalformedMessage
from engine.parts import PartStore
from engine.ports import FetchFailed
from engine.reasons import Reason
from engine.workers import results


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    place = tmp_path / "outbox"
    place.mkdir()
    (place / "7.part1").write_bytes(b"the attachment")
    return place


@pytest.fixture
def store(tmp_path: Path) -> PartStore:
    (tmp_path / "user").mkdir()
    return PartStore(tmp_path / "user" / "parts")


SHA256 = hashlib.sha256(b"the attachment").hexdigest()


def failure_of(store: PartStore, name: str, target: Path) -> Reason:
    with pytest.raises(FetchFailed) as caught:
        store.fetch(name, target)
    assert not target.exists()
    return caught.value.failure.reason


def test_a_part_comes_back_as_it_was(store: PartStore, outbox: Path, tmp_path: Path) -> None:
    """With its size and hash; as often as it is asked for; private to the user."""
    assert store.add("12-0", outbox, "7.part1") == (SHA256, 14)
    (outbox / "7.part1").unlink()
    for attempt in range(2):
        fetched = store.fetch("12-0", tmp_path / f"copy{attempt}")
        assert (fetched.sha256, fetched.size_bytes, fetched.fingerprint) == (SHA256, 14, "")
        assert (tmp_path / f"copy{attempt}").read_bytes() == b"the attachment"
    folder = tmp_path / "user" / "parts"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "12-0").stat().st_mode & 0o777 == 0o600


def test_a_part_of_the_same_name_takes_the_place_of_the_first(store: PartStore, outbox: Path, tmp_path: Path) -> None:
    """A mail that is read again brings its attachments again."""
    store.add("12-0", outbox, "7.part1")
    (outbox / "7.part1").write_bytes(b"new")
    assert store.add("12-0", outbox, "7.part1")[1] == 3
    store.fetch("12-0", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"new"


def test_a_part_is_no_larger_than_what_is_left(store: PartStore, outbox: Path) -> None:
    """However little of the disk it takes where it lies."""
    with (outbox / "7.part1").open("r+b") as file:
        file.truncate(1001)
    with pytest.raises(MalformedMessage, match="1001 bytes; at most 1000"):
        store.add("12-0", outbox, "7.part1", 1000)
    assert store.add("12-0", outbox, "7.part1", 1001)[1] == 1001


def test_a_part_is_replaced_in_one_step(
    store: PartStore, outbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a part is written anew, whoever copies it gets the old one whole, never the beginning of the new one."""
    store.add("12-0", outbox, "7.part1")
    (outbox / "7.part1").write_bytes(b"new" * 1000)
    take = results.take_file
    seen: list[bytes] = []

    def watched(outbox: Path, name: str, target: Path, most: int) -> tuple[str, int]:
        taken = take(outbox, name, target, most)
        store.fetch("12-0", tmp_path / "copy")
        seen.append((tmp_path / "copy").read_bytes())
        return taken

    monkeypatch.setattr(results, "take_file", watched)
    store.add("12-0", outbox, "7.part1")
    assert seen == [b"the attachment"]
    store.fetch("12-0", tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == b"new" * 1000
    assert sorted(path.name for path in (tmp_path / "user" / "parts").iterdir()) == ["12-0"]


def test_what_has_vanished_is_said_to_have(store: PartStore, outbox: Path, tmp_path: Path) -> None:
    """Never there, settled, or cleared away: the mail has to be read again."""
    assert failure_of(store, "12-0", tmp_path / "copy") is Reason.VANISHED
    store.add("12-0", outbox, "7.part1")
    store.add("12-1", outbox, "7.part1")
    store.remove("12-0")
    assert failure_of(store, "12-0", tmp_path / "copy") is Reason.VANISHED
    assert store.fetch("12-1", tmp_path / "other").size_bytes == 14
    store.clear()
    assert failure_of(store, "12-1", tmp_path / "copy") is Reason.VANISHED
    assert not (tmp_path / "user" / "parts").exists()


def test_removing_and_clearing_twice_is_nothing(store: PartStore, outbox: Path) -> None:
    """Nor is either of what never was; after it the store takes parts again."""
    store.remove("12-0")
    store.clear()
    store.add("12-0", outbox, "7.part1")
    for _ in range(2):
        store.remove("12-0")
    for _ in range(2):
        store.clear()
    assert store.add("12-0", outbox, "7.part1") == (SHA256, 14)


def test_a_locator_leads_nowhere_else(store: PartStore, outbox: Path, tmp_path: Path) -> None:
    """A damaged one reads and removes nothing outside of the folder."""
    (tmp_path / "user" / "index.db").write_text("treasure")
    store.add("12-0", outbox, "7.part1")
    assert failure_of(store, "../index.db", tmp_path / "copy") is Reason.VANISHED
    assert failure_of(store, str(tmp_path / "user" / "index.db"), tmp_path / "copy") is Reason.VANISHED
    assert failure_of(store, "..", tmp_path / "copy") is Reason.NOT_A_FILE
    store.remove("../index.db")
    assert (tmp_path / "user" / "index.db").exists()


def test_a_lie_in_the_outbox_leaves_no_part(
    store: PartStore, outbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link, a name with a slash, more bytes than a part may have."""
    (outbox / "link").symlink_to(outbox / "7.part1")
    monkeypatch.setattr(parts_module, "MAX_PART_BYTES", 13)
    for name in ("link", "../outbox/7.part1", "none", "7.part1"):
        with pytest.raises(MalformedMessage):
            store.add("12-0", outbox, name)
        assert failure_of(store, "12-0", tmp_path / "copy") is Reason.VANISHED
