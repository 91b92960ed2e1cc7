"""All that the servers of a subscription send, in order: connect, read, reconnect where it was."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from jetstream.client.errors import SubscriptionError
from jetstream.client.limits import ClientLimits
from jetstream.client.message import Mark, Message
from jetstream.client.request import Request, shown
from jetstream.client.route import Route
from jetstream.clock import unix_us
from jetstream.retry import backoff_s

logger = logging.getLogger("jetstream.client")


@dataclass(frozen=True, slots=True)
class Timing:
    """The clock, and the pauses between connections."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    backoff: Callable[[int], float] = backoff_s  # seconds to wait after a number of failures in a row
    clock: Callable[[], int] = unix_us


class Stream:
    """The events of a subscription, and marks between them.

    A mark comes with each connection and each heartbeat, and at `until`.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        route: Route,
        *,
        compress: bool = False,
        heartbeat_s: float | None = None,
        until: int | None = None,
        limit: int | None = None,
        limits: ClientLimits = ClientLimits(),
        timing: Timing = Timing(),
    ) -> None:
        self._requests = requests
        self._route = route
        self._compress = compress
        self._heartbeat_s = heartbeat_s
        self._until = until
        # How many more events to return; None: no limit. Counted down by `_take`.
        self._left = limit
        # Whether `until` or `limit` has been reached.
        self._ended = False
        self._limits = limits
        self._timing = timing
        self._outages = _Outages()
        # The servers that have refused for good since anything was last received.
        self._refused: set[int] = set()

    async def items(self) -> AsyncGenerator[Message | Mark, None]:
        """Yield everything, until the end of the subscription. Raises SubscriptionError."""
        # Late: see there.
        from jetstream.client.connection import LOST, Server, reason_of  # noqa: PLC0415

        made = [Server(each, self._limits, self._compress, self._heartbeat_s) for each in self._requests]
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(server) for server in made]
            while not self._ended:
                began, server = self._timing.clock(), servers[self._route.server]
                try:
                    async with server.connected(self._route.start(), self._limit) as connection:
                        yield self._connected(began if server.begins is None else server.begins)
                        while not self._ended:
                            item = await connection.receive()
                            if self._take(item):
                                yield item
                except SubscriptionError as error:
                    await self._timing.sleep(self._refuse(error))
                except LOST as error:
                    if not self._is_end(getattr(error, "code", None)):
                        delay = self._lose(reason_of(error, self._limits))
                        await self._timing.sleep(max(delay, getattr(error, "retry_after", 0.0)))
        if self._until is not None and self._left != 0:
            yield Mark(self._until, live=False)

    def _take(self, item: Message | Mark) -> bool:
        """Move on to an item. Return whether to pass it on."""
        self._outages.failures = 0
        if self._until is not None and self._is_past(item, self._until):
            self._ended = True
            return False
        if not self._route.received(item):
            return False
        if self._left is not None and isinstance(item, Message):
            self._left -= 1
            self._ended = self._left == 0
        return True

    def _is_past(self, item: Message | Mark, until: int) -> bool:
        reached = item.cursor if isinstance(item, Mark) else item.time_us
        return reached is not None and reached >= until

    def _is_end(self, code: int | None) -> bool:
        """Tell whether a server has closed the connection at `until`."""
        self._ended = self._until is not None and code == 1000
        return self._ended

    @property
    def _limit(self) -> int | None:
        """How many events to ask a server for. One of several may repeat some, which do not count here."""
        return self._left if len(self._requests) == 1 else None

    def _connected(self, live: int) -> Mark:
        """Log a connection. Without a cursor, it begins at `live`."""
        self._outages.connected(self._shown)
        return Mark(self._route.begin(live), live=False)

    def _refuse(self, error: SubscriptionError) -> float:
        """Go on to the next server. Raises the error if all have refused. Returns for how long to wait."""
        if self._route.heard:
            self._refused.clear()
        self._refused.add(self._route.server)
        if len(self._refused) == len(self._requests):
            raise error
        return self._fail(error.problem, self._route.skip)

    def _lose(self, reason: str) -> float:
        """Go on after a lost connection. Returns for how long to wait."""
        if self._route.heard:
            self._refused.clear()
        return self._fail(reason, self._route.lost)

    def _fail(self, reason: str, move: Callable[[], None]) -> float:
        delay = self._timing.backoff(self._outages.failures)
        self._outages.failed(self._shown, reason, self._route.cursor)
        move()
        return delay

    @property
    def _shown(self) -> str:
        return shown(self._requests[self._route.server].url)


class _Outages:
    """Logs when the connection is lost and when it is back, once each."""

    def __init__(self) -> None:
        self.failures = 0  # since the last event; reset by `Stream`
        self._connected_before = False  # whether there has ever been a connection
        self._logged = False  # whether the present outage has been logged

    def connected(self, url: str) -> None:
        logger.info("%s to %s", "reconnected" if self._connected_before else "connected", url)
        self._connected_before = True
        self._logged = False

    def failed(self, url: str, reason: str, cursor: int | None) -> None:
        self.failures += 1
        level = logging.DEBUG if self._logged else logging.WARNING
        self._logged = True
        if not self._connected_before:
            logger.log(level, "cannot connect to %s: %s; trying again", url, reason)
        else:
            logger.log(level, "connection lost: %s; reconnecting at cursor %s", reason, cursor)
