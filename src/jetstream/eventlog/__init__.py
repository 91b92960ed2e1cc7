"""The one ordered log of events: its interface, and the values that cross it.

A *position* is a `time_us`: the reader at position p has seen every event below p and none at or
above it. `floor <= position <= tip + 1`: events below the floor are gone, the tip is the newest
event. Everything on either side of the log knows only what this module says; how events are stored
is the affair of the module that stores them (`log.sqlite`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from jetstream.model.batch import Batch
from jetstream.model.event import Key
from jetstream.model.filter import Filter


class UpstreamCursor(NamedTuple):
    """How far one upstream was read: the `seq` of its last frame that is in the log.

    `provisional` is a number above it whose frame is in the log, too, and may have been damaged: never resume
    after that one. `fell_from` is what `seq` was before upstream's numbers fell, while some of then is kept.
    """

    origin: str  # host:port; another upstream's numbers mean nothing
    seq: int
    provisional: int | None = None
    fell_from: int | None = None


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """What the log holds, for `/metrics`, `/health` and `jetstream log stats`."""

    events: int
    bytes_on_disk: int
    oldest_us: int | None  # time_us of the oldest readable event
    newest_us: int | None
    writable: bool  # False from a write that failed until one that succeeded
    wal_bytes: int = 0  # of `bytes_on_disk`, what the write-ahead log takes
    damaged: int = 0  # different damaged parts that were met since the log was opened


class Log(Protocol):
    """An append-only, durable, totally ordered list of events.

    One writer appends; any number of readers read at positions of their own. Every batch that is
    returned may be shared and must not be changed by its reader.
    """

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing; rises when events are trimmed."""

    @property
    def tip(self) -> int:
        """The highest position that may ever have been given out; 0 if none was.

        It is the newest event's, but after a loss of power: then events up to it may be gone, and readers
        may have seen them. A new event's position is above it.
        """

    @property
    def upstream(self) -> UpstreamCursor | None:
        """The cursor of the last append, as it is on disk."""

    async def append(self, batch: Batch, upstream: UpstreamCursor) -> None:
        """Store events and the upstream's cursor together, or neither.

        `batch` follows the tip, and may be empty when only the cursor moves. When this returns, both
        survive the process, and readers see the events. Raises LogUnwritable with nothing stored.
        """

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return the batch with the first events in `[position, stop)` that `wanted` may want.

        The batch may begin before `position` and end after `stop`, and may hold events that are not
        wanted: it is as it was stored, shared with other readers. What it leaves out, before its first event
        and between its events, is not wanted (or is below the floor, or was forgotten). It has an event in
        `[position, stop)`. None: nothing wanted in the whole range.
        """

    async def holds(self, keys: Collection[Key]) -> dict[Key, int]:
        """Return those of a few keys of which an event is kept, each with a position.

        That is the event's own, or a later one of what is stored with it. What was trimmed or forgotten is
        not found. Reads the whole log for a key that is not there, a second for a day of it: ask for a dozen
        at a time.
        """

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        """Return the keys of the oldest events in `[position, stop)`: some thousands, or all there are.

        What is stored with them may be there, too. Damaged parts are passed over.
        """

    async def wait(self, position: int) -> None:
        """Return once an event at or after `position` has been appended."""

    async def trim(self, before_us: int) -> int:
        """Forget events older than `before_us`, in whole blocks; return how many went."""

    def statistics(self) -> LogStatistics:
        """Say what the log holds, at no cost worth naming."""

    async def close(self) -> None:
        """Write what is pending and give the files back."""
