"""Retention: deleting the oldest segments, by age and by size, and the oldest gaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from jetstream.clock import unix_us
from jetstream.eventlog.postgresql.sealing import Sealing
from jetstream.eventlog.postgresql.term import Term
from jetstream.eventlog.postgresql.transactions import Transactions, count_of
from jetstream.eventlog.reader import POSITION_MAX

# The oldest segments that end below a position, with their events and their compressed bytes.
_OLDEST: Final = "SELECT last_us, events, bytes FROM segment WHERE last_us < $1 ORDER BY last_us LIMIT $2"
# Segments whose sizes one run looks at. What is still too much goes a second later.
_SIZES_AT_ONCE: Final = 1_000
_SIZE: Final = "SELECT coalesce(sum(bytes), 0)::bigint FROM segment"
_DROP_SEGMENTS: Final = "DELETE FROM segment WHERE last_us <= $1"
# In the transaction that deletes: a reader that the floor admits never misses an event.
_MOVE_FLOOR: Final = "UPDATE state SET floor_us = greatest(floor_us, $1), removed = removed + $2"
_DROP_GAPS_BEFORE: Final = "DELETE FROM gap WHERE time_us < $1"
_DROP_OLDEST_GAPS: Final = (
    "DELETE FROM gap WHERE time_us <= (SELECT time_us FROM gap ORDER BY time_us DESC LIMIT 1 OFFSET $1)"
)


class Retention(NamedTuple):
    """What is kept; None is without limit."""

    # The age of events in seconds, by their positions, which are times of the writer's clock.
    seconds: float | None = None
    bytes: int | None = None  # of segments
    # Gives unix microseconds.
    clock: Callable[[], int] = unix_us


class Trimming:
    """Trims the log of one term."""

    def __init__(
        self, term: Term, transactions: Transactions, sealing: Sealing, retention: Retention
    ) -> None:
        """Take the bounds. `sealing` seals what is old enough first, since only segments are deleted."""
        self._term = term
        self._log = term.log
        self._transactions = transactions
        self._sealing = sealing
        self._retention = retention

    async def retain(self) -> None:
        """Trim what is past retention.

        Age first, then size, then gaps above `LogLimits.gap_rows`. Raises Fenced, Hole, LogError, and
        what asyncpg raises.
        """
        retention, term = self._retention, self._term
        if retention.seconds is not None:
            await self.trim(retention.clock() - int(retention.seconds * 1_000_000))
        if retention.bytes is not None:
            await self.trim(await self._position_within(retention.bytes))
        if term.gap_rows > (most := self._log.limits.gap_rows):
            async with self._transactions.begin() as connection:
                term.gap_rows -= count_of(await connection.execute(_DROP_OLDEST_GAPS, most))

    async def _position_within(self, bytes_max: int) -> int:
        """Return the position below which segments must go for them to take `bytes_max`; 0 for none.

        Of many, the others go in the next run.
        """
        term, position = self._term, 0
        if term.segment_bytes is None:
            ((term.segment_bytes,),) = await self._log.fetch(_SIZE)
        excess = (term.segment_bytes or 0) - bytes_max
        if excess > 0:
            for last_us, _, size in await self._log.fetch(_OLDEST, POSITION_MAX, _SIZES_AT_ONCE):
                if excess <= 0:
                    break
                excess -= size
                position = last_us + 1
        return position

    async def trim(self, before_us: int) -> None:
        """Delete segments that end before a position, and what is not sealed if all of it does.

        Returns when this process has read the new floor, so that its readers are not sent to what is
        gone.
        """
        oldest_us = self._log.oldest_us
        if oldest_us is None or oldest_us >= before_us:
            return
        await self._sealing.seal_before(before_us)
        while await self._trim_some(before_us):
            pass
        await self._log.looked_again()

    async def _trim_some(self, before_us: int) -> bool:
        """Delete some segments, and move the floor; return whether there were any.

        `LogLimits.trim_segments` at most, in one transaction, with the gaps from before the new floor.
        """
        async with self._transactions.begin() as connection:
            rows = await connection.fetch(_OLDEST, before_us, self._log.limits.trim_segments)
            if not rows:
                return False
            last_us, removed = rows[-1][0], sum(events for _, events, _ in rows)
            await connection.execute(_DROP_SEGMENTS, last_us)
            await connection.execute(_MOVE_FLOOR, last_us + 1, removed)
            gaps = count_of(await connection.execute(_DROP_GAPS_BEFORE, last_us + 1))
        self._term.gap_rows -= gaps
        self._term.count_segments(-sum(size for _, _, size in rows))
        return True
