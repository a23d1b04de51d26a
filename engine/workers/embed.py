"""Stage `embed`: texts -> vectors, by a built-in model, in a worker process.

Rule: the order names files in the inbox and outbox only; texts and vectors never travel in messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine import embedders
from engine.ports import Place, StageFailed
from engine.reasons import Reason


def open_stage(options: Mapping[str, Any]) -> EmbedStage:
    """Load the model named by `options["embedder"]`."""
    return EmbedStage(embedders.load(str(options["embedder"])))


class EmbedStage:
    """One loaded model, for the worker's whole life."""

    def __init__(self, embedder: embedders.Embedder) -> None:
        self._embedder = embedder

    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        """Order: {"file": a JSON list of texts in the inbox, "prefix": of the result's name}.

        Writes `<prefix>.vectors.f32`, rows of little-endian 32-bit floats, in the order of the texts. Returns
        {"vectors": its name, "count": rows, "dim": numbers a row, "model": the model's id}.
        """
        texts = json.loads((place.inbox / str(order["file"])).read_bytes())
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise StageFailed(Reason.EMBEDDING_FAILED, f"{order['file']} is not a list of texts")
        vectors = self._embedder.embed(texts, place.progress)
        name = f"{order['prefix']}.vectors.f32"
        (place.outbox / name).write_bytes(vectors.astype("<f4", copy=False).tobytes())
        spec = self._embedder.spec
        return {"vectors": name, "count": len(texts), "dim": spec.dim, "model": spec.model_id}
