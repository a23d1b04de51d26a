"""The real stage for honest files; for the others what their first line says, as if a reader had been taken over."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from engine.ports import Place, StageRunner
from engine.workers.extract import open_stage as open_real_stage

_MARK = b"DO "
_kept: list[bytearray] = []


def open_stage(options: Mapping[str, Any]) -> _Taken:
    """The options of the real stage."""
    return _Taken(open_real_stage(options))


class _Taken:
    def __init__(self, real: StageRunner) -> None:
        self._real = real

    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        words = (place.inbox / order["file"]).read_bytes()
        if not words.startswith(_MARK):
            return self._real.run(order, place)
        name = f"{order['prefix']}.json"
        match words.removeprefix(_MARK).decode().strip():
            case "segv":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "unseen kill":
                # As if the machine had killed the worker before it began anything.
                (place.inbox.parent / "slate").write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(0)
            case "devour":
                _devour()
            case "shout and die":
                os.write(2, b"the reader gives up\n")
                os._exit(9)
            case "half a word":
                os.write(int(sys.argv[1]), b"\0\0\1\0{")
                os._exit(0)
            case "link":
                (place.outbox / name).symlink_to("/etc/passwd")
            case "half a gigabyte":
                with (place.outbox / name).open("wb") as file:
                    file.truncate(500 << 20)
            case "somebody else":
                name = "../slate"
            case other:
                raise AssertionError(other)
        return {"document": name}


def _devour() -> NoReturn:
    """All the memory that there is, a little at a time."""
    while True:
        _kept.append(bytearray(b"x" * (4 << 20)))
