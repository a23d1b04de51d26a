"""How a run treats every item: stage versions and options, made from the settings, the same for all users.

Rule: two plans are equal just when they would make the same index of the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine import embedders, versions
from engine.document import MAX_TEXT_BYTES
from engine.model import Stage
from engine.settings import Settings
from indexes.records import Published


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is done to every item. Made by `make_plan`.

    extracts  the stage versions of extraction that are up to date: without and with pages that want OCR
    chunking  the same for chunks
    model     the embedding model, "" for none; dim: its numbers
    max_text_bytes  of one document
    options   what each stage's workers are started with
    """

    extracts: tuple[str, str]
    chunking: str
    model: str
    embedder: str
    dim: int
    ocr: bool
    max_text_bytes: int
    options: Mapping[Stage, Mapping[str, Any]]

    @property
    def versions(self) -> str:
        """All of it in one word, for the ledger."""
        return "|".join((*self.extracts, self.chunking, self.model))

    def is_current(self, published: Published) -> bool:
        """Nothing of the published item would come out otherwise today."""
        return (
            published.extract in self.extracts and published.chunking == self.chunking and published.model == self.model
        )


def make_plan(settings: Settings) -> Plan:
    """What the settings mean for every item."""
    spec = embedders.spec_of(settings.embedder)
    cut = {"measure": spec.measure_name, "max_tokens": spec.max_tokens}
    languages = "+".join(settings.ocr_languages) if settings.ocr == "auto" else "off"
    # Which documents were cut, or would be now, nobody can tell but by reading: another limit is another version.
    limit = "" if settings.max_text_bytes == MAX_TEXT_BYTES else f"/{settings.max_text_bytes}"
    return Plan(
        extracts=(f"{versions.EXTRACT}{limit}", f"{versions.EXTRACT}{limit}+{languages}"),
        chunking=f"{versions.CHUNK}/{spec.measure_name}/{spec.max_tokens}",
        model=spec.model_id,
        embedder=settings.embedder,
        dim=spec.dim,
        ocr=settings.ocr == "auto",
        max_text_bytes=settings.max_text_bytes,
        options={
            Stage.EXTRACT: {
                "ocr": True,
                "max_text_bytes": settings.max_text_bytes,
                "cut": cut,
                "later": settings.ocr != "auto",
            },
            Stage.OCR: {"languages": list(settings.ocr_languages), "backend": settings.ocr_backend},
            Stage.CHUNK: cut,
            Stage.EMBED: {"embedder": settings.embedder},
            Stage.INDEX: {},
        },
    )
