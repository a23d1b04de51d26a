"""Figures into the documentation: the table of each section between two marks, the rest of the page left as it is.

Rule: a section that was not measured keeps what stands there.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path

from scheduling.figures import Figure, Part

#: Whose figure it is where the words do not say.
NIGHTMILL = "Nightmill"


def write_figures(page: Path, parts: Mapping[str, Part], machine: str) -> None:
    """Replace the tables of these sections. machine: where they were measured, in words.

    ValueError where the page has no place for one.
    """
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        start, end = f"<!-- figures of {name} -->", f"<!-- end of {name} -->"
        text, count = re.subn(
            f"{re.escape(start)}.*?{re.escape(end)}",
            lambda _, start=start, part=part, end=end: f"{start}\n{table(part, machine)}\n{end}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"{page} has {count} places for the figures of {name}, not one")
    page.write_text(text, encoding="utf-8")


def table(part: Part, machine: str) -> str:
    """The figures as Markdown, with day and machine: a row for each thing, a column for each who did it."""
    day = datetime.datetime.now(datetime.UTC).date()
    things: dict[str, dict[str, Figure]] = {}
    for figure in part.figures:
        thing, _, who = figure.words.rpartition(": ")
        things.setdefault(thing or who, {})[who if thing else NIGHTMILL] = figure
    columns = list(dict.fromkeys([NIGHTMILL, *(who for cells in things.values() for who in cells)]))
    rows = [
        ["", *columns, "target"],
        ["---"] * (len(columns) + 2),
        *([thing, *(_cell(cells.get(who)) for who in columns), _target(cells)] for thing, cells in things.items()),
    ]
    return "\n".join([f"*Measured {day.isoformat()} on {machine}.*", "", *(f"| {' | '.join(row)} |" for row in rows)])


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    value = figure.value
    number = f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"
    return f"{number} {figure.unit}".rstrip()


def _target(cells: Mapping[str, Figure]) -> str:
    for figure in cells.values():
        signs = (("≥", figure.at_least), ("≤", figure.at_most))
        bounds = " and ".join(f"{sign} {bound:g}" for sign, bound in signs if bound is not None)
        if bounds:
            return f"{bounds}: {'missed' if figure.missed else 'reached'}"
    return ""
