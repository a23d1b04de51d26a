"""Results are taken from a worker's outbox: what lies there plainly arrives whole, and every trick is refused."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import MalformedMessage
from engine.workers import results
from engine.workers.results import read_bytes, read_json, read_json_lines, take_file

MOST = 100_000_000

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    place = tmp_path / "worker" / "outbox"
    place.mkdir(parents=True)
    return place


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of somebody else, with the same content as an honest result."""
    (tmp_path / "secret").write_text("[1]")
    return tmp_path / "secret"


def refused(outbox: Path, name: object, match: str, *, most: int = 100) -> None:
    """No way of taking the result takes it, and none leaves anything behind."""
    target = outbox.parent / "target"
    with pytest.raises(MalformedMessage, match=match):
        read_bytes(outbox, {"file": name}, "file", most)
    with pytest.raises(MalformedMessage, match=match):
        take_file(outbox, name, target, most)  # type: ignore[arg-type]
    assert not target.exists()


def test_a_plain_file_arrives_whole(outbox: Path) -> None:
    """Bytes, JSON, and a private copy with its hash and size; the worker's own file stays where it is."""
    data = json.dumps({"text": "Mühle", "n": [1, 2.5, None]}).encode()
    (outbox / "7-0.document.json").write_bytes(data)
    result = {"document": "7-0.document.json"}
    assert read_bytes(outbox, result, "document", len(data)) == data
    assert read_json(outbox, result, "document", most=MOST, most_chars=MOST) == {"text": "Mühle", "n": [1, 2.5, None]}
    target = outbox.parent / "copy"
    assert take_file(outbox, "7-0.document.json", target, len(data)) == (hashlib.sha256(data).hexdigest(), len(data))
    assert target.read_bytes() == data
    assert target.stat().st_mode & 0o777 == 0o600
    (outbox / "7-0.document.json").write_bytes(b"changed later")
    assert target.read_bytes() == data


def test_a_file_of_many_blocks_arrives_whole(outbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size is to that of a block."""
    monkeypatch.setattr(results, "_BLOCK_BYTES", 4)
    for size in (0, 3, 4, 5, 8, 9):
        data = bytes(range(size))
        (outbox / "r").write_bytes(data)
        assert read_bytes(outbox, {"f": "r"}, "f", 9) == data
        assert take_file(outbox, "r", outbox.parent / "copy", 9) == (hashlib.sha256(data).hexdigest(), size)
        assert (outbox.parent / "copy").read_bytes() == data


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../secret", "a/../../secret", "sub/file", "/etc/passwd", ".hidden", "-x", "a\0b", "a b"),
        *("r\n", "ä", "x" * 101, "a\\b", None, 7, ["r"], {"r": 1}, True, b"r"),
    ],
)
def test_a_name_that_no_stage_gives_is_refused(outbox: Path, secret: Path, name: object) -> None:
    """Nothing but letters, digits, dots, lines and dashes, of bounded length, and a field that is there."""
    (outbox / "sub").mkdir()
    (outbox / "sub" / "file").write_text("[1]")
    refused(outbox, name, "is not the name of a result")
    with pytest.raises(MalformedMessage, match="is not the name of a result"):
        read_json(outbox, {}, "file", most=MOST, most_chars=MOST)


def _link(place: Path, secret: Path) -> None:
    place.symlink_to(secret)


def _loop(place: Path, secret: Path) -> None:
    place.symlink_to(place)


def _hard_link(place: Path, secret: Path) -> None:
    place.hardlink_to(secret)


def _folder(place: Path, secret: Path) -> None:
    place.mkdir()


def _pipe(place: Path, secret: Path) -> None:
    os.mkfifo(place)


def _socket(place: Path, secret: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(place))


def _nothing(place: Path, secret: Path) -> None:
    pass


@pytest.mark.parametrize("trick", [_link, _loop, _hard_link, _folder, _pipe, _socket, _nothing])
def test_what_is_no_plain_file_is_refused(
    outbox: Path, secret: Path, trick: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links of both kinds, folders, pipes (which are not waited for), sockets, and files that are not there."""
    monkeypatch.chdir(outbox)  # the address of a socket is short
    trick(Path("r"), secret)
    refused(outbox, "r", "result r (cannot be opened|is not a plain file)")


def test_a_link_in_the_outboxs_place_is_refused(outbox: Path, secret: Path) -> None:
    """A plain file behind it is not the worker's."""
    outbox.rmdir()
    outbox.symlink_to(secret.parent)
    refused(outbox, "secret", "cannot be opened")
    outbox.unlink()
    refused(outbox, "secret", "cannot be opened")


def test_what_is_too_large_is_refused_before_it_is_read(outbox: Path) -> None:
    """A sparse file of a terabyte costs nothing."""
    with open(outbox / "r", "wb") as file:
        file.truncate(1 << 40)
    refused(outbox, "r", "result r has 1099511627776 bytes; at most 100 are allowed")
    with pytest.raises(MalformedMessage, match="at most"):
        read_json(outbox, {"f": "r"}, "f", most=MOST, most_chars=MOST)
    os.truncate(outbox / "r", 100)
    assert len(read_bytes(outbox, {"f": "r"}, "f", 100)) == 100


@pytest.mark.parametrize("change", [5, -5])
def test_a_file_that_changes_while_it_is_read_is_refused(
    outbox: Path, change: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer or shorter than when it was opened: it is not what was checked."""
    (outbox / "r").write_bytes(b"x" * 20)
    _at_first_read(monkeypatch, lambda: os.truncate(outbox / "r", 20 + change))
    with pytest.raises(MalformedMessage, match="changed while it was read"):
        read_bytes(outbox, {"f": "r"}, "f", 100)


def test_a_file_that_grows_while_it_is_copied_is_not_copied_for_ever(
    outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy ends at the limit, and is removed."""
    (outbox / "r").write_bytes(b"x" * 20)
    _at_first_read(monkeypatch, lambda: os.truncate(outbox / "r", 1 << 40))
    with pytest.raises(MalformedMessage, match="grew beyond 100 bytes"):
        take_file(outbox, "r", outbox.parent / "copy", 100)
    assert not (outbox.parent / "copy").exists()


def _at_first_read(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    read, done = os.read, threading.Event()

    def read_after_action(descriptor: int, size: int) -> bytes:
        if not done.is_set():
            done.set()
            action()
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", read_after_action)


def test_a_copy_follows_no_link_at_its_target(outbox: Path, secret: Path) -> None:
    """What stands in the target's place is not written through."""
    (outbox / "r").write_text("worker's words")
    (outbox.parent / "copy").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        take_file(outbox, "r", outbox.parent / "copy", 100)
    assert secret.read_text() == "[1]"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="half"),
        pytest.param(b"[1] [2]", id="two"),
        pytest.param(b"\xff\xfe\xfd", id="no text"),
        pytest.param(b"\x80\x04K\x01.", id="a pickle"),
        pytest.param(b"[" * 1_000_000, id="open without end"),
        pytest.param(b"[" * 200_000 + b"]" * 200_000, id="too deep"),
        pytest.param(b'{"a":' * 200_000 + b"1" + b"}" * 200_000, id="tables too deep"),
        pytest.param(b"1" * 100_000, id="a number without end"),
    ],
)
def test_what_is_no_json_is_refused(outbox: Path, data: bytes) -> None:
    """Broken, deep or endless: one error for all."""
    (outbox / "r").write_bytes(data)
    with pytest.raises(MalformedMessage, match="document is not JSON"):
        read_json(outbox, {"document": "r"}, "document", most=MOST, most_chars=MOST)


def test_no_descriptor_is_left_open(outbox: Path, secret: Path) -> None:
    """Neither by what is taken nor by what is refused."""
    (outbox / "r").write_text("[1]")
    (outbox / "folder").mkdir()
    (outbox / "link").symlink_to(secret)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read_json(outbox, {"f": "r"}, "f", most=MOST, most_chars=MOST)
        take_file(outbox, "r", outbox.parent / "copy", 10)
        (outbox.parent / "copy").unlink()
        for name in ("folder", "link", "none", ".."):
            refused(outbox, name, "result")
    assert len(os.listdir("/proc/self/fd")) == before


def test_lists_in_lists_are_refused_before_they_are_taken_apart(outbox: Path) -> None:
    """Six megabytes of empty lists would be a hundred and thirty of memory; as many of text are an honest document."""
    (outbox / "r").write_bytes(b"[" + b"[]," * 2_000_000 + b"[]]")
    with pytest.raises(MalformedMessage, match="f has more than 4194304 bytes outside of texts"):
        read_json(outbox, {"f": "r"}, "f", most=MOST, most_chars=MOST)
    for hostile in (b'["",' + b'"",' * 3_000_000, b'["' + b'\\"' * 3_000_000):
        (outbox / "r").write_bytes(hostile)
        with pytest.raises(MalformedMessage, match=r"f (has more than|is not JSON)"):
            read_json(outbox, {"f": "r"}, "f", most=MOST, most_chars=MOST)
    (outbox / "r").write_bytes(json.dumps(['[],"\\' * 2_000_000]).encode())
    assert read_json(outbox, {"f": "r"}, "f", most=MOST, most_chars=MOST) == ['[],"\\' * 2_000_000]


def test_characters_are_counted_and_not_only_bytes(outbox: Path) -> None:
    """One sign of four bytes makes four of each character; a text that may have so many bytes has fewer of those."""
    (outbox / "r").write_bytes(json.dumps(["a" * 2_000_000 + "😀"], ensure_ascii=False).encode())
    with pytest.raises(MalformedMessage, match="f has more than 1000000 characters"):
        read_json(outbox, {"f": "r"}, "f", most=MOST, most_chars=1_000_000)
    (outbox / "r").write_bytes(json.dumps(["😀" * 900_000], ensure_ascii=False).encode())
    assert read_json(outbox, {"f": "r"}, "f", most=MOST, most_chars=1_000_000) == ["😀" * 900_000]


@pytest.mark.parametrize("harmless_bytes", [0, 1 << 20])
def test_lines_are_read_within_their_bounds(
    outbox: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, harmless_bytes: int
) -> None:
    """Values come whole and in order; a line without end, one that is no JSON, and a file that changes, are refused."""

    monkeypatch.setattr(results, "_HARMLESS_BYTES", harmless_bytes)

    def lines(name: object = "r") -> list[object]:
        return list(read_json_lines(outbox, {"f": name}, "f", most=1_000, most_of_a_line=10))

    (outbox / "r").write_bytes(b'"a"\n[1]\n' + b"[2]")
    assert lines() == ["a", [1], [2]]
    (outbox / "r").write_bytes(b"")
    assert lines() == []
    for data, match in (
        (b'"0123456789"\n', "f has a line of more than 10 bytes"),
        (b"[1]\n\n", "f is not JSON"),
        (b"1" * 1_001, "at most 1000 are allowed"),
    ):
        (outbox / "r").write_bytes(data)
        with pytest.raises(MalformedMessage, match=match):
            lines()
    with pytest.raises(MalformedMessage, match="is not the name of a result"):
        lines("../secret")
    monkeypatch.setattr(results, "_HARMLESS_BYTES", 0)
    (outbox / "r").write_bytes(b"[1]\n")
    values = read_json_lines(outbox, {"f": "r"}, "f", most=1_000, most_of_a_line=10)
    assert next(values) == [1]
    with open(outbox / "r", "ab") as file:
        file.write(b"[2]\n" * 100)
    with pytest.raises(MalformedMessage, match="changed while it was read"):
        next(values)
