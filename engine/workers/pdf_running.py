"""Which lines of a document's pages are running headers and footers, and what number is printed on each page.

Rule: pure, and sure rather than complete: a line is a running one when it stands at the same edge of at least three
pages, the same but for a number that counts with the pages. "Table 3" and "Table 4" on pages 7 and 9 are none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, takewhile
from typing import Final, NamedTuple

from engine.document import Page

#: Lines at each edge that are looked at: a name, a chapter and a number are the most that books print there.
_EDGE_LINES: Final = 3
#: Characters of a running line; longer ones are prose.
_LINE_CHARS: Final = 200
#: Pages that a line has to stand on. Two may open with the same words by chance; books turn two headers left and right.
_LEAST_PAGES: Final = 3
#: Numbers of one line that may be that of the page.
_MOST_NUMBERS: Final = 4
#: Digits, and the small Roman numbers of prefaces.
_NUMBER = re.compile(r"\d{1,6}|\b[ivxl]{1,7}\b")
_SMALL_ROMANS: Final = {
    tens + ones: 10 * ten + one
    for ten, tens in enumerate(("", "x", "xx", "xxx", "xl", "l", "lx", "lxx", "lxxx"))
    for one, ones in enumerate(("", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix"))
    if ten or one
}
_WITHOUT_DIGITS: Final = dict.fromkeys(map(ord, "0123456789"))
_NOTHING: Final = (0, "")


class _Edge(NamedTuple):
    """A line at an edge: what it says with one number left out, and what that counts from; as printed."""

    shape: str
    offset: int | None
    printed: str


class Running(NamedTuple):
    """What repeats on one page: how many lines from the top, how many from the end, and the number printed there."""

    header: int = 0
    footer: int = 0
    label: str = ""

    def own(self, text: str) -> list[str]:
        """The lines of the page's text that are none of them."""
        lines = text.split("\n")
        return lines[self.header : max(self.header, len(lines) - self.footer)]


def running_lines(pages: Sequence[Page]) -> list[Running]:
    """Of each page."""
    tops = _readings([(page.number, _first_lines(page.text)) for page in pages])
    ends = _readings([(page.number, _last_lines(page.text)) for page in pages])
    found = [(tops.get(page.number, _NOTHING), ends.get(page.number, _NOTHING)) for page in pages]
    return [Running(header, footer, below or above) for (header, above), (footer, below) in found]


def marked(page: Page, running: Running, label: str) -> Page:
    """The page with `header`, `footer` and `label` set. label: what the file says."""
    if not any(running.own(page.text)):
        # There is nothing else: it is what the page says.
        running = Running()
    label = label or running.label
    if not (running.header or running.footer or label):
        return page
    return replace(page, header=running.header, footer=running.footer, label=label)


def _first_lines(text: str) -> list[str]:
    return text.split("\n", _EDGE_LINES)[:_EDGE_LINES] if text else []


def _last_lines(text: str) -> list[str]:
    """From the last one upwards."""
    return text.rsplit("\n", _EDGE_LINES)[-_EDGE_LINES:][::-1] if text else []


def _readings(edges: Sequence[tuple[int, list[str]]]) -> dict[int, tuple[int, str]]:
    """By page number: how many lines from its edge on are running ones, and which number in them counts the pages.

    edges: (number of the page, lines from its edge on)
    """
    # What is the same but for digits; only such lines are looked at closely.
    rough = Counter(_rough(line) for _, lines in edges for line in lines)
    likely = [
        (number, list(takewhile(lambda line: rough[_rough(line)] >= _LEAST_PAGES, lines))) for number, lines in edges
    ]
    read = [(number, [_readings_of(line, number) for line in lines]) for number, lines in likely if lines]
    found: Counter[tuple[str, int | None]] = Counter()
    for _, lines in read:
        found.update({(edge.shape, edge.offset) for line in lines for edge in line})
    return {number: _run(lines, found) for number, lines in read}


def _rough(line: str) -> str:
    bare = line.translate(_WITHOUT_DIGITS)
    words = bare.rsplit(None, 1)
    if words and words[-1] in _SMALL_ROMANS:
        return words[0] if len(words) > 1 else ""
    return bare.rstrip()


def _readings_of(line: str, number: int) -> list[_Edge]:
    """A line, as it is and with each of its numbers taken for that of the page. Empty: it cannot be a running one."""
    flat = " ".join(line[: _LINE_CHARS + 1].casefold().split())
    if len(flat) > _LINE_CHARS:
        return []
    readings = [_Edge(flat, None, "")]
    for match in islice(_NUMBER.finditer(flat), _MOST_NUMBERS):
        value = int(match[0]) if match[0].isdecimal() else _SMALL_ROMANS.get(match[0])
        if value is not None:
            shape = f"{flat[: match.start()]}#{flat[match.end() :]}"
            readings.append(_Edge(shape, value - number, match[0]))
    return readings


def _run(lines: list[list[_Edge]], repeated: Counter[tuple[str, int | None]]) -> tuple[int, str]:
    """How many lines from the edge on are running ones, and the number that counts the pages among them."""
    count, label = 0, ""
    for readings in lines:
        running = [edge for edge in readings if repeated[(edge.shape, edge.offset)] >= _LEAST_PAGES]
        if not running:
            break
        count += 1
        label = label or next((edge.printed for edge in running if edge.offset is not None), "")
    return count, label
