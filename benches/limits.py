"""The targets of figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """The highest allowed value of a figure or, with `least`, the lowest."""

    figure: str
    value: float
    least: bool = False

    def holds(self, figures: Mapping[str, float]) -> bool:
        """Return whether the figure is within the limit."""
        value = figures[self.figure]
        return value >= self.value if self.least else value <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {number(self.value)}"


def number(value: float) -> str:
    """Return a number with only significant decimal places."""
    if value == int(value) or abs(value) >= 1_000:
        return f"{value:,.0f}"
    if abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}"
