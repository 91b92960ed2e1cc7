"""A storm: thousands of subscribers are disconnected, and reconnect at once with cursors in the past."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

from jetstream.bench.load import Connection, Load
from jetstream.bench.subscription import Readings, Subscription

SERVED_TIMEOUT_S: Final = 60.0
WATCH_S: Final = 10.0  # after it all should be at the tip again
PREPARED_PER_TURN: Final = 32  # then the connections that stay are read
CUTS_PER_POLL: Final = 32
CUT: Final = "cut by the bench"


@dataclass(frozen=True, slots=True)
class Storm:
    """What came of a storm.

    A connection is *served* when it has received everything from its cursor up to the moment of the storm.
    How far behind it is later, `Load.lag_ms` tells.
    """

    returned: int  # connections
    served: int
    last_served_s: float  # when the last of them was served
    seconds: float  # until no connection was waited for any more


@dataclass(slots=True, eq=False)
class Returning(Connection):
    """A connection that comes back."""

    goal: int = 0  # bytes to receive until it is served; 0 after it
    served: float = 0  # when it was served, monotonic seconds; 0 if it has not been


class StormLoad(Load):
    """A load whose connections may be cut, and come back."""

    def cut(self, connections: Iterable[Connection]) -> None:
        """Close connections as a lost network would, and forget them. The others are read meanwhile."""
        gone = set(map(id, connections))
        leaving = [one for one in self.connections if id(one) in gone]
        self.connections = [one for one in self.connections if id(one) not in gone]
        for start in range(0, len(leaving), CUTS_PER_POLL):
            for one in leaving[start : start + CUTS_PER_POLL]:
                self._close(one, CUT)
            self._poll(0)

    def _received(self, one: Connection, size: int) -> None:
        self.totals.size += size
        if isinstance(one, Returning) and one.goal and one.subscription.size >= one.goal:
            one.served = time.monotonic()
            one.goal = 0


def raise_storm(load: StormLoad, victims: list[Connection], age_s: float, rng: Random) -> Storm:
    """Cut the victims, and let all of them come back with cursors up to `age_s` seconds in the past.

    What they replay is checked, but their delays are not measured: they are long on purpose.
    """
    now_us = load.truth.everything.last_us
    returning: list[Returning] = []
    for one in victims:
        returning.append(_return(load, one, now_us, rng.uniform(0, age_s)))
        if len(returning) % PREPARED_PER_TURN == 0:
            load.turn()
    load.cut(victims)
    began = time.monotonic()
    load.connect([*returning], 0, SERVED_TIMEOUT_S)
    load.run_until(lambda: not any(one.goal for one in returning), SERVED_TIMEOUT_S)
    seconds = time.monotonic() - began
    served = [one.served or one.accepted for one in returning if one.accepted and not one.goal]
    return Storm(len(returning), len(served), max(served, default=began) - began, seconds)


def _return(load: Load, one: Connection, now_us: int, age_s: float) -> Returning:
    was = one.subscription
    # Not before the truth begins: what must come then is not known.
    cursor = max(now_us - int(age_s * 1e6), load.truth.everything.first_us)
    subscription = Subscription(
        f"{was.name}, returned",
        was.wanted,
        Readings(findings=load.readings.findings),
        cursor=cursor,
        checked=was.checked,
    )
    goal = load.truth.amount(was.wanted, cursor, now_us + 1).size
    return Returning(subscription, slow=one.slow, goal=goal)
