"""Faults of single requests: whether one happens now, by chance or because a test asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from jetstream.simulator.faults import SERVED, Faults

Note = Callable[..., None]


class Mishaps:
    """Decides which requests go wrong, and has each one written down by `note(fault, **what)`."""

    def __init__(self, rates: Faults, seed: int, note: Note) -> None:
        self._rates = rates
        self._rng = Random(f"mishaps {seed}")  # noqa: S311 - repeatable is what it must be
        self._note = note
        self._asked: Counter[str] = Counter()

    def inject(self, name: str, count: int = 1) -> None:
        """Make the next `count` requests of its kind go wrong. Raises ValueError for an unknown fault."""
        if name not in SERVED:
            raise ValueError(f"{name} is not one of {', '.join(SERVED)}")
        self._asked[name] += count

    def happens(self, name: str, **what: object) -> bool:
        """Tell whether a fault strikes the request at hand."""
        if self._asked[name]:
            self._asked[name] -= 1
        elif self._rng.random() >= getattr(self._rates, name):
            return False
        self._note(name, **what)
        return True
