"""Gaps in the stream of a Jetstream: reported once, and a condition while the log has what was before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from prometheus_client import Counter

from jetstream.conditions import UpstreamConditions
from jetstream.logging_setup import Throttled
from jetstream.model.timestamp import to_date
from jetstream.upstream.mirror.parts import MirrorLog

_GAPS_MAX: Final = 1_000  # that are looked at by `recall`


class GapWatch:
    """The gaps of one upstream. `store` is given the positions of the events after and before a gap."""

    def __init__(
        self,
        log: MirrorLog,
        store: Callable[[int, int], Awaitable[None]],
        count: Counter,
        conditions: UpstreamConditions,
        logger: Throttled,
        url: str,
    ) -> None:
        self._log = log
        self._store = store
        self._count = count
        self._conditions = conditions
        self._logger = logger
        self._url = url
        # Where the last gap ends; None: there is none.
        self._ends: int | None = None
        # Whether the log was asked for those that an earlier process has found.
        self._recalled = False

    async def note(self, tip: int, begins: int) -> None:
        """Report that upstream has nothing between the newest event here and a later position."""
        self._recalled = True
        self._count.inc()
        self._logger.warning("upstream: gap, events are missing", url=self._url, after=tip, before=begins)
        self._begin(begins)
        await self._store(tip, begins)

    async def recall(self) -> None:
        """Begin the condition of a gap that an earlier process has found."""
        oldest_us = self._log.oldest_us
        if self._recalled or oldest_us is None:
            return
        self._recalled = True
        ends = [gap.time_us for gap in await self._log.gaps(oldest_us + 1, _GAPS_MAX) if not gap.did]
        if ends:
            self._begin(ends[-1])

    def check(self) -> None:
        """End the condition when the log keeps nothing from before the gap any more."""
        oldest_us = self._log.oldest_us
        if self._ends is not None and oldest_us is not None and oldest_us >= self._ends:
            self._ends = None
            self._conditions.end("mirror_gap")

    def _begin(self, ends: int) -> None:
        self._ends = ends
        self._conditions.begin(
            "mirror_gap",
            f"{self._url} did not have the events before {ends} ({to_date(ends)}) any more: they are missing"
            " here, and deletions of accounts among them are not known. /gaps has all such gaps",
        )
