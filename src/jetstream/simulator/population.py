"""How many accounts a world has, and what they do how often; and a clock for repeatable worlds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

Clock = Callable[[], int]

RECORDS_MAX: Final = 1_000_000  # in all repositories: about 700 MB of memory


@dataclass(frozen=True, slots=True)
class Population:
    """The number of accounts, and the shares of what they do."""

    repos: int = 200
    """Accounts at any time: a deleted one is replaced by a new one."""
    records: int = 50
    """Records of each repository at the beginning."""
    lifecycle: float = 0.01
    """Share of steps that are not commits: identities, accounts, syncs."""
    multiple: float = 0.012
    """Share of commits with more than one operation."""
    deletes: float = 0.03
    """Share of operations that delete."""
    updates: float = 0.01
    """Share of operations that update."""
    rotations: float = 0
    """Share of steps that replace the key of an account, besides those of `lifecycle`."""
    did_web: float = 0
    """Share of accounts with a `did:web`, which only the simulator's own directory can resolve."""
    pds: int = 0
    """Number of PDSes that host some of the accounts."""
    pds_share: float = 0.5
    """Share of accounts that live on these PDSes."""
    records_max: int = RECORDS_MAX
    """Records in all repositories, above which the largest account is replaced. It is raised for a world that
    begins with more than half as many."""


class SteadyClock:
    """A clock that advances by the same step each time it is read, for a repeatable world."""

    def __init__(self, start_us: int, step_us: int) -> None:
        self._now_us = start_us
        self._step_us = step_us

    def __call__(self) -> int:
        """Advance the clock, and return unix microseconds."""
        self._now_us += self._step_us
        return self._now_us
