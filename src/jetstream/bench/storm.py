"""A storm: thousands of subscribers are cut off at once, and come back at once, each from where it was."""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from typing import Final

from jetstream.bench.load import Connection, Load
from jetstream.bench.subscription import Readings, Subscription

SERVED_TIMEOUT_S: Final = 60.0
WATCH_S: Final = 10.0  # after which all should be at the tip again
PREPARED_PER_TURN: Final = 32  # then those that stay are read


@dataclass(frozen=True, slots=True)
class Storm:
    """What a storm came to: how many came back, how many of them were served, and how long the last one took.

    *Served* is who has got everything from its cursor up to the moment of the storm. How far behind they are
    some seconds later, `Load.lag_ms` says once they have been judged.
    """

    returned: int
    served: int
    last_served_s: float
    seconds: float  # until nobody was waited for any more


def raise_storm(load: Load, victims: list[Connection], age_s: float, rng: Random) -> Storm:
    """Cut the victims off, and let them all come back with cursors up to `age_s` seconds old.

    What they replay is checked, but their delays are not counted: it is old on purpose.
    """
    now_us = load.truth.everything.last_us
    returning = []
    for one in victims:
        returning.append(_return(load, one, now_us, rng.uniform(0, age_s)))
        if len(returning) % PREPARED_PER_TURN == 0:
            load.turn()
    load.cut(victims)
    began = time.monotonic()
    load.connect(returning, 0, SERVED_TIMEOUT_S)
    load.run_until(lambda: not any(one.goal for one in returning), SERVED_TIMEOUT_S)
    seconds = time.monotonic() - began
    served = [one.served or one.accepted for one in returning if one.accepted and not one.goal]
    return Storm(len(returning), len(served), max(served, default=began) - began, seconds)


def _return(load: Load, one: Connection, now_us: int, age_s: float) -> Connection:
    was = one.subscription
    # Not before the truth begins: nobody could tell what must come then.
    cursor = max(now_us - int(age_s * 1e6), load.truth.everything.first_us)
    subscription = Subscription(
        f"{was.name}, returned",
        was.wanted,
        Readings(findings=load.readings.findings),
        cursor=cursor,
        checked=was.checked,
    )
    goal = load.truth.amount(was.wanted, cursor, now_us + 1).size
    return Connection(subscription, slow=one.slow, goal=goal)
