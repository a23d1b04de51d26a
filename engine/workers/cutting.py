"""A document -> its chunks, a line each, in a file of the outbox: for those stages that cut documents.

Rule: cutting and keywords are pure (engine/text.py); this file only writes. What it keeps from one document to the next
is what stemmers remember, and that is bounded.
"""

from __future__ import annotations

import json
from typing import Any

from engine import embedders
from engine.document import Document
from engine.ports import Place
from engine.text import Stemming, chunks_of
from engine.workers.writing import open_result


class Cutter:
    """One measure, for the worker's whole life."""

    def __init__(self, measure: str, max_tokens: int) -> None:
        """measure: a name for `embedders.measure_for`; max_tokens: of one chunk."""
        self._measure = embedders.measure_for(measure)
        self._max_tokens = max_tokens
        self._stemming = Stemming()

    def cut(self, document: Document, place: Place, prefix: str) -> dict[str, Any]:
        """Writes `<prefix>.chunks.json`, a line for each `Chunk.to_json`. Returns {"chunks": its name, "count"}."""
        chunks = chunks_of(document, measure=self._measure, max_tokens=self._max_tokens, stemming=self._stemming)
        name = f"{prefix}.chunks.json"
        pages, count = len(document.pages), 0
        with open_result(place.outbox / name) as file:
            for chunk in chunks:
                # Written as it is, not as escapes: a text of Chinese would be twice as long.
                file.write(json.dumps(chunk.to_json(), ensure_ascii=False).encode() + b"\n")
                count += 1
                place.progress(chunk.page, pages)
        return {"chunks": name, "count": count}
