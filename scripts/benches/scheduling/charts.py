"""Line and bar charts as SVG, written by hand: no library, one file each, to be read on a light page and on a dark one.

A drawing library would be a dependency of tens of megabytes with a lock file of its own, for a few pictures of lines
and bars. Everything is grey or of a middle brightness on a transparent ground.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from scheduling.figures import Part, Series

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 44, 56
GREY = "#848d97"
COLOURS = ("#2f81f7", "#d2822b", "#3fa45b", "#b261c9")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One direction: its words, its ends (None: as the values are), and whether it goes by powers of ten."""

    words: str
    least: float | None = None
    most: float | None = None
    by_powers: bool = False


def draw_all(parts: Mapping[str, Part], folder: Path) -> list[Path]:
    """The pictures of the parts that were measured, written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = parts["simulation"].series if "simulation" in parts else {}
    drawn = []
    for name, title, x, y, mark in (
        (
            "grant time",
            "Grant decisions that take longer",
            Axis(words="µs", by_powers=True),
            Axis(words="% of all decisions", least=0.001, most=100.0, by_powers=True),
            (150.0, None, "target: 1 % at 150 µs"),
        ),
        (
            "lag",
            "Worst lag between two users, as a share of its bound",
            Axis(words="share of the simulated time", least=0.0, most=1.0),
            Axis(words="lag / bound", least=0.0, most=1.1),
            (None, 1.0, "(D+1)(c_f/w_f + c_g/w_g)"),
        ),
        (
            "jain",
            "Jain index of what backlogged users were given",
            Axis(words="share of the simulated time", least=0.0, most=1.0),
            Axis(words="index", least=0.8, most=1.02),
            (None, 1.0, ""),
        ),
    ):
        lines = {key.partition(", ")[2]: points for key, points in found.items() if key.startswith(f"{name}, ")}
        if any(lines.values()):
            path = folder / f"{name.replace(' ', '-')}.svg"
            path.write_text(line_chart(title, lines, x, y, mark), encoding="utf-8")
            drawn.append(path)
    return drawn


def line_chart(
    title: str, lines: Mapping[str, Series], x: Axis, y: Axis, mark: tuple[float | None, float | None, str]
) -> str:
    """mark: a broken line at this x or this y, and the words beside it."""
    across = _Scale(x, [point[0] for points in lines.values() for point in points], LEFT, WIDTH - RIGHT)
    up = _Scale(y, [point[1] for points in lines.values() for point in points], HEIGHT - BOTTOM, TOP)
    body = [_text(LEFT, 20, title, size=15)]
    for value, words in across.ticks():
        at = across.place(value)
        body.append(_line(at, TOP, at, HEIGHT - BOTTOM, opacity=0.25))
        body.append(_text(at, HEIGHT - BOTTOM + 18, words, anchor="middle"))
    for value, words in up.ticks():
        at = up.place(value)
        body.append(_line(LEFT, at, WIDTH - RIGHT, at, opacity=0.25))
        body.append(_text(LEFT - 8, at + 4, words, anchor="end"))
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x.words, anchor="middle"))
    body.append(_text(LEFT, TOP - 8, y.words))
    at_x, at_y, words = mark
    if at_x is not None:
        at = across.place(at_x)
        body += [_line(at, TOP, at, HEIGHT - BOTTOM, dashed=True), _text(at + 6, TOP + 14, words)]
    if at_y is not None:
        at = up.place(at_y)
        body += [_line(LEFT, at, WIDTH - RIGHT, at, dashed=True), _text(LEFT + 6, at - 5, words)]
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = " ".join(f"{across.place(a):.1f},{up.place(b):.1f}" for a, b in points)
        body.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{places}"/>')
        body.append(_text(WIDTH - RIGHT - 4, TOP - 8, name, anchor="end", colour=colour, shift=-80 * number))
    return _picture(title, body)


def bar_chart(title: str, rows: Mapping[str, Mapping[str, float]], words: str, *, by_powers: bool = False) -> str:
    """Bars from left to right: row -> series -> value. Each series has its colour, each bar its number.

    words: what the numbers are. by_powers: where the largest would leave nothing to be seen of the smallest.
    """
    names = list(dict.fromkeys(name for bars in rows.values() for name in bars))
    values = [value for bars in rows.values() for value in bars.values() if value > 0]
    least = min(values, default=1.0) / 2 if by_powers else 0.0
    axis = Axis(words=words, least=least, most=max(values, default=1.0) * 1.02, by_powers=by_powers)
    left = 24 + round(6.6 * max(map(len, rows)))
    across = _Scale(axis, values, left, WIDTH - RIGHT - 48)
    body, at = [_text(LEFT // 3, 20, title, size=15)], TOP + 8.0
    for number, name in enumerate(names):
        body.append(_text(left + 130 * number, TOP - 4, name, colour=COLOURS[number % len(COLOURS)]))
    for row, bars in rows.items():
        body.append(_text(left - 8, at + 7 * len(bars) + 4, row, anchor="end"))
        for name, value in bars.items():
            colour, end = COLOURS[names.index(name) % len(COLOURS)], across.place(value)
            width = max(0.0, end - left)
            body.append(f'<rect x="{left}" y="{at:.1f}" width="{width:.1f}" height="12" fill="{colour}"/>')
            body.append(_text(end + 5, at + 10, f"{value:,.0f}" if value >= 100 else f"{value:.3g}"))
            at += 14
        at += 8
    body.append(_text((left + WIDTH - RIGHT) / 2, at + 14, words, anchor="middle"))
    return _picture(title, body, height=round(at + 24))


class _Scale:
    """Values to places along one direction."""

    def __init__(self, axis: Axis, values: list[float], first: float, last: float) -> None:
        self._axis, self._first, self._last = axis, first, last
        self._low = self._turn(axis.least if axis.least is not None else min(values))
        self._high = self._turn(axis.most if axis.most is not None else max(values))
        if axis.by_powers and axis.least is None:
            self._low = math.floor(self._low)
        if axis.by_powers and axis.most is None:
            self._high = math.ceil(self._high)
        self._high = max(self._high, self._low + 1e-9)

    def place(self, value: float) -> float:
        """In the picture's own units; what lies outside is drawn at the edge."""
        share = (self._turn(value) - self._low) / (self._high - self._low)
        return self._first + min(1.0, max(0.0, share)) * (self._last - self._first)

    def ticks(self) -> list[tuple[float, str]]:
        """Where to say a number, and how."""
        if self._axis.by_powers:
            powers = range(math.ceil(self._low - 1e-9), math.floor(self._high + 1e-9) + 1)
            return [(10.0**power, f"{10.0**power:,g}") for power in powers]
        step = 10 ** math.floor(math.log10(self._high - self._low))
        step = step / 5 if (self._high - self._low) / step < 2 else step / 2
        first = math.ceil(self._low / step - 1e-9)
        return [(number * step, f"{number * step:g}") for number in range(first, int(self._high / step + 1e-9) + 1)]

    def _turn(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self._axis.by_powers else value


def _picture(title: str, body: list[str], height: int = HEIGHT) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif"><title>{escape(title)}</title>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _line(x1: float, y1: float, x2: float, y2: float, *, opacity: float = 1.0, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{GREY}" opacity="{opacity}"{dash}/>'


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, colour: str = GREY, shift: float = 0
) -> str:
    return (
        f'<text x="{x + shift:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">'
        f"{escape(words)}</text>"
    )
