"""The history of an hour of all processes, also of those that have ended. Pure.

Each process has a history of its own, in steps that begin at the same moments in all of them. The steps
of each place are kept here by their number, so a process that takes another's place has its past, too.
The numbers are of the monotonic clock, which all processes of a machine share: whatever becomes of the
time of day, they rise.

A step without any process, while the whole server was replaced or the machine slept, has figures that
are None. What is kept is bounded by `STEPS_MAX` steps for each place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from jetstream.history import STEPS_MAX, Step

# The name of the place whose events and lag are those of the server.
INGEST: Final = "ingest"


def _sum(values: Iterable[float]) -> float:
    """Return a sum as it is shown; rates have two digits after the point."""
    return round(sum(values), 2)


# How a figure of all processes is made of theirs. Events and lag are the ingest's.
_SUMMED: Final[Mapping[str, Callable[[Iterable[float]], float]]] = {
    "messages_per_s": _sum,
    "subscribers": sum,
    "loop_delay_p99_ms": max,
}


class Past:
    """The steps of every place.

    The supervisor adds the histories of snapshots, so the newest steps may be some seconds late.
    """

    def __init__(self, steps_max: int = STEPS_MAX) -> None:
        # The most steps of one place, and of what `history` returns.
        self._steps_max = steps_max
        # By place, then by the number of the step: its figures by name.
        self._steps: dict[str, dict[int, dict[str, Any]]] = {}
        # Seconds of a step, as the last history said.
        self._step_s = 0
        # The number of the newest step, and when it ended, in unix microseconds; None before the first.
        self._newest = -1
        self._end_us: int | None = None

    def add(self, place: str, history: Mapping[str, Any], newest: int | None) -> None:
        """Take the history of the present process of a place. `newest` is the number of its last step.

        `history` is what `Statistics.history` returned in that process: a list for each figure, of
        equal length, the oldest step first. Steps that are known already are replaced by the same
        figures. None: the process has no step yet.

        Raises KeyError for a history that lacks a figure.
        """
        if newest is None:
            return
        columns: list[Sequence[Any]] = [history[name] for name in Step._fields]
        rows, steps = list(zip(*columns, strict=True)), self._steps.setdefault(place, {})
        for number, row in enumerate(rows, newest + 1 - len(rows)):
            steps[number] = dict(zip(Step._fields, row, strict=True))
        # The lowest numbers are the oldest steps, also those of earlier processes of this place.
        for number in sorted(steps)[: max(0, len(steps) - self._steps_max)]:
            del steps[number]
        self._step_s = history["step_s"]
        if newest >= self._newest:
            self._newest, self._end_us = newest, history["end_us"]

    def history(self) -> dict[str, Any]:
        """Return the history of all places together, as `Statistics.history` does of one process.

        Steps follow each other without a gap, up to the newest one of any place. Places that have not
        told it yet are left out of its sums.
        """
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
