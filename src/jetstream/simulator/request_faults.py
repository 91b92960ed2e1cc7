"""Faults of single requests: whether one occurs, by chance or because a test injected it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from jetstream.simulator.faults import REQUEST_FAULTS, Faults

LogFault = Callable[..., None]


class RequestFaults:
    """Decides which requests fail. Each fault is logged with `log_fault(name, **details)`."""

    def __init__(self, rates: Faults, seed: int, log_fault: LogFault) -> None:
        self._rates = rates  # the probability of each fault
        self._rng = Random(f"request faults {seed}")  # noqa: S311 - it must be repeatable
        self._log_fault = log_fault
        self._injected: Counter[str] = Counter()  # faults to come, by name

    def inject(self, name: str, count: int = 1) -> None:
        """Let the next `count` requests of its kind fail. Raises ValueError for an unknown fault."""
        if name not in REQUEST_FAULTS:
            raise ValueError(f"{name} is not one of {', '.join(REQUEST_FAULTS)}")
        self._injected[name] += count

    def occurs(self, name: str, **details: object) -> bool:
        """Return whether a fault occurs in the present request."""
        if self._injected[name]:
            self._injected[name] -= 1
        elif self._rng.random() >= getattr(self._rates, name):
            return False
        self._log_fault(name, **details)
        return True
