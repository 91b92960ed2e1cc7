"""How far the log is, beyond what a process has read of it: for cursors that come from elsewhere.

A process learns of events a moment after they are stored. A client that comes from another process may have a
cursor above all that this one has read. Whether such a cursor is of the future is asked of the database, at
that moment.

A replica does not know: it may be behind the primary. So the primary is asked, if the address names it. If it
does not answer, a cursor that is ahead of the replica's clock by no more than `AHEAD_US` counts as one of the
log: a reader with it waits, and is sent nothing twice. Positions are times of the writer's clock, which is no
further than that from the database's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import structlog

from jetstream.clock import STEP_US
from jetstream.errors import LogError
from jetstream.eventlog.postgresql.pool import Pool

AHEAD_US: Final = STEP_US
ASK_AGAIN_S: Final = 10.0  # after which a primary that did not answer is asked again
# The newest position, whether this server is a replica, and its time in unix microseconds.
_END: Final = """
SELECT (SELECT max(last_us) FROM tail), pg_is_in_recovery(),
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
"""
_NEWEST: Final = "SELECT max(last_us) FROM tail"


class LogEnd:
    """What is known of the end of the log. `monotonic` gives seconds."""

    def __init__(self, database: Pool, primary: Pool, monotonic: Callable[[], float]) -> None:
        """Ask nothing yet. Without a replica, `primary` is never asked."""
        # The database that this process reads, and the one that is written.
        self._database, self._primary = database, primary
        self._monotonic = monotonic
        # The newest position that was seen. Rises.
        self.newest = 0
        # The highest position that the log may have had when a replica was asked last. Rises.
        self._possible = 0
        # When the primary may be asked again.
        self._ask_at = -math.inf
        self._logger = structlog.get_logger(__name__)

    @property
    def cursor_max(self) -> int:
        """The highest cursor that is not of the future, by what was known at the last look."""
        return max(self.newest, self._possible) + 1

    def note(self, position: int) -> None:
        """Note that the log has events up to a position."""
        self.newest = max(self.newest, position)

    async def look(self) -> None:
        """Learn how far the log is now. Raises LogError or LogUnreachable."""
        ((newest_us, is_replica, now_us),) = await self._database.fetch(_END)
        self.note(newest_us)
        if is_replica and not await self._look_at_primary():
            self._possible = max(self._possible, now_us + AHEAD_US)

    async def _look_at_primary(self) -> bool:
        """Ask the primary; return whether it has answered.

        One that has not answered is left alone for `ASK_AGAIN_S` seconds: clients wait for the answer.
        """
        if self._monotonic() < self._ask_at:
            return False
        try:
            ((newest_us,),) = await self._primary.fetch(_NEWEST)
        except LogError as error:
            self._ask_at = self._monotonic() + ASK_AGAIN_S
            self._logger.info("log: the primary cannot be asked how far it is", problem=error.problem)
            return False
        self.note(newest_us)
        return True
