"""A stage that looks at nothing and has an answer at once: every item is empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from engine.ports import Place, StageFailed
from engine.reasons import Reason


def open_stage(options: Mapping[str, Any]) -> Nothing:
    """No options."""
    return Nothing()


class Nothing:
    """Reads not a byte."""

    def run(self, order: Mapping[str, Any], place: Place) -> NoReturn:
        """Says that there is nothing."""
        raise StageFailed(Reason.EMPTY)
