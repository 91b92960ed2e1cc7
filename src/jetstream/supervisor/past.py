"""The history of an hour of all processes, also of those that have ended. Pure.

Each process has a history of its own, in steps that begin at the same moments in all of them. The steps of
each place are kept here by their number, so a process that takes another's place has its past, too. The
numbers are of the monotonic clock, which all processes of a machine share: whatever becomes of the time of
day, they rise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from jetstream.history import STEPS_MAX, Step

INGEST: Final = "ingest"


def _sum(values: Iterable[float]) -> float:
    return round(sum(values), 2)


# How a figure of all processes is made of theirs. Events and lag are the ingest's.
_SUMMED: Final[Mapping[str, Callable[[Iterable[float]], float]]] = {
    "messages_per_s": _sum,
    "subscribers": sum,
    "loop_delay_p99_ms": max,
}


class Past:
    """The steps of every place."""

    def __init__(self, steps_max: int = STEPS_MAX) -> None:
        self._steps_max = steps_max
        # By place, then by the number of the step: its figures by name.
        self._steps: dict[str, dict[int, dict[str, Any]]] = {}
        # Seconds of a step, as the last history said.
        self._step_s = 0
        # The number of the newest step, and when it ended, in unix microseconds; None before the first.
        self._newest = -1
        self._end_us: int | None = None

    def add(self, place: str, history: Mapping[str, Any], newest: int | None) -> None:
        """Take the history of the present process of a place. `newest` is the number of its last step."""
        if newest is None:
            return
        columns: list[Sequence[Any]] = [history[name] for name in Step._fields]
        rows, steps = list(zip(*columns, strict=True)), self._steps.setdefault(place, {})
        for number, row in enumerate(rows, newest + 1 - len(rows)):
            steps[number] = dict(zip(Step._fields, row, strict=True))
        for number in sorted(steps)[: max(0, len(steps) - self._steps_max)]:
            del steps[number]
        self._step_s = history["step_s"]
        if newest >= self._newest:
            self._newest, self._end_us = newest, history["end_us"]

    def history(self) -> dict[str, Any]:
        """Return the history of all places together, as `Statistics.history` does of one process."""
        numbers = {number for steps in self._steps.values() for number in steps}
        if not numbers:
            return {"step_s": self._step_s, "end_us": self._end_us, **{name: [] for name in Step._fields}}
        shown = range(max(min(numbers), self._newest + 1 - self._steps_max), self._newest + 1)
        columns = {name: [self._figure(name, number) for number in shown] for name in Step._fields}
        return {"step_s": self._step_s, "end_us": self._end_us, **columns}

    def _figure(self, name: str, number: int) -> Any:
        """Return a figure of one step; None: no process knows it."""
        if name not in _SUMMED:
            return self._steps.get(INGEST, {}).get(number, {}).get(name)
        values = [steps[number][name] for steps in self._steps.values() if number in steps]
        known = [value for value in values if value is not None]
        return _SUMMED[name](known) if known else None
