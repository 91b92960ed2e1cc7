"""What the file holds, for any number of readers: searched in threads, and kept for others that follow.

    a position ──▶ a segment that is loaded? ──▶ known damage? ──▶ scan, in a thread ──▶ load, once for all

The writer (`store`) and the edges (`edge`) read the file in this way. What is newer than the file has, they
have in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jetstream.eventlog import Gap
from jetstream.eventlog.damage import DamageRecord
from jetstream.eventlog.segment_cache import Loaded, SegmentCache
from jetstream.eventlog.sqlite.gaps import read_gaps
from jetstream.eventlog.sqlite.reader import ReaderPool
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.filter import Filter

# Returns what of a batch may be read: the batch itself, another one, or None if nothing is left.
Clean = Callable[[Batch], Batch | None]


def as_it_is(batch: Batch) -> Batch:
    """Return a batch as it is stored."""
    return batch


class StoredEvents:
    """The events of one file. Used by the event loop's thread only.

    `clean` is called with each batch that was read, on that thread.
    """

    def __init__(self, path: Path, damages: DamageRecord, limits: LogLimits, clean: Clean = as_it_is) -> None:
        """Prepare to read the database at `path`. It is opened when something is read first."""
        # What is known to be damaged: read past.
        self._damages = damages
        self._clean = clean
        # Where the file is read. Other modules read it through this in their own way.
        self.readers = ReaderPool(path, damages, limits)
        # Segments that were read. Where one is rewritten, it is dropped by the owner of this object.
        self.segments = SegmentCache(self._load, limits.segment_cache_bytes)

    async def find(self, position: int, stop: int, wanted: Filter) -> tuple[int, Batch | None]:
        """Return the position at which to continue, and what was found below it. Raises LogError.

        The search is bounded, so one call may find nothing although more follows: the caller goes on at
        the returned position. It is above `position`, and may be above `stop`. Damage that is met on the
        way is added to the record.
        """
        loaded = self.segments.at(position)
        if loaded is not None:
            return min(loaded.last + 1, stop), loaded if loaded.index(position) < loaded.index(stop) else None
        behind = self._damages.skip(position)
        if behind != position:
            return min(behind, stop), None
        after, found = await self.readers.run(lambda reader: reader.scan(position, stop, wanted))
        if isinstance(found, int):
            found = None if found in self._damages.by_end else await self.segments.get(found)
        elif found is not None:
            found = self._clean(found)
        # A segment may be trimmed before it is loaded, or have nothing in this part of its range.
        if found is not None and found.index(position) == found.index(stop):
            found = None
        return after, found

    async def _load(self, last_us: int) -> Loaded | None:
        """Read a segment for the cache.

        None: it was trimmed, is damaged, or `clean` has left nothing of it. Raises LogError.
        """
        loaded = await self.readers.run(lambda reader: reader.load_measured(last_us))
        kept = None if loaded is None else self._clean(loaded.batch)
        return None if loaded is None or kept is None else Loaded(kept, loaded.memory)

    async def gaps(self, since_us: int, count_max: int) -> list[Gap]:
        """Return the oldest gaps since a time, rising. Raises LogError."""
        return await self.readers.run(lambda reader: read_gaps(reader.connection, since_us, count_max))

    def close(self) -> None:
        """Wait for the threads, and close their connections.

        Blocks, so it is called in a thread.
        """
        self.readers.close()
