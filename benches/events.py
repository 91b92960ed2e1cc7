"""A million events for the benchmarks of the log: from the simulator, recorded once and kept in build/."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from benches.frames import DIRECTORY, START_US, kept, simulated
from tests.decoding import decode

from jetstream.model.batch import Batch
from jetstream.model.event import Event
from jetstream.simulator import recording
from jetstream.simulator.world import Population

FILE: Final = DIRECTORY / "events.bin.zst"
COUNT: Final = 1_000_000
POPULATION: Final = Population(repos=10_000, records=10, did_web=0.01)


class Network:
    """The recorded events in order, again and again, at `rate` events a second of `time_us`."""

    def __init__(self, rate: int = 1_000) -> None:
        self._random = random.Random(1)
        self._step_us = 1_000_000 // rate
        self._events = _forever(recorded())
        self._now_us = START_US

    def batches(self, events: int, size: int) -> Iterator[Batch]:
        """Yield the next `events` events in batches of `size`."""
        for start in range(0, events, size):
            some = list(islice(self._events, min(size, events - start)))
            yield Batch.of(some, [self._next_us() for _ in some])

    def _next_us(self) -> int:
        self._now_us += 1 + int(self._random.expovariate(1 / self._step_us))
        return self._now_us


def recorded() -> Path:
    """Return the recording. Make it first if there is none, in two minutes."""
    return kept(FILE, _enough())


def _enough() -> Iterator[bytes]:
    events = 0
    for frame in simulated(POPULATION, 1_000):
        yield frame
        events += len(decode(frame).events)
        if events >= COUNT:
            return


def _forever(file: Path) -> Iterator[Event]:
    while True:
        for frame in recording.read(file):
            yield from decode(frame).events
