"""What the database holds, for any number of readers: searched in threads, and kept for others that follow.

    a position ──▶ a segment that is loaded? ──▶ scan, in a thread ──▶ load, once for all

What is newer than what was sealed, `following` has in memory.
"""

from __future__ import annotations

from jetstream.eventlog.damage import DamageRecord
from jetstream.eventlog.postgresql.following import FollowedLog
from jetstream.eventlog.postgresql.pool import ReaderPool
from jetstream.eventlog.segment_cache import Loaded, SegmentCache
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.filter import Filter


class StoredEvents:
    """The stored events of a log. Used by the event loop's thread only."""

    def __init__(
        self, log: FollowedLog, readers: ReaderPool, damages: DamageRecord, limits: LogLimits
    ) -> None:
        """Read through `readers`, and leave out what `log` says is erased."""
        # Knows what is erased.
        self._log = log
        # Where the database is read.
        self._readers = readers
        # What is known to be damaged is not loaded again.
        self._damages = damages
        self._bytes_max = limits.segment_cache_bytes
        # Loaded segments. Replaced after erasures: what is being loaded then is not kept.
        self._segments = SegmentCache(self._load, self._bytes_max)

    async def find(self, position: int, stop: int, wanted: Filter) -> tuple[int, Batch | None]:
        """Return the position at which to continue, and what was found below it. Raises Hole or LogError.

        The position may be the one that was given: then erasures came in between, and the caller tries
        again. Damage that is met on the way is added to the record.
        """
        loaded = self._segments.at(position)
        if loaded is not None:
            return min(loaded.last + 1, stop), loaded if loaded.index(position) < loaded.index(stop) else None
        revision = self._log.revision
        after, found = await self._readers.run(lambda reader: reader.scan(position, stop, wanted), revision)
        if isinstance(found, int):
            found = None if found in self._damages.by_end else await self._segments.get(found)
        elif found is not None:
            found = self._log.without_erased(found)
        if revision != self._log.revision:  # what was found may have been erased meanwhile
            return position, None
        if found is not None and found.index(position) == found.index(stop):
            found = None
        return after, found

    def forget(self) -> None:
        """Drop the segments that were read, and those that are being read."""
        self._segments = SegmentCache(self._load, self._bytes_max)

    async def _load(self, last_us: int) -> Loaded | None:
        """Read a segment for the cache.

        None: all of it was erased, or it is damaged. Raises Hole if it was trimmed, and LogError.
        """
        tombstones = self._log.tombstones  # as of now: those of later may not have what is read here
        revision = self._log.revision
        loaded = await self._readers.run(lambda reader: reader.load_measured(last_us), revision)
        if loaded is None:
            return None
        batch = self._log.without_erased(loaded.batch, tombstones)
        return loaded._replace(batch=batch) if len(batch) else None
