"""The targets of figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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


def compare(limits: Collection[Limit], figures: Mapping[str, float]) -> bool:
    """Print the figures that have a limit; return whether all are within it."""
    held = True
    for limit in limits:
        held &= (holds := limit.holds(figures))
        word = "met" if holds else "MISSED"
        print(f"  {limit.figure:<18} {number(figures[limit.figure]):>14}  {limit!s:>12}  {word}", flush=True)
    return held


def report(limits: Collection[Limit], figures: Mapping[str, float]) -> bool:
    """Print all figures, those without a limit in one line; return whether the others are within theirs."""
    held = compare(limits, figures)
    limited = {limit.figure for limit in limits}
    rest = (f"{name} {number(value)}" for name, value in figures.items() if name not in limited)
    print(f"  {', '.join(rest)}", flush=True)
    return held


def number(value: float) -> str:
    """Return a number with only significant decimal places; of infinity, `never`."""
    if value == float("inf"):
        return "never"
    if value == int(value) or abs(value) >= 1_000:
        return f"{value:,.0f}"
    if abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}"
