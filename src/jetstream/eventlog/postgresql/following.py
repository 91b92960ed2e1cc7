"""Following the log: what of it is in memory, and up to where it was read.

    database      … segments │ rows of the tail ──────────────────▶│ ─ ─ ▶ appended, not read yet
    this process                              │ hot tail ─────────▶│ tip

Each look is one statement, so one snapshot: the rows above the tip, the floor, and the revision of erasures.
The tip rises when all that comes before was read.

A row is taken only if it follows the tip. Where the one that does is not there, it is waited for: it was
sealed and moved meanwhile, or a replica is behind. If it was sealed, the tip moves on, and readers find it
in segments.

When the revision changes, records were erased. What this process holds of them is dropped at once: the hot
tail, and the segments with what is rendered of them. What is read from the database is filtered by the
tombstones until it is rewritten.

Used by the event loop's thread only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import asyncpg

from jetstream.eventlog.columns import Columns, Damaged
from jetstream.eventlog.damage import Damage, DamageRecord
from jetstream.eventlog.erase import Tombstones, without_erased
from jetstream.eventlog.hot_tail import HotTail
from jetstream.eventlog.postgresql.schema import SEALED
from jetstream.eventlog.segment import decompress
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch

_ROWS: Final = 16  # of one look: each has up to 1 MiB

# The rows above the tip, with the state of the log: one row without them if there are none. The number of
# rows is a constant, and nothing is sorted: so a plan that is made once is right for every tip.
POLL: Final = f"""
SELECT s.floor_us, s.removed, s.revision, t.last_us, t.follows_us, t.first_us, t.events, t.appended, t.data
FROM state s LEFT JOIN (
    SELECT * FROM tail WHERE last_us > $1 ORDER BY last_us LIMIT {_ROWS}
) t ON true
"""
# What is not sealed, newest first, with the state of the log.
_RELOAD: Final = f"""
SELECT s.floor_us, s.removed, s.revision, t.last_us, t.follows_us, t.first_us, t.events, t.appended, t.data,
    {SEALED} AS sealed_us,
    (SELECT max(last_us) FROM tail) AS newest_us,
    (SELECT appended FROM tail ORDER BY id DESC LIMIT 1) AS all_appended
FROM state s LEFT JOIN (
    SELECT * FROM tail WHERE first_us <= last_us AND last_us > {SEALED} ORDER BY last_us DESC LIMIT $1
) t ON true ORDER BY t.last_us DESC
"""
# The revision, and the tombstones as of the same moment. Without one, it is a row with a null.
_TOMBSTONES: Final = "SELECT s.revision, t.did, t.before_us FROM state s LEFT JOIN tombstone t ON true"
# Segments of which all was erased have no events.
_OLDEST: Final = f"""
SELECT coalesce(
    (SELECT first_us FROM segment WHERE events > 0 ORDER BY last_us LIMIT 1),
    (SELECT first_us FROM tail WHERE events > 0 AND last_us > {SEALED} ORDER BY last_us LIMIT 1))
"""
_NOTHING: Final = Batch.of((), ())


class FollowedLog:
    """What was read of a log that another process may write.

    `on_read` is called with the events that another process has stored, once for each; `on_newest` with the
    newest position that was seen; `on_erased` when what was read before may have been erased.

    Events that `_reload` takes over, because the rows before them were sealed or erased, go to no `on_read`.
    """

    def __init__(
        self,
        limits: LogLimits,
        damages: DamageRecord,
        on_read: Callable[[Batch], None],
        on_newest: Callable[[int], None],
        on_erased: Callable[[], None],
    ) -> None:
        """Know nothing: the first `look` reads all that is not sealed."""
        self._limits = limits
        # Rows that are damaged are added, what is trimmed is removed.
        self._damages = damages
        self._on_read = on_read
        self._on_newest = on_newest
        self._on_erased = on_erased
        # Whether nothing was read before.
        self._is_first = True
        # The lowest position from which nothing is missing, as of the last look.
        self.floor = 0
        # The newest position that was read back; rises.
        self.tip = 0
        # The position of the oldest event; None: the log is empty. Read when the floor has moved.
        self.oldest_us: int | None = None
        # The revision of erasures, and the accounts that are not erased from the database yet.
        self.revision = -1
        self._tombstones: Tombstones = {}
        # Events ever, and events that are gone, as of the last look.
        self._appended = self._removed = 0
        # What was read of the tail. Made again after erasures.
        self.hot_tail = HotTail(0, limits)

    @property
    def events(self) -> int:
        """How many events there are."""
        return self._appended - self._removed

    @property
    def tombstones(self) -> Tombstones:
        """The accounts that are not erased from the database yet. A new mapping whenever it changes."""
        return self._tombstones

    def without_erased(self, batch: Batch, earlier: Tombstones | None = None) -> Batch:
        """Leave out what the database still has, or had with `earlier` tombstones, of deleted accounts.

        Returns the batch itself if nothing of it is erased; it may be empty otherwise.
        """
        tombstones = {**(earlier or {}), **self._tombstones}
        kept = without_erased(batch, tombstones) if tombstones else None
        return batch if kept is None else kept

    def publish(self, batch: Batch, follows_us: int, appended: int) -> bool:
        """Take over what this process has stored, if it follows the tip; return whether it does.

        For the process that leads: its own events need not be read back. `follows_us` is the end of the
        row before, and `appended` the number of events ever, this batch included.
        """
        if follows_us > self.tip or batch.first <= self.tip:
            return False
        self._take(batch, batch.last, appended)
        return True

    def erase(self, tombstones: Tombstones) -> None:
        """Drop the records of accounts that this process has stored the end of, before the next look."""
        self._tombstones = {**self._tombstones, **tombstones}
        self.hot_tail.erase(tombstones)
        self._on_erased()

    async def look(self, connection: asyncpg.Connection) -> bool:
        """Read what is new; return whether there may be more. Raises what asyncpg raises.

        One look reads up to 16 rows. `connection` is used by nobody else meanwhile. If it raises, the
        next look reads the same again.
        """
        rows = await connection.fetch(POLL, self.tip)
        floor_us, removed, revision, *_ = rows[0]
        new = sorted((row for row in rows if row["last_us"] is not None), key=_place)
        if new:
            self._on_newest(new[-1]["last_us"])
        more = len(new) == _ROWS
        if revision != self.revision:
            await self._revise(connection)
            more = True  # the rows are not read yet
        elif not self._take_rows(new):
            await self._reload(connection)
        else:
            self._removed = removed
            await self._move_floor(connection, floor_us)
        self._is_first = False
        return more

    def _take_rows(self, rows: list[Any]) -> bool:
        """Take rows that follow the tip; return False at the first that follows one that is missing."""
        for row in rows:
            if row["last_us"] <= self.tip:  # it has no events, or this process has stored them meanwhile
                continue
            if row["follows_us"] > self.tip:
                return False
            batch = self._batch(row)
            self._take(batch, row["last_us"], row["appended"])
            self._on_read(batch)
        return True

    def _take(self, batch: Batch, last_us: int, appended: int) -> None:
        """Take over the batch that follows the tip, and ends at `last_us`."""
        batch = self.without_erased(batch)
        if len(batch):
            self.hot_tail.append(batch)
            if self.oldest_us is None:
                self.oldest_us = batch.first
        self.tip = last_us
        self._appended = appended

    def _batch(self, row: Any) -> Batch:
        """Return the events of a row of the tail: none of a damaged one, which is noted."""
        if not row["events"]:
            return _NOTHING
        try:
            return Columns.unpacked(decompress(row["data"])).batch()
        except Damaged as error:
            self._damages.add([Damage(row["first_us"], row["last_us"], str(error))])
            return _NOTHING

    async def _revise(self, connection: asyncpg.Connection) -> None:
        """Drop what was erased: after one change, what its tombstones say; after several, everything."""
        marks = await connection.fetch(_TOMBSTONES)
        revision = marks[0]["revision"]
        if self._is_first or revision != self.revision + 1:
            await self._reload(connection)
            return
        before, self._tombstones = self._tombstones, _tombstones(marks)
        self.revision = revision
        new = {did: at for did, at in self._tombstones.items() if before.get(did) != at}
        if new:
            self.hot_tail.erase(new)
            self._on_erased()

    async def _reload(self, connection: asyncpg.Connection) -> None:
        """Drop everything, and read what is not sealed: after erasures, or where the next row was moved.

        The tip never falls. Where what is not sealed begins above it, the events between are in segments:
        readers find them there. Rows that follow a hole are left for the next look.
        """
        rows, tombstones = await self._read_unsealed(connection)
        floor_us, removed, revision, *_ = rows[0]
        if revision != self.revision:
            self._tombstones, self.revision = tombstones, revision
            self._on_erased()
        unsealed = [row for row in reversed(rows) if row["last_us"] is not None]
        new = _unbroken(unsealed)
        sealed_us, end_us, appended = (rows[0][name] for name in ("sealed_us", "newest_us", "all_appended"))
        self._on_newest(end_us or 0)
        if len(new) < len(unsealed):
            end_us, appended = new[-1]["last_us"], new[-1]["appended"]
        follows_us = new[0]["follows_us"] if new else sealed_us
        continues = end_us is not None and end_us >= self.tip and follows_us <= max(self.tip, sealed_us)
        if self._is_first or continues:
            self._rebuild(new, follows_us, max(end_us, self.tip), appended)
        else:
            self.hot_tail = HotTail(self.tip + 1, self._limits)
        self._removed = removed
        await self._move_floor(connection, floor_us)

    async def _read_unsealed(self, connection: asyncpg.Connection) -> tuple[list[Any], dict[bytes, int]]:
        """Return what is not sealed, newest first, and the tombstones, as of the same revision.

        At most `LogLimits.hot_tail_events` rows, since the hot tail keeps no more events.
        """
        while True:
            marks = await connection.fetch(_TOMBSTONES)
            rows = await connection.fetch(_RELOAD, self._limits.hot_tail_events)
            if marks[0]["revision"] == rows[0]["revision"]:
                return rows, _tombstones(marks)

    def _rebuild(self, rows: list[Any], follows_us: int, tip: int, appended: int) -> None:
        """Make the hot tail of rows that follow a position, and move the tip."""
        self.hot_tail = HotTail(follows_us + 1, self._limits)
        for row in rows:
            batch = self.without_erased(self._batch(row))
            if len(batch):
                self.hot_tail.append(batch)
        self.tip, self._appended = tip, appended or 0

    async def _move_floor(self, connection: asyncpg.Connection, floor_us: int) -> None:
        """Follow the floor, below which nothing is kept, and find the oldest event again."""
        if floor_us > self.floor or self._is_first or (self.oldest_us is None and self.tip):
            self.floor = max(floor_us, self.floor)
            self.hot_tail.drop_before(self.floor)
            self._damages.drop_before(self.floor)
            self.oldest_us = await connection.fetchval(_OLDEST)


def _place(row: Any) -> tuple[int, int]:
    """Return what a row is sorted by: one without events is behind the one whose end it has."""
    return row["last_us"], row["first_us"]


def _tombstones(rows: list[Any]) -> dict[bytes, int]:
    return {did: before_us for _, did, before_us in rows if did is not None}


def _unbroken(rows: list[Any]) -> list[Any]:
    """Return rows up to the first that follows one that is missing."""
    for at in range(1, len(rows)):
        if rows[at]["follows_us"] > rows[at - 1]["last_us"]:
            return rows[:at]
    return rows
