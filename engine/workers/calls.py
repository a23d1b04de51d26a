"""The life of a process that runs a caller's own function: take it in, then item after item until the pipe closes.

Started by caller.py. Rule: the caller's script is not run again in here. What it defines is sent by value (dill), and
its classes stand in a `__main__` of the same name, so that results are of the classes that the caller knows.

    in   function, classes of __main__ | item | item ...       frames: 8 bytes of length, then that much
    out  READY or UNFIT                | DONE or FAILED ...    the first byte says which, a pickle follows
"""

from __future__ import annotations

import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import dill

from engine.model import ItemFailure
from engine.processes import die_with_parent

READY, UNFIT, DONE, FAILED = b"R", b"U", b"D", b"F"
_LENGTH_BYTES = 8


def main(pipe_fd: int, parent: int) -> None:
    """Serve until the caller closes the pipe or dies."""
    die_with_parent(parent)
    pipe = socket.socket(fileno=pipe_fd)
    opening = _receive(pipe)
    if opening is None:
        return
    try:
        function = _unpack(opening)
    except BaseException as error:  # noqa: BLE001 - whatever importing the caller's modules raises, the caller is told
        failure = failure_of(0, error)
        pipe.sendall(frame(UNFIT + pickle.dumps((failure.kind, failure.message, failure.traceback))))
        return
    pipe.sendall(frame(READY))
    while (item := _receive(pipe)) is not None:
        answer = _run(function, item)
        # The caller may end us at any time after the answer, and what was printed is to be seen.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        pipe.sendall(frame(answer))


def failure_of(index: int, error: BaseException) -> ItemFailure:
    """The failure that an exception is, without the frame that caught it."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an exception of the caller's own that cannot even say what it is
        message = "(it cannot say what it is: its str() fails)"
    return ItemFailure(
        index=index, kind=type(error).__name__, message=message, traceback="".join(traceback.format_exception(error))
    )


def dump(value: Any) -> bytes:
    """A value for the other side: by reference where that does, by value (lambdas, local classes) where it must be."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # noqa: BLE001 - pickle says "I cannot" by a dozen classes; dill has the last word
        return bytes(dill.dumps(value, recurse=True))


def frame(content: bytes) -> bytes:
    """A message as it goes over the pipe."""
    return len(content).to_bytes(_LENGTH_BYTES, "big") + content


def take_frame(buffer: bytearray) -> bytes | None:
    """The first whole message in a buffer, cut off from it; None while there is none."""
    end = _LENGTH_BYTES + int.from_bytes(buffer[:_LENGTH_BYTES], "big")
    if len(buffer) < _LENGTH_BYTES or len(buffer) < end:
        return None
    content = bytes(buffer[_LENGTH_BYTES:end])
    del buffer[:end]
    return content


def _unpack(opening: bytes) -> Callable[[Any], Any]:
    """The function. With its classes, if they can be made here; a class that nobody needs must not be in the way."""
    function: Any
    with_classes, alone = pickle.loads(opening)  # noqa: S301 - from the process that started this one
    try:
        function, classes = dill.loads(with_classes)  # noqa: S301 - the same
        vars(sys.modules["__main__"]).update(classes)
    except Exception:  # noqa: BLE001 - anything may happen when a class is made; then it goes without
        function = dill.loads(alone)  # noqa: S301 - the same
    sound: Callable[[Any], Any] = function
    return sound


def _run(function: Callable[[Any], Any], item: bytes) -> bytes:
    try:
        return DONE + dump(function(pickle.loads(item)))  # noqa: S301 - from the process that started this one
    except BaseException as error:  # noqa: BLE001 - one item must not end the others, whatever it raises
        failure = failure_of(0, error)
        return FAILED + pickle.dumps((failure.kind, failure.message, failure.traceback))


def _receive(pipe: socket.socket) -> bytes | None:
    """The next message; None when the caller has hung up."""
    head = _read(pipe, _LENGTH_BYTES)
    return None if head is None else _read(pipe, int.from_bytes(head, "big"))


def _read(pipe: socket.socket, size: int) -> bytes | None:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = pipe.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return bytes(content)
