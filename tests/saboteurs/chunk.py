"""A worker that speaks for itself: it takes the pipe away from its own main loop and follows `options["script"]`.

["say", table]      a message, framed as it should be
["bytes", hex]      any bytes
["read"]            take in one whole message
["answer unread"]   answer every unit that seems to have come in, and read none
["flood", table]    a message again and again, as fast as it goes
["close"]           the pipe
["exit", code]      the process
["wait"]            for ever
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import struct
import sys
import termios
from collections.abc import Mapping
from typing import Any, NoReturn

READY = {"is": "Ready"}


def open_stage(options: Mapping[str, Any]) -> NoReturn:
    """Follows the script; what is left of the worker's own life is spent waiting."""
    pipe = int(sys.argv[1])
    for step in options["script"]:
        match step:
            case ["say", table]:
                _write(pipe, _framed(table))
            case ["bytes", data]:
                _write(pipe, bytes.fromhex(data))
            case ["read"]:
                (size,) = struct.unpack("!i", _read(pipe, 4))
                _read(pipe, size)
            case ["answer unread"]:
                _answer_unread(pipe)
            case ["flood", table]:
                while True:
                    _write(pipe, _framed(table) * 1000)
            case ["close"]:
                os.close(pipe)
            case ["exit", code]:
                os._exit(code)
            case ["wait"]:
                break
    while True:
        signal.pause()


def _answer_unread(pipe: int) -> NoReturn:
    waiting = 0
    for unit in range(1, 1_000_000):
        while (now := _waiting_bytes(pipe)) == waiting:
            pass
        waiting = now
        done = {"unit": unit, "index": 0, "result": {}, "failure": None, "cpu_seconds": 0.0, "peak_bytes": 0}
        _write(pipe, _framed({"is": "ItemDone", **done}) + _framed({"is": "UnitDone", "unit": unit}))
    raise AssertionError


def _waiting_bytes(pipe: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def _framed(table: Mapping[str, Any]) -> bytes:
    data = json.dumps(table).encode()
    return struct.pack("!i", len(data)) + data


def _write(pipe: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def _read(pipe: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(pipe, size - len(data))
    return data
