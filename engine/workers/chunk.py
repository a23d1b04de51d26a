"""Stage `chunk`: a document -> its chunks, no longer than the embedding model reads, in a worker process.

Rule: only for documents that were kept: those with pages that were read by OCR, very long ones, and those of an earlier
way of cutting. All others are cut where they are read (extract.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine.document import Document
from engine.ports import Place
from engine.workers.cutting import Cutter


def open_stage(options: Mapping[str, Any]) -> ChunkStage:
    """Options: {"measure": name for `embedders.measure_for`, "max_tokens": of one chunk}."""
    return ChunkStage(Cutter(str(options["measure"]), int(options["max_tokens"])))


class ChunkStage:
    """One way of cutting, for the worker's whole life."""

    def __init__(self, cutter: Cutter) -> None:
        self._cutter = cutter

    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        """Order: {"file": a document as JSON in the inbox, "prefix": of the result's name}.

        Writes `<prefix>.chunks.json`, see `Cutter.cut`. Returns {"chunks": its name, "count": how many}.
        """
        document = Document.from_json(json.loads((place.inbox / str(order["file"])).read_bytes()))
        return self._cutter.cut(document, place, str(order["prefix"]))
