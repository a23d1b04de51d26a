"""Stage `chunk`: a document -> its chunks, no longer than the embedding model reads, in a worker process.

Rule: cutting and keywords are pure (engine/text.py); this file only reads, counts with the model's own measure, writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine import embedders
from engine.document import Document
from engine.ports import Place
from engine.text import Measure, chunks_of


def open_stage(options: Mapping[str, Any]) -> ChunkStage:
    """Options: {"measure": name for `embedders.measure_for`, "max_tokens": of one chunk}."""
    return ChunkStage(embedders.measure_for(str(options["measure"])), int(options["max_tokens"]))


class ChunkStage:
    """One measure, for the worker's whole life."""

    def __init__(self, measure: Measure, max_tokens: int) -> None:
        self._measure = measure
        self._max_tokens = max_tokens

    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        """Order: {"file": a document as JSON in the inbox, "prefix": of the result's name}.

        Writes `<prefix>.chunks.json`, a line for each `Chunk.to_json`. Returns {"chunks": its name, "count": how many}.
        """
        document = Document.from_json(json.loads((place.inbox / str(order["file"])).read_bytes()))
        chunks = chunks_of(document, measure=self._measure, max_tokens=self._max_tokens)
        name = f"{order['prefix']}.chunks.json"
        with open(place.outbox / name, "wb") as file:
            # Written as it is, not as escapes: a text of Chinese would be twice as long.
            file.writelines(json.dumps(chunk.to_json(), ensure_ascii=False).encode() + b"\n" for chunk in chunks)
        return {"chunks": name, "count": len(chunks)}
