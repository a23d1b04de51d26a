"""docs/settings.md says of every setting what the table says, and names no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.errors import SettingsError
from engine.settings import PRESETS, SETTINGS, Setting, load_settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def sections() -> dict[str, str]:
    """Heading -> what stands below it, with single blanks between words."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: " ".join(body.split()) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def test_the_page_has_each_setting_once_in_the_order_of_the_table() -> None:
    """A new setting without a paragraph, or a paragraph without a setting, fails here."""
    assert re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE) == [
        setting.key for setting in SETTINGS
    ]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_a_section_says_what_the_table_says(setting: Setting) -> None:
    """Default, range, meaning and the failure that the default prevents, word for word."""
    default = f"`{setting.default}`" if setting.default else "measured"
    assert sections()[setting.key] == (
        f"- Default: {default} - Allowed: {setting.form.range} {setting.meaning} "
        f"What the default prevents: {setting.prevents}"
    )


def test_the_table_of_presets_is_the_one_in_force() -> None:
    """Each preset stands on the page once, with its numbers, and with whom it is for and what it prevents."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert [(row[0].strip("`"), (int(row[1]), int(row[2]))) for row in rows] == list(PRESETS.items())
    assert all(row[3] and row[4].startswith("that ") for row in rows)


def test_the_example_of_mistakes_is_what_is_really_said(tmp_path: Path) -> None:
    """The block on the page is the message that such a file brings about."""
    (tmp_path / ".env").write_text("NIGHTMILL_OCR_LANGUAGE=deu\nMAX_TOTAL_WORKERS=0\n")
    with pytest.raises(SettingsError) as caught:
        load_settings({}, dotenv=tmp_path / ".env")
    block = re.search(r"```\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert block is not None
    assert block.group(1) == str(caught.value)
