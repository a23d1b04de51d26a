"""Every page is said to be very long."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine.document import Method, Page
from engine.ports import Place

WORD, WORDS = "heron ", 20_000


class _Long:
    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        page = Page(number=order["page"], text=WORD * WORDS, method=Method.OCR, confidence=90.0)
        name = f"{order['prefix']}.page.json"
        (place.outbox / name).write_text(json.dumps(page.to_json()))
        return {"page": name}


def open_stage(options: Mapping[str, Any]) -> _Long:
    """Nothing is loaded."""
    return _Long()
