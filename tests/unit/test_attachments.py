"""Attachments of attachments, counted over all that lie beneath one listed item."""

from __future__ import annotations

import pytest

from engine import pipeline
from engine.document import Document, Part
from engine.model import Fingerprint, ItemId, ItemKey, ItemState, Kind, SourceId, UserId
from engine.pipeline import Kept
from engine.ports import ItemRecord


def record(key: str) -> ItemRecord:
    return ItemRecord(
        id=ItemId(1),
        source=SourceId(1),
        user=UserId("ann"),
        key=ItemKey(key),
        parent=ItemId(7) if "//" in key else None,
        fingerprint=Fingerprint("f"),
        path="a.pdf",
        kind=Kind.FILE,
        size_bytes=1,
        modified=0.0,
        locator={},
        state=ItemState.PENDING,
    )


def document(parts: int) -> Document:
    made = tuple(
        Part(name=f"{n}.pdf", media_type="application/pdf", file=f"p.part{n}", size_bytes=1) for n in range(parts)
    )
    return Document(kind=Kind.FILE, media_type="application/pdf", title="a", parts=made)


def test_documents_that_hold_one_another_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound none is taken up, and a note says so; another listed item has a bound of its own, and what lies
    in a listed item itself is bounded where it is read."""
    monkeypatch.setattr(pipeline, "MOST_BENEATH", 5)
    kept = Kept()
    assert [len(kept.narrowed(record(f"a//{n}"), document(3)).parts) for n in range(4)] == [3, 2, 0, 0]
    assert len(kept.narrowed(record("a//0//1"), document(3)).parts) == 0
    assert len(kept.narrowed(record("b//0"), document(3)).parts) == 3
    assert len(kept.narrowed(record("a"), document(9)).parts) == 9
    assert kept.narrowed(record("a//9"), document(0)).notes == ()
    [note] = kept.narrowed(record("a//9"), document(1)).notes
    assert note == "partial: after 5 attachments of attachments no more of them are read"
