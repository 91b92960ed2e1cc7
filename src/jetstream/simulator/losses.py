"""Which relays lose a message: by chance, or because they are out. The same seed loses the same messages."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from random import Random

from jetstream.simulator.relays import Relay


class Fate(Enum):
    """What becomes of a message at one relay."""

    SENT = "sent"
    LOST = "loss"
    OUT = "outage"


class Losses:
    """Decides for each message what becomes of it at each relay.

    Independent losses may hit a message at several relays. Of disjoint ones, no message is lost at two: while
    one relay is out, the others lose nothing.
    """

    def __init__(self, relays: Sequence[Relay], seed: int, *, disjoint: bool) -> None:
        self._relays = relays
        self._disjoint = disjoint
        self._never = not any(relay.loss or relay.outage_s for relay in relays)
        common = Random(f"losses {seed}")  # noqa: S311 - it must be repeatable
        self._rngs = [
            common if disjoint else Random(f"losses {seed} {relay.name}")  # noqa: S311 - as above
            for relay in relays
        ]
        self._back_us = [0] * len(relays)  # when each relay is back after its last outage
        self._last_us = 0  # the time of the last message

    def fates(self, now_us: int) -> list[Fate]:
        """Return what becomes of a message that is made now, at each relay."""
        if self._never:
            return [Fate.SENT] * len(self._relays)
        self._begin_outages(now_us)
        fates = [Fate.OUT if now_us < back_us else Fate.SENT for back_us in self._back_us]
        return self._with_disjoint_losses(fates) if self._disjoint else self._with_losses(fates)

    def out(self, now_us: int) -> list[bool]:
        """Return which relays are out."""
        return [now_us < back_us for back_us in self._back_us]

    def _begin_outages(self, now_us: int) -> None:
        elapsed_s = max(0, now_us - (self._last_us or now_us)) / 1_000_000
        self._last_us = now_us
        for place, (relay, rng) in enumerate(zip(self._relays, self._rngs, strict=True)):
            if not relay.outage_s or now_us < self._back_us[place]:
                continue
            if self._disjoint and any(self.out(now_us)):
                continue
            if rng.random() < elapsed_s / relay.every_s:
                self._back_us[place] = now_us + int(relay.outage_s * rng.uniform(0.1, 1) * 1_000_000)

    def _with_losses(self, fates: list[Fate]) -> list[Fate]:
        return [
            Fate.LOST if fate is Fate.SENT and rng.random() < relay.loss else fate
            for fate, relay, rng in zip(fates, self._relays, self._rngs, strict=True)
        ]

    def _with_disjoint_losses(self, fates: list[Fate]) -> list[Fate]:
        """Let at most one relay lose the message: each has a part of the interval from 0 to 1."""
        if Fate.OUT in fates:
            return fates
        left = self._rngs[0].random()
        for place, relay in enumerate(self._relays):
            left -= relay.loss
            if left < 0:
                fates[place] = Fate.LOST
                break
        return fates
