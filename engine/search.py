"""A question -> hits in one user's index.

Rule: one user, one index; nothing of another's is ever opened. The question is embedded by the model of the index, not
by that of the settings: after a change of model the old vectors answer until the new ones are all there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine import embedders, text
from engine.errors import UsageError
from engine.model import UserId
from indexes import paths
from indexes.errors import NoIndex
from indexes.reader import open_reader
from indexes.records import Filters, Hit

Mode = Literal["hybrid", "vector", "keyword"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Hits, best first. `note` says what the asker should know ("nothing is indexed yet", ...)."""

    hits: tuple[Hit, ...]
    model: str = ""
    note: str = ""


def search(
    root: Path, user: UserId, question: str, *, k: int = 10, mode: Mode = "hybrid", filters: Filters | None = None
) -> Answer:
    """Search the index of `user` beneath `root`, at most `k` items.

    Raises UsageError for a question without words; IndexFault when the index cannot be used.
    """
    if not question.strip():
        raise UsageError("the question has no words; write at least one")
    try:
        reader = open_reader(paths.user_dir(root, user))
    except NoIndex:
        return Answer(hits=(), note=f"nothing of {user} is indexed yet; `nightmill init {user}` does it")
    with reader:
        model = reader.model
        vector, weight, note = _embed(question, model) if mode != "keyword" else (None, 0.0, "")
        if vector is None and mode == "vector":
            return Answer(hits=(), model=model, note=note or "this index has no vectors; use --mode keyword")
        hits = reader.search(
            groups=text.query_keywords(question) if mode != "vector" else (),
            vector=vector,
            k=k,
            mode=mode if vector is not None else "keyword",
            vector_weight=weight,
            filters=filters,
            model=model,
        )
    return Answer(hits=tuple(hits), model=model, note=note)


def _embed(question: str, model: str) -> tuple[Sequence[float] | None, float, str]:
    """(vector, its weight in hybrid search, note). Without a usable model the keywords answer alone."""
    if not model:
        return None, 0.0, ""
    name = embedders.name_of_model(model)
    if name is None:
        note = f"this release has no model {model!r}, so only keywords were searched; `nightmill init` embeds anew"
        return None, 0.0, note
    embedder = embedders.load(name)
    vector = embedder.embed([question])[0]
    # The keyword ranking counts 1; the reader wants shares that add up to 1.
    weight = embedder.spec.fusion_weight
    return vector.tolist(), weight / (1.0 + weight), ""
