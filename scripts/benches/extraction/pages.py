"""Figures into the documentation: the table of each section between two marks, the rest of the page left as it is.

Rule: a section that was not measured keeps what stands there.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path

from scheduling.figures import Figure, Part


def write_figures(page: Path, parts: Mapping[str, Part]) -> None:
    """Replace the tables of these sections. ValueError where the page has no place for one."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        start, end = f"<!-- figures of {name} -->", f"<!-- end of {name} -->"
        text, count = re.subn(
            f"{re.escape(start)}.*?{re.escape(end)}",
            lambda _, start=start, part=part, end=end: f"{start}\n{table(part)}\n{end}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"{page} has {count} places for the figures of {name}, not one")
    page.write_text(text, encoding="utf-8")


def table(part: Part, day: datetime.date | None = None) -> str:
    """The figures of a section as Markdown, with the day."""
    day = day or datetime.datetime.now(datetime.UTC).date()
    rows = ["| what | measured | target |", "|---|---|---|", *map(_row, part.figures)]
    return "\n".join([f"*Measured {day.isoformat()}.*", "", *rows])


def _row(figure: Figure) -> str:
    target = " and ".join(
        f"{sign} {bound:g}" for sign, bound in (("≥", figure.at_least), ("≤", figure.at_most)) if bound is not None
    )
    verdict = f"{target}: {'missed' if figure.missed else 'reached'}" if target else ""
    value = figure.value
    number = f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"
    return f"| {figure.words} | {number} {figure.unit}".rstrip() + f" | {verdict} |"
