"""A run's plan: what of the settings makes another index of the same bytes."""

from __future__ import annotations

import pytest

from engine.model import Stage
from engine.plan import Plan, make_plan
from engine.settings import load_settings


def plan_of(**environ: str) -> Plan:
    return make_plan(load_settings(environ, dotenv=None))


def test_a_text_limit_reaches_the_workers_and_what_is_merged_after_them() -> None:
    """The same number in both."""
    plan = plan_of(NIGHTMILL_MAX_TEXT="5MB")
    assert plan.options[Stage.EXTRACT]["max_text_bytes"] == plan.max_text_bytes == 5_000_000


@pytest.mark.parametrize("other", ["5MB", "19MB"])
def test_another_text_limit_is_another_version_of_every_text(other: str) -> None:
    """Nobody can tell which texts were cut, or would be now; those with pages that were recognised are among them."""
    now, then = plan_of(NIGHTMILL_MAX_TEXT=other), plan_of()
    assert not set(now.extracts) & set(then.extracts)
    assert plan_of(NIGHTMILL_MAX_TEXT="20000KB") == then


def test_another_language_is_another_version_of_recognised_pages_only() -> None:
    """A text that is there reads the same."""
    now, then = plan_of(NIGHTMILL_OCR_LANGUAGES="eng,deu"), plan_of()
    assert now.extracts[0] == then.extracts[0]
    assert now.extracts[1] != then.extracts[1]
