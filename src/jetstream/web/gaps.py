"""`/gaps`: messages of repositories that never came, as lines of JSON.

A consumer that keeps a copy of a repository fetches it again when there was a gap. A gap of a mirror is of
all repositories. The oldest gaps come first, as many as one response has room for. A header field names where
the next ones are. So a response is bounded, whatever the log keeps.

    {"did":…,"from_rev":…,"to_rev":…,"time_us":…,"cause":"commit"}     of one repository
    {"from_us":…,"to_us":…,"time_us":…,"cause":"upstream"}             of all, in a mirror
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import orjson

from jetstream.clock import unix_us
from jetstream.errors import InvalidParameter
from jetstream.eventlog import UPSTREAM_GAP, Gap
from jetstream.limits import WebLimits
from jetstream.model.timestamp import TIME_MAX
from jetstream.steps import Steps
from jetstream.token_bucket import TokenBucket
from jetstream.web.allowance import Allowance, always
from jetstream.web.http import Request, Response
from jetstream.web.query import decode_query, time_in

# One JSON object a line.
NDJSON: Final = "application/x-ndjson"


class GapLog(Protocol):
    """What this page needs of the log: a part of `LogReader`."""

    async def gaps(self, since_us: int, count_max: int) -> list[Gap]:
        """Return the oldest gaps since a time, rising.

        Those found at `since_us` (unix microseconds) or later: `count_max` of them, and all others of the
        time of the last one. So the next page begins behind that time. Raises LogError.
        """


class Gaps:
    """The route `/gaps`.

    `now_us` gives unix microseconds, `clock` monotonic seconds. `allowed` is what all processes share.
    """

    def __init__(
        self,
        log: GapLog,
        limits: WebLimits = WebLimits(),
        *,
        now_us: Callable[[], int] = unix_us,
        clock: Callable[[], float] = time.monotonic,
        allowed: Allowance = always,
    ) -> None:
        # The arguments that the docstring describes.
        self._log = log
        self._limits = limits
        self._now_us = now_us
        self._clock = clock
        self._allowed = allowed
        # One token for each answer.
        self._budget = TokenBucket(*limits.gap_pages, clock())
        # Held by the response that is being made; how many are made or wait.
        self._turn = asyncio.Lock()
        self._asked = 0

    def handle(self, request: Request, _connection: object) -> Steps[Any]:
        """Read a request, in steps; return its answer, or a response that is being made.

        The coroutine that is returned is awaited by the connection. 400 is for a time that cannot be read,
        429 for too many questions.
        """
        try:
            query = yield from decode_query(request.query)
            since_us = time_in(query, "since", self._now_us())
        except InvalidParameter as error:
            return Response.sentence(400, str(error))
        full = self._asked >= self._limits.gap_pages_waiting_max
        if full or not self._budget.spend(self._clock()):
            return self._too_often()
        return self._answer(min(since_us or 0, TIME_MAX))

    def _too_often(self) -> Response:
        """Return a response that asks the client to try again."""
        again = {"Retry-After": str(self._limits.retry_after_s)}
        return Response.sentence(429, "gaps are asked for too often: try again later", again)

    async def _answer(self, since_us: int) -> Response:
        """Return the gaps, when it is the turn of this request.

        One response is made at a time, in the order in which they were asked for. The field `Link` (RFC
        8288) has the URL of the next page, if there may be one.
        """
        self._asked += 1
        try:
            if not await self._allowed():
                return self._too_often()
            async with self._turn:
                gaps = await self._log.gaps(since_us, self._limits.gaps_per_page)
            lines, next_us = _lines(gaps, self._limits.gap_page_bytes)
            if next_us is None and len(gaps) >= self._limits.gaps_per_page:
                next_us = gaps[-1].time_us + 1
            headers = None if next_us is None else {"Link": f'</gaps?since={next_us}>; rel="next"'}
            return Response(200, b"".join(lines), NDJSON, headers)
        finally:
            self._asked -= 1


def _lines(gaps: Sequence[Gap], bytes_max: int) -> tuple[list[bytes], int | None]:
    """Return lines up to so many bytes, and the time of the first gap that is left out, if one is.

    Gaps of one time stay together, so that no page begins between them.
    """
    lines: list[bytes] = []
    size, last_us = 0, -1
    for gap in gaps:
        if size >= bytes_max and gap.time_us != last_us:
            return lines, gap.time_us
        lines.append(_line(gap))
        size, last_us = size + len(lines[-1]), gap.time_us
    return lines, None


def _line(gap: Gap) -> bytes:
    """Return a gap as a line of JSON, as docs/api.md describes it."""
    time_us, did, after_rev, rev, cause = gap
    body: dict[str, str | int] = {"did": did, "from_rev": after_rev, "to_rev": rev}
    if cause == UPSTREAM_GAP:
        body = {"from_us": int(after_rev), "to_us": int(rev)}
    body |= {"time_us": time_us, "cause": cause}
    return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)
