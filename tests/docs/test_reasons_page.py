"""docs/reasons.md has one true paragraph for each reason of the catalogue, and names no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.policy.retries import KILLS_ALLOWED, OWN_DOING, worth_another_run
from engine.reasons import CATALOGUE, Reason

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reasons.md"
OF_A_SOURCE = {Reason.SOURCE_MISSING, Reason.SOURCE_UNREADABLE, Reason.SOURCE_INCOMPLETE, Reason.REMOVALS_HELD}


def paragraphs() -> list[tuple[str, str, str]]:
    """(section, code, text with single blanks) in the order of the page."""
    found, section = [], ""
    for block in re.split(r"^(?=##)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        heading, _, body = block.partition("\n")
        if heading.startswith("## "):
            section = heading.removeprefix("## ")
        elif heading.startswith("### "):
            found.append((section, heading.removeprefix("### ").strip("`"), " ".join(body.split())))
    return found


def section_of(reason: Reason) -> str:
    if reason in OF_A_SOURCE:
        return "Failures of a source"
    return "Skipped, by a rule" if CATALOGUE[reason].skip else "Failures of one item"


def what_is_done(reason: Reason) -> str:
    """As policy/retries.py decides it."""
    if reason in OF_A_SOURCE:
        return "stay so"
    if CATALOGUE[reason].skip:
        return "counted as skipped"
    if reason in OWN_DOING:
        return "alone and with more memory; if that ends in the same way it is quarantined"
    if reason is Reason.KILLED:
        assert KILLS_ALLOWED == 5
        return "alone, up to five times in a run, and never quarantined; the next run tries it again by itself"
    if worth_another_run(reason):
        return "counted as failed, and the next run tries it again by itself"
    return "counted as failed, and tried again when it changes or `nightmill failures retry` asks for it"


def test_the_page_has_each_code_once() -> None:
    """A reason without a paragraph, or a paragraph without a reason, fails here."""
    assert sorted(code for _, code, _ in paragraphs()) == sorted(reason.value for reason in Reason)


def test_the_catalogue_has_each_reason() -> None:
    """A code without an entry would end a run that meets it."""
    assert set(CATALOGUE) == set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_a_paragraph_says_meaning_deed_and_way_out(reason: Reason) -> None:
    """Meaning and way out are the catalogue's own words; what is done is what the policy does."""
    ((section, text),) = [(section, text) for section, code, text in paragraphs() if code == reason]
    assert section == section_of(reason)
    assert text.startswith(CATALOGUE[reason].meaning)
    assert what_is_done(reason) in text
    assert text.endswith("Way out: " + CATALOGUE[reason].way_out)
