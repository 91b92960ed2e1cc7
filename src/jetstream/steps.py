"""Work in small steps, so that the event loop can do something else between two of them. Pure.

A function whose work may take long is a generator that yields wherever it can be interrupted, and
returns its result. `scheduling.Worker` runs such generators on the event loop; `finish` runs one to its
end at once.

    def work() -> Steps[int]:         result = yield from work()      in another generator
        ...                           result = finish(work())         at once
        yield                         worker.put(job())               on the event loop, without a result
        return total
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]  # work that can be interrupted at each yield


class Budget:
    """Counts what the work of a step costs, in any unit: a step may cost `per_step`, and a little more.

    With it, a generator yields once for many small pieces of work. It begins with a full budget.
    """

    __slots__ = ("_left", "_per_step")

    def __init__(self, per_step: int) -> None:
        # What a step may cost, and what is left of it for the present one. The unit is the caller's.
        self._per_step = self._left = per_step

    def spend(self, cost: int) -> bool:
        """Count some cost; tell whether the step must end. What is counted next is of another step then.

        The caller yields when this returns True. A cost above `per_step` ends one step, not several.
        """
        self._left -= cost
        if self._left > 0:
            return False
        self._left = self._per_step
        return True


def finish(steps: Steps[T]) -> T:
    """Do all of the work at once; return its result.

    Raises what the work raises. For work that is known to be small, and where there is no event loop.
    """
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
