"""What a `MirrorSource` needs of the rest of the server, and what it reads of the log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from jetstream.model.batch import Batch
from jetstream.model.event import Event, Key
from jetstream.model.filter import EVERYTHING, Filter
from jetstream.upstream.mirror.recent import READ_AGAIN_US, Recent
from jetstream.upstream.pipeline import DecodedBatch
from jetstream.upstreams import is_mirror

# Whose positions the events of a log have: nobody's yet, those of another Jetstream, or the server's own.
Origin = Literal["none", "upstream", "here"]


class StoredCursor(Protocol):
    """A cursor as the log has it."""

    @property
    def seq(self) -> int:
        """The number or position of the newest event that is stored."""


class StoredGap(Protocol):
    """A gap as the log has it."""

    @property
    def did(self) -> str:
        """The repository; empty for a gap of all."""

    @property
    def time_us(self) -> int:
        """The position of the first event after it."""


class MirrorLog(Protocol):
    """What this needs of the log: a part of `ReadWriteLog`."""

    erases: frozenset[str]

    @property
    def tip(self) -> int:
        """The position of the newest event, 0 if there was none."""

    @property
    def oldest_us(self) -> int | None:
        """The position of the oldest event that is kept; None: the log is empty."""

    @property
    def cursors(self) -> Mapping[str, StoredCursor]:
        """The cursors as of the last append."""

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return a batch with the events in `[position, stop)`."""

    async def holds(self, keys: Collection[Key]) -> Mapping[Key, int]:
        """Return the keys of which an event is kept."""

    async def gaps(self, since_us: int, count_max: int) -> Sequence[StoredGap]:
        """Return the oldest gaps since a time, rising."""


class Stores(NamedTuple):
    """What stores what has come. Each returns once that is done, and more may come.

    The second value of the first two is when the oldest message was received, in monotonic seconds.
    """

    stamped: Callable[[Batch, float], Awaitable[None]]  # events with their positions
    unstamped: Callable[[DecodedBatch, float], Awaitable[None]]  # events that get positions here
    gap: Callable[[int, int], Awaitable[None]]  # of the events after and before it, the positions


class Beginning(NamedTuple):
    """Where to begin."""

    kept_from_us: Callable[[], int] = lambda: 0  # an empty log: the position from which on events are kept
    after: int | None = None  # what to start after instead of what the log says; None: that


def origin_of(log: MirrorLog) -> Origin:
    """Tell whose positions the events of a log have."""
    if not log.tip:
        return "none"
    return "upstream" if is_mirror([each.seq for each in log.cursors.values()], log.tip) else "here"


async def recent_of(log: MirrorLog) -> Recent:
    """Return the newest events of a log."""
    recent, position = Recent(), max(log.tip - READ_AGAIN_US, 0)
    stop = log.tip + 1
    while position < stop and (batch := await log.read(position, stop, EVERYTHING)) is not None:
        count = len(batch)
        for index in range(batch.index(position), count):
            recent.add(batch.event(index).key)
        position = batch.times[count - 1] + 1
        await asyncio.sleep(0)
    return recent


async def newest_of(log: MirrorLog) -> Event | None:
    """Return the newest event of a log; None if it was erased, or there is none."""
    tip = log.tip
    batch = await log.read(tip, tip + 1, EVERYTHING) if tip else None
    if batch is None:
        return None
    index = batch.index(tip)
    return batch.event(index) if index < len(batch) and batch.times[index] == tip else None
