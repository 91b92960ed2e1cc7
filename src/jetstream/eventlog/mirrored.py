"""The log of a mirror, as its readers see it: the stream that it mirrors may be ahead of it.

A client comes from the upstream with the cursor that it had there, which may be above all that this server
has yet. It must wait at its cursor: from the tip on, it would get what it has had. A cursor beyond the end of
the stream is of the future, and starts live. Only the upstream can tell the two apart. So it is asked, at
that moment; requests that come while it is asked share the next question.

If the upstream does not answer, it may be gone, and its clients come here. Then the stream is taken to reach
up to now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from jetstream.eventlog import Gap, LogReader
from jetstream.eventlog.backpressure import Followers
from jetstream.model.batch import Batch
from jetstream.model.filter import Filter
from jetstream.status import LogStatistics
from jetstream.upstreams import AHEAD_MAX_US

# By how much the upstream's clock may be ahead of ours and of its newest event here.
SLACK_US: Final = 1_000_000


class MirroredLog:
    """A `LogReader` of a log that follows another stream.

    `ask` returns the newest position of that stream; None: it does not answer; 0: it has no positions that
    are those of this log. `now_us` gives unix microseconds.

    Only how far the log is differs from `log`; events, gaps and statistics are those of `log`. Used by
    the event loop's thread only.
    """

    def __init__(
        self, log: LogReader, ask: Callable[[], Awaitable[int | None]], now_us: Callable[[], int]
    ) -> None:
        self._log = log
        self._ask = ask
        self._now_us = now_us
        # The newest position that the stream was known to have, from answers. Only rises.
        self._newest = 0
        # Held while the upstream is asked. How many have wanted to know, and how many of them know.
        self._asking = asyncio.Lock()
        self._wanted = 0
        self._answered = 0

    @property
    def newest(self) -> int:
        """The highest position that the stream was known to have at the last look."""
        return max(self._log.newest, self._newest)

    @property
    def cursor_max(self) -> int:
        """The highest cursor that is not of the future, by what was known at the last look."""
        return max(self._log.cursor_max, self._newest + 1)

    @property
    def watermark(self) -> int:
        """The position below which nothing more comes: of a mirror, only its newest event tells."""
        return self._log.watermark

    async def look(self) -> None:
        """Learn how far the log and the stream are. Raises LogError.

        A question that was begun before this call does not count: its answer may be older than the
        client's cursor. So a call waits for the next one, which all calls share that came before it was
        asked.
        """
        await self._log.look()
        self._wanted += 1
        mine = self._wanted
        async with self._asking:
            if self._answered < mine:
                wanted = self._wanted
                self._learn(await self._ask())
                self._answered = wanted

    def _learn(self, newest: int | None) -> None:
        """Take an answer of the upstream, or None if there was none.

        Without an answer, the stream is taken to reach up to now, and a second further. An answer that is
        more than a day ahead of the clock is not believed: else clients with a cursor of the future would
        wait for it.
        """
        now_us = self._now_us()
        if newest is None:
            newest = max(now_us, self._log.newest) + SLACK_US
        if newest <= now_us + AHEAD_MAX_US:
            self._newest = max(self._newest, newest)

    # All else is as the log has it

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing."""
        return self._log.floor

    @property
    def tip(self) -> int:
        """The position of the newest event here."""
        return self._log.tip

    @property
    def oldest_us(self) -> int | None:
        """The position of the oldest event that is kept; None: the log is empty."""
        return self._log.oldest_us

    @property
    def followers(self) -> Followers:
        """The readers that the writer waits for."""
        return self._log.followers

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return the batch with the first events in `[position, stop)` that `wanted` may want."""
        return await self._log.read(position, stop, wanted)

    async def wait(self, position: int) -> None:
        """Return once an event at or after `position` has been appended."""
        await self._log.wait(position)

    async def gaps(self, since_us: int, count_max: int) -> list[Gap]:
        """Return the oldest gaps since a time, rising."""
        return await self._log.gaps(since_us, count_max)

    def statistics(self) -> LogStatistics:
        """Return what the log holds."""
        return self._log.statistics()
