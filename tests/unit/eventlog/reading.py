"""Reading a log to the end, as a subscriber does."""

from __future__ import annotations

from jetstream.eventlog import LogReader
from jetstream.model.event import Event
from jetstream.model.filter import EVERYTHING, Filter

END = 1 << 62

Stamped = tuple[int, Event]


async def read_all(
    log: LogReader, position: int = 0, stop: int = END, wanted: Filter = EVERYTHING
) -> list[Stamped]:
    """Return the wanted events in `[position, stop)`, and hold the log to its promises about each batch."""
    seen: list[Stamped] = []
    while (batch := await log.read(position, stop, wanted)) is not None:
        first, last = batch.index(position), batch.index(stop)
        assert first < last
        seen += [(batch.times[i], batch.event(i)) for i in wanted.select(batch, first, last)]
        position = batch.times[last - 1] + 1
    return seen


async def times_from(
    log: LogReader, position: int = 0, stop: int = END, wanted: Filter = EVERYTHING
) -> list[int]:
    """Return the positions of these events."""
    return [time for time, _ in await read_all(log, position, stop, wanted)]
