"""Upkeep: what the process that leads does in the background, beside appends and readers.

beat      say that the term goes on
reserve   reserve positions ahead of the next one
seal      compress the oldest rows of the tail into segments
rotate    fold states into their table, and change from one table of the tail to the other
erase     rewrite segments and rows that have records of deleted accounts
trim      delete what is past retention
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import asyncpg
import structlog

from jetstream.errors import Fenced, LogError
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.postgresql.connection import LOST, describe
from jetstream.eventlog.postgresql.erasing import Erasing
from jetstream.eventlog.postgresql.folding import ROW_BYTES, Folding
from jetstream.eventlog.postgresql.sealing import Sealing
from jetstream.eventlog.postgresql.term import AHEAD_US, Term
from jetstream.eventlog.postgresql.transactions import Transactions
from jetstream.eventlog.postgresql.trimming import Retention, Trimming
from jetstream.eventlog.reader import Hole
from jetstream.limits import LogLimits

# Seconds between two heartbeats. By default, a standby takes over when it has seen no change for six of them.
BEAT_S: Final = 0.5
# Notifications stop while listeners that are stuck keep more than this share of their queue.
QUEUE_MAX: Final = 0.01
_QUEUE_CHECK_S: Final = 10.0
_CLOSE_S: Final = 2.0  # for which a database may take to end what runs
# Without the epoch: `Transactions.begin` has checked and locked the term.
_RESERVE: Final = "UPDATE leader SET reserved_us = greatest(reserved_us, $1)"
_QUEUE: Final = "SELECT pg_notification_queue_usage()"
# What may pass.
_FAILURES: Final = (*LOST, asyncpg.PostgresError, LogError, Hole, Damaged)


class Upkeep:
    """Keeps the log of one term in order, until `close` or the end of the term."""

    def __init__(
        self, term: Term, retention: Retention = Retention(), *, queue_max: float = QUEUE_MAX
    ) -> None:
        """Begin to run, and let the term close this with itself. `retention` is what is kept."""
        self._term = term
        self._limits = limits = term.log.limits
        # Share of the queue above which nothing is notified.
        self._queue_max = queue_max
        # When the queue of notifications is looked at again, in the time of the event loop.
        self._queue_at = 0.0
        # The parts, which share a connection.
        self._transactions = transactions = Transactions(term)
        self._sealing = Sealing(
            term, transactions, Folding(term, transactions, states_max(limits, retention))
        )
        self._erasing = Erasing(term, transactions, self._sealing)
        self._trimming = Trimming(term, transactions, self._sealing, retention)
        # Held during a run.
        self._running = asyncio.Lock()
        self._logger = structlog.get_logger(__name__)
        self._tasks = [asyncio.create_task(self._beat_forever()), asyncio.create_task(self._run_forever())]
        term.on_close.append(self.close)

    async def close(self) -> None:
        """Stop, and wait until the transaction that runs has ended, unless the database does not answer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=_CLOSE_S)
        for task in self._tasks:  # one that waits for the end of its transaction
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transactions.cut()

    async def run(self) -> None:
        """Do all that is due now. Raises LogError, one of `LOST`, or asyncpg.PostgresError."""
        term = self._term
        async with self._running:
            term.raise_failure()
            if term.next_position() + AHEAD_US // 2 > term.reserved_us:
                await self._reserve()
            await self._sealing.seal()
            await self._sealing.rotate_if_due()
            await self._erasing.erase()
            await self._trimming.retain()
            await self._check_queue()

    async def rotate(self) -> None:
        """Change the table of the tail now."""
        async with self._running:
            await self._sealing.rotate()

    async def trim(self, before_us: int) -> None:
        """Delete what ends before a position now, as if it were past retention."""
        async with self._running:
            await self._trimming.trim(before_us)

    async def _run_forever(self) -> None:
        """Run once a second, while the term lasts."""
        failing = False
        while True:
            await asyncio.sleep(self._limits.upkeep_interval_s)
            try:
                await self.run()
            except Fenced:
                return
            except _FAILURES as error:
                if not failing:
                    self._logger.warning("log: upkeep failed, trying again", error=describe(error))
                failing = True
                self._term.segment_bytes = None  # whether a transaction was committed is not known
                await self._transactions.cut()
            else:
                if failing:
                    self._logger.info("log: upkeep works again")
                failing = False

    async def _beat_forever(self) -> None:
        """Let standbys see that the term goes on; notice when it does not.

        A heartbeat that fails is left out. Ends with the term.
        """
        while not self._term.ended.is_set():
            with suppress(*LOST, asyncpg.PostgresError):
                await self._transactions.beat()
            await asyncio.sleep(BEAT_S)

    async def _reserve(self) -> None:
        """Reserve positions ahead; appends need not wait for it then."""
        until_us = self._term.next_position() + AHEAD_US
        async with self._transactions.begin() as connection:
            await connection.execute(_RESERVE, until_us)
        self._term.reserved_us = max(self._term.reserved_us, until_us)

    async def _check_queue(self) -> None:
        """Do not notify while a listener that is stuck keeps the queue from being emptied.

        PostgreSQL keeps notifications until every listener has taken them, and refuses a commit that
        notifies when the queue is full. Other processes poll in any case, so without notifications they
        are only later.
        """
        now = asyncio.get_running_loop().time()
        if now < self._queue_at:
            return
        try:
            ((usage,),) = await self._term.log.fetch(_QUEUE)
        except LogError as error:
            if not isinstance(error.__cause__, asyncpg.UndefinedFunctionError):
                raise  # nothing is known of the queue, and it is asked again
            usage = 1.0  # this database has no notifications
        self._queue_at = now + _QUEUE_CHECK_S
        self._term.notifies = usage < self._queue_max


def states_max(limits: LogLimits, retention: Retention) -> int:
    """Return how many states of repositories are kept.

    The smaller of two bounds: a number, and a share of `--retention-bytes`.
    """
    bytes_max = retention.bytes or 1 << 60
    return min(limits.repo_states, int(bytes_max * limits.repo_states_share) // ROW_BYTES)
