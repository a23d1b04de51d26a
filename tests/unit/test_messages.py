"""What goes over the pipe to a worker and comes back: honest messages arrive, and every kind of lie is refused."""

from __future__ import annotations

import json
import os
import pickle
import struct
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import MalformedMessage
from engine.model import Failure
from engine.reasons import Reason
from engine.workers.messages import (
    MAX_MESSAGE_BYTES,
    NOT_A_WORKERS,
    Begin,
    ItemDone,
    Message,
    Progress,
    Ready,
    Stream,
    UnitDone,
    UnitOrder,
    printable,
    receive,
    send,
)

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_line = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=20)
_count = st.integers(0, 2**63 - 1)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(_text, deeper, max_size=3),
    max_leaves=8,
)
_tables = st.dictionaries(_text, _json, max_size=3)
_messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Begin, stage=_text, options=_tables, home=_text, rehearsal=st.none() | _tables),
    st.builds(UnitOrder, unit=_count, orders=st.lists(_tables, max_size=4).map(tuple), memory_bytes=_count),
    st.just(Ready()),
    st.builds(Progress, done=_count, total=_count),
    st.builds(
        ItemDone,
        unit=_count,
        index=_count,
        result=_tables,
        failure=st.none()
        | st.builds(Failure, reason=st.sampled_from(sorted(set(Reason) - NOT_A_WORKERS)), detail=_line),
        cpu_seconds=st.floats(0, 1e8),
        peak_bytes=_count,
    ),
    st.builds(UnitDone, unit=_count),
)
_DONE = {"is": "ItemDone", "unit": 1, "index": 0, "result": {}, "failure": None, "cpu_seconds": 0.5, "peak_bytes": 9}


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    """Both ends of a real pipe: ours, and the worker's."""
    ours, theirs = Pipe()
    yield ours, theirs
    ours.close()
    theirs.close()


def heard(pipe: tuple[Connection, Connection], data: bytes) -> Message:
    """What is made of these bytes of a worker, by both ways of listening, which must agree."""
    ours, theirs = pipe
    frame = struct.pack("!i", len(data)) + data
    try:
        (message,) = Stream().feed(frame)
    except MalformedMessage:
        theirs.send_bytes(data)
        with pytest.raises(MalformedMessage):
            receive(ours)
        raise
    theirs.send_bytes(data)
    assert receive(ours) == message
    return message


def test_large_and_small_messages_arrive(pipe: tuple[Connection, Connection]) -> None:
    """Also one nearly as large as any may be, which does not fit into the pipe at once."""
    ours, theirs = pipe
    large = ItemDone(unit=1, index=2, result={"parts": ["ü" * 1000] * 500}, failure=None)
    writer = threading.Thread(target=lambda: [send(theirs, message) for message in (Ready(), large, UnitDone(unit=1))])
    writer.start()
    assert [receive(ours) for _ in range(3)] == [Ready(), large, UnitDone(unit=1)]
    writer.join()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(message=_messages)
def test_every_honest_message_arrives_as_it_was(pipe: tuple[Connection, Connection], message: Message) -> None:
    """Through a real pipe, and through a stream that is fed one byte at a time."""
    ours, theirs = pipe
    send(theirs, message)
    data = ours.recv_bytes()
    assert heard(pipe, data) == message
    stream = Stream()
    frames = (struct.pack("!i", len(data)) + data) * 2
    assert [found for byte in frames for found in stream.feed(bytes([byte]))] == [message, message]


@pytest.mark.parametrize(
    "message",
    [
        ItemDone(unit=1, index=0, result={"text": "x" * MAX_MESSAGE_BYTES}),
        ItemDone(unit=1, index=0, result={"confidence": float("nan")}),
        ItemDone(unit=1, index=0, result={"confidence": float("inf")}),
        ItemDone(unit=1, index=0, result={"name": "\udcff"}),
    ],
)
def test_what_would_be_refused_is_not_sent(pipe: tuple[Connection, Connection], message: Message) -> None:
    """The one who would send it hears of it, and the pipe stays usable."""
    ours, theirs = pipe
    with pytest.raises(ValueError):  # noqa: PT011 - of Python's own JSON and UTF-8 encoders
        send(theirs, message)
    assert not ours.poll()
    send(theirs, Ready())
    assert receive(ours) == Ready()


def _done(**lies: Any) -> bytes:
    return json.dumps({**_DONE, **lies}).encode()


LIES = {
    "not JSON": b"hello",
    "nothing": b"",
    "half of a message": _done()[:-3],
    "two messages": _done() * 2,
    "not UTF-8": b'{"is": "Ready\xff"}',
    "UTF-16": json.dumps({"is": "Ready"}).encode("utf-16"),
    "a list": b"[]",
    "a number": b"1",
    "a pickle": pickle.dumps(Ready()),
    "a pickle that runs a program": b"cos\nsystem\n(S'echo owned'\ntR.",
    "deep nesting": b"[" * 500_000,
    "deep nesting in a result": b'{"is": "Ready", "x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "no name": b"{}",
    "an unknown name": b'{"is": "Pardon"}',
    "a name of our own": b'{"is": "Message"}',
    "a name that is a list": b'{"is": ' + b"[" * 300 + b"]" * 300 + b"}",
    "a name that is a number": b'{"is": 1}',
    "a very long name": b'{"is": "' + b"x" * 1_000_000 + b'"}',
    "an unknown reason": _done(failure={"reason": "boredom", "detail": ""}),
    "a reason that is a list": _done(failure={"reason": [[["crashed"]]], "detail": ""}),
    "no reason": _done(failure={"detail": ""}),
    "a failure that is a text": _done(failure="crashed"),
    "a detail that is a number": _done(failure={"reason": "crashed", "detail": 5}),
    "a detail with half a character": _done(failure={"reason": "crashed", "detail": "\ud800"}),
    "a result that is a list": _done(result=[]),
    "a result with half a character": _done(result={"file": "\udcff"}),
    "a key with half a character": _done(result={"\ud800": 1}),
    "no result": b'{"is": "ItemDone", "unit": 1, "index": 0}',
    "a unit below zero": _done(unit=-1),
    "a unit that is true": _done(unit=True),
    "a unit that is a fraction": _done(unit=1.0),
    "a unit beyond bounds": _done(unit=2**63),
    "a huge number": _done(peak_bytes=10**4000),
    "a number too long to read": _done().replace(b"9}", b"9" * 100_000 + b"}"),
    "not a number": _done(cpu_seconds=float("nan")),
    "an infinite number": _done(cpu_seconds=float("inf")),
    "not a number in a result": _done(result={"x": [float("nan")]}),
    "an infinite number in a result": _done(result={"x": float("-inf")}),
    "a number that becomes infinite": _done(result={"x": 1}).replace(b'"x": 1', b'"x": 1e999'),
    "less than no time": _done(cpu_seconds=-0.1),
    "more time than there is": _done(cpu_seconds=1e9),
    "time as a text": _done(cpu_seconds="1"),
    "progress without figures": b'{"is": "Progress"}',
    "orders that are no tables": b'{"is": "UnitOrder", "unit": 1, "orders": [1], "memory_bytes": 0}',
    "orders that are a table": b'{"is": "UnitOrder", "unit": 1, "orders": {}, "memory_bytes": 0}',
    "options that are a list": b'{"is": "Begin", "stage": "embed", "options": [], "home": "/"}',
    "a stage that is none": b'{"is": "Begin", "stage": null, "options": {}, "home": "/"}',
}


@pytest.mark.parametrize("name", LIES)
def test_each_kind_of_lie_is_refused(name: str) -> None:
    """Nothing is run, nothing gets through, and what is said of it is short and safe to show."""
    with pytest.raises(MalformedMessage) as caught:
        list(Stream().feed(struct.pack("!i", len(LIES[name])) + LIES[name]))
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [name for name, data in LIES.items() if len(data) < 50_000])
def test_lies_are_refused_on_a_real_pipe_too(pipe: tuple[Connection, Connection], name: str) -> None:
    """The same by the way that waits."""
    with pytest.raises(MalformedMessage):
        heard(pipe, LIES[name])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=60) | _messages.flatmap(lambda message: _bent(message)))
def test_no_bytes_raise_anything_else(pipe: tuple[Connection, Connection], data: bytes) -> None:
    """Whatever a worker writes is a message or a lie."""
    try:
        message = heard(pipe, data)
    except MalformedMessage:
        return
    send(pipe[1], message)
    assert receive(pipe[0]) == message


def _bent(message: Message) -> st.SearchStrategy[bytes]:
    """The message's own bytes, with one byte replaced."""
    ours, theirs = Pipe()
    send(theirs, message)
    data = ours.recv_bytes()
    ours.close()
    theirs.close()
    return st.builds(
        lambda at, byte: data[: at % len(data)] + bytes([byte]) + data[at % len(data) + 1 :],
        st.integers(0, 10_000),
        st.integers(0, 255),
    )


def test_text_about_half_characters_is_text(pipe: tuple[Connection, Connection]) -> None:
    """A backslash, a u and four digits, written out, are no lie; neither is a pair written as two escapes."""
    message = ItemDone(unit=1, index=0, result={"text": "in JSON, \\ud800 is half of \U0001f600"})
    send(pipe[1], message)
    assert receive(pipe[0]) == message
    assert heard(pipe, _done(result={"text": "\U0001f600"})) == ItemDone(
        unit=1, index=0, result={"text": "\U0001f600"}, cpu_seconds=0.5, peak_bytes=9
    )


@pytest.mark.parametrize("size", [MAX_MESSAGE_BYTES + 1, 2**31 - 1, -2, -1])
def test_a_message_that_claims_to_be_too_large_is_refused_unread(
    pipe: tuple[Connection, Connection], size: int
) -> None:
    """By its length alone: nobody waits for the rest, nobody sets memory aside for it."""
    header = struct.pack("!i", size) + (struct.pack("!Q", 2**40) if size == -1 else b"")
    with pytest.raises(MalformedMessage):
        list(Stream().feed(header))
    os.write(pipe[1].fileno(), header)
    with pytest.raises(MalformedMessage):
        receive(pipe[0])


def test_the_end_of_a_pipe_is_an_end(pipe: tuple[Connection, Connection]) -> None:
    """A worker that is gone has told no lie."""
    pipe[1].close()
    with pytest.raises(EOFError):
        receive(pipe[0])


@pytest.mark.parametrize("sent", [2, 4, 10])
def test_a_worker_that_dies_in_the_middle_of_a_message_has_told_no_lie(
    pipe: tuple[Connection, Connection], sent: int
) -> None:
    """What it died of is told by how it ended; half a message is none of its doing."""
    ours, theirs = pipe
    data = struct.pack("!i", len(_done())) + _done()
    os.write(theirs.fileno(), data[:sent])
    theirs.close()
    with pytest.raises(EOFError):
        receive(ours)


def test_a_stream_keeps_what_is_not_complete() -> None:
    """Half a message is no message yet, and none is lost or said twice."""
    frame = struct.pack("!i", len(_done())) + _done()
    stream = Stream()
    assert list(stream.feed(frame[:10])) == []
    assert len(list(stream.feed(frame[10:] + frame + frame[:3]))) == 2
    assert len(list(stream.feed(frame[3:]))) == 1


@given(st.text())
def test_what_is_printed_is_one_safe_line(text: str) -> None:
    """No controls, no line ends, nothing that cannot be written, and bounded."""
    line = printable(text, limit=50)
    assert len(line) <= 50
    line.encode()
    assert all(sign == " " or sign.isprintable() for sign in line)


def test_a_failures_detail_is_made_safe(pipe: tuple[Connection, Connection]) -> None:
    """It goes to terminals and into the ledger."""
    found = heard(pipe, _done(failure={"reason": "damaged", "detail": "bad\x1b[2J\nfile" + "x" * 5000}))
    assert isinstance(found, ItemDone)
    assert found.failure is not None
    assert found.failure.detail.startswith("bad [2J filex")
    assert len(found.failure.detail) == 2000
