"""Fills its outbox for as long as it is let, or cuts a document into far too many pieces, where the file is called so;
else the real stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.ports import Place, StageRunner
from engine.workers import extract

BLOCK_BYTES, MOST_BLOCKS = 1 << 20, 1500
CRUMB, CRUMBS = b'["file_chunk","","",0]\n', 100_000


class _Endless:
    def __init__(self, real: StageRunner) -> None:
        self._real = real

    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        if "endless" in str(order["name"]):
            return self._fill(place)
        result = self._real.run(order, place)
        if "crumbs" in str(order["name"]):
            (place.outbox / str(result["chunks"])).write_bytes(CRUMB * CRUMBS)
        return result

    def _fill(self, place: Place) -> Mapping[str, Any]:
        with open(place.outbox / "result", "ab") as file:
            for block in range(MOST_BLOCKS):
                file.write(b"x" * BLOCK_BYTES)
                place.progress(block, 0)
        raise AssertionError("nobody has stopped it")


def open_stage(options: Mapping[str, Any]) -> _Endless:
    """As the real one."""
    return _Endless(extract.open_stage(options))
