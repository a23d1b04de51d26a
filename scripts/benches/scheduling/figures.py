"""What a part of the bench has to say: figures with their targets, invariants, and series to draw.

Rule: values only, and JSON both ways, because every part is measured in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Series = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number. `at_most` and `at_least` are the target, None where there is none."""

    name: str
    value: float
    unit: str
    words: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def missed(self) -> bool:
        """The target is not reached."""
        too_much = self.at_most is not None and self.value > self.at_most
        return too_much or (self.at_least is not None and self.value < self.at_least)

    def line(self) -> str:
        """For people: the words, the number, and the target beside it."""
        bounds = []
        if self.at_least is not None:
            bounds.append(f">= {self.at_least:g}")
        if self.at_most is not None:
            bounds.append(f"<= {self.at_most:g}")
        verdict = f"   target {' and '.join(bounds)}: {'MISSED' if self.missed else 'reached'}" if bounds else ""
        return f"{self.words:<66} {_number(self.value):>12} {self.unit:<10}{verdict}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one part found. `broken`: promises that must hold at any speed and on any machine, and did not."""

    figures: tuple[Figure, ...]
    broken: tuple[str, ...] = ()
    checked: int = 0
    series: Mapping[str, Series] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Whole and plain."""
        return {
            "figures": [{**asdict(figure), "missed": figure.missed} for figure in self.figures],
            "broken": list(self.broken),
            "checked": self.checked,
            "series": {name: [list(point) for point in points] for name, points in self.series.items()},
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Part:
        """The inverse of to_json."""
        return cls(
            figures=tuple(
                Figure(**{name: value for name, value in figure.items() if name != "missed"})
                for figure in table["figures"]
            ),
            broken=tuple(table["broken"]),
            checked=table["checked"],
            series={name: [(x, y) for x, y in points] for name, points in table["series"].items()},
        )


def percentile(sorted_values: Sequence[float], percent: float) -> float:
    """The value that so many percent of the others do not exceed."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * percent / 100))]


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
