"""Work in small steps, so that whoever does it can leave the event loop to others between two of them. Pure.

A function whose work may take long is a generator that yields wherever it can be interrupted, and returns its
result. `scheduling.Worker` does such work on the event loop; `finish` does it at once.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]  # work that can be interrupted wherever it yields


def finish(steps: Steps[T]) -> T:
    """Do all of the work at once; return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
