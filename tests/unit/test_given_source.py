"""What was given, as a source: kept whole, listed, copied, replaced, forgotten."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import SourceUnavailable, UsageError
from engine.model import Kind, Listed
from engine.ports import FetchFailed
from engine.reasons import Reason
from engine.sources import given
from engine.sources.uri import open_source, parse_uri


def keep(folder: Path, id_: str, content: bytes, path: str = "", kind: str = "mail") -> bool:
    """One item, as a call keeps it."""
    keeper = given.Keeper(folder, kind)
    try:
        return keeper.keep(given.key_of_id("id", id_), path or id_, content, modified=7.0)
    finally:
        keeper.settle()


def listed(folder: Path, kind: str = "mail", cursor: str = "") -> list[Listed]:
    """All items, by path."""
    source = open_source(f"given:{kind}", user_folder=folder)
    return sorted((item for page in source.list(cursor) for item in page), key=lambda item: item.path)


def fetched(folder: Path, item: Listed, target: Path) -> bytes:
    """The bytes of one."""
    target.unlink(missing_ok=True)
    found = open_source("given:mail", user_folder=folder).fetch(item.locator, target)
    assert found.fingerprint == item.fingerprint
    return target.read_bytes()


def test_what_was_kept_is_listed_and_copied(tmp_path: Path) -> None:
    """Byte by byte, under the path that people know, for its owner alone."""
    content = b"\n{}\n\x00 Subject: the brent goose" * 1000
    assert keep(tmp_path, "m/1\r\n", content)
    (item,) = listed(tmp_path)
    assert (item.path, item.kind, item.size_bytes, item.modified) == ("m/1\\r\\n", Kind.MAIL, len(content), 7.0)
    assert fetched(tmp_path, item, tmp_path / "copy") == content
    for place in (tmp_path / "given").rglob("*"):
        assert place.stat().st_mode & 0o777 == (0o700 if place.is_dir() else 0o600)


def test_the_same_again_is_not_written_and_other_content_replaces_it(tmp_path: Path) -> None:
    """One item for one id, however often it is given; another name or other bytes are another state of it."""
    assert keep(tmp_path, "1", b"old")
    (old,) = listed(tmp_path)
    before = (tmp_path / "given" / "mail").stat().st_mtime_ns
    assert not keep(tmp_path, "1", b"old")
    assert (tmp_path / "given" / "mail").stat().st_mtime_ns == before
    assert keep(tmp_path, "1", b"new")
    (new,) = listed(tmp_path)
    assert new.key == old.key
    assert new.fingerprint != old.fingerprint
    assert keep(tmp_path, "1", b"new", path="name.txt")
    assert listed(tmp_path)[0].fingerprint != new.fingerprint
    assert given.key_of_id("id", "1") != given.key_of_id("uid", "1")


def test_of_two_for_one_id_the_later_one_stays(tmp_path: Path) -> None:
    """Also when it is what was there before the two."""
    keep(tmp_path, "1", b"old")
    keeper = given.Keeper(tmp_path, "mail")
    for content in (b"new", b"old"):
        assert keeper.keep(given.key_of_id("id", "1"), "1", content)
    keeper.settle()
    (item,) = listed(tmp_path)
    assert fetched(tmp_path, item, tmp_path / "copy") == b"old"
    assert os.listdir(tmp_path / "given" / "mail") == [item.key]


def test_an_unchanged_folder_is_not_listed_again(tmp_path: Path) -> None:
    """Known without looking into it; not while the last change is a moment ago, whose twin would go unseen."""
    keep(tmp_path, "1", b"one")
    source = open_source("given:mail", user_folder=tmp_path)
    assert len(list(source.list(""))) == 1
    assert not source.unchanged_since(source.cursor())
    os.utime(tmp_path / "given" / "mail", (1e9, 1e9))
    list(source.list(source.cursor()))
    assert source.unchanged_since(source.cursor())
    keep(tmp_path, "2", b"two")
    assert not source.unchanged_since(source.cursor())


def test_a_draft_of_somebody_who_was_killed_is_no_item(tmp_path: Path) -> None:
    """It is not listed, and the next one who keeps something clears it away."""
    keep(tmp_path, "1", b"one")
    draft = tmp_path / "given" / "mail" / ".draft-0123456789abcdef"
    draft.write_bytes(b"half of it")
    assert [item.path for item in listed(tmp_path)] == ["1"]
    keep(tmp_path, "2", b"two")
    assert not draft.exists()


def test_content_that_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    """No half of a new version, and no draft."""
    keep(tmp_path, "1", b"whole")

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        given.Keeper(tmp_path, "mail").keep(given.key_of_id("id", "1"), "1", broken())
    (item,) = listed(tmp_path)
    assert fetched(tmp_path, item, tmp_path / "copy") == b"whole"
    assert os.listdir(tmp_path / "given" / "mail") == [item.key]


@pytest.mark.parametrize("damage", ["cut", "other bytes", "no label"])
def test_a_damaged_file_is_listed_and_fails_as_damaged(tmp_path: Path, damage: str) -> None:
    """A disk that lost something is no reason to index something else, or to keep silent."""
    keep(tmp_path, "1", b"the avocet")
    (file,) = (tmp_path / "given" / "mail").iterdir()
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-1], "other bytes": whole[:-1] + b"!", "no label": b"the avocet"}[damage])
    (item,) = listed(tmp_path)
    with pytest.raises(FetchFailed) as failed:
        open_source("given:mail", user_folder=tmp_path).fetch(item.locator, tmp_path / "copy")
    assert failed.value.failure.reason is Reason.DAMAGED
    assert not (tmp_path / "copy").exists()


def test_a_link_in_the_folder_leads_nowhere(tmp_path: Path) -> None:
    """Not even one with the name of an item."""
    keep(tmp_path, "1", b"one")
    (tmp_path / "secret").write_bytes(b"of somebody else")
    (tmp_path / "given" / "mail" / ("0" * 40)).symlink_to(tmp_path / "secret")
    source = open_source("given:mail", user_folder=tmp_path)
    pages = source.list("")
    assert [item.path for item in next(iter(pages))] == ["1"]
    with pytest.raises(SourceUnavailable, match="is a link"):
        next(iter(pages))


def test_a_folder_that_is_gone_is_a_missing_source_once_it_was_there(tmp_path: Path) -> None:
    """Before the first item it is an empty one; afterwards nothing that was in it counts as taken back."""
    assert listed(tmp_path) == []
    with pytest.raises(SourceUnavailable) as missing:
        listed(tmp_path, cursor="1-2")
    assert missing.value.reason == Reason.SOURCE_MISSING
    keep(tmp_path, "1", b"one")
    given.forget(tmp_path, "mail")
    assert os.listdir(tmp_path / "given") == []


def test_the_uri_names_a_kind_and_nobody(tmp_path: Path) -> None:
    """Whose it is comes from the run; a path in it, or another word, is refused."""
    assert str(parse_uri("given:events")) == "given:events"
    for wrong in ("given:", "given:letters", "given:../ben/mail", "given:/etc", "given:mail?since=2024-01-01"):
        with pytest.raises(UsageError, match="given are mail, events, files"):
            parse_uri(wrong)
    with pytest.raises(UsageError, match="it belongs to a user"):
        open_source("given:mail")
