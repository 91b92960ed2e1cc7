"""`subscribe`: an asynchronous iterator of events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self

from jetstream.client.limits import ClientLimits
from jetstream.client.message import Mark, Message
from jetstream.client.progress import Progress
from jetstream.client.request import (
    DEFAULT_URL,
    Kind,
    Operation,
    Options,
    Request,
    Wire,
    parse_position,
    start_of,
)
from jetstream.client.route import Route
from jetstream.client.store import CursorStore
from jetstream.client.stream import Stream, Timing
from jetstream.clock import unix_us
from jetstream.errors import InvalidParameter
from jetstream.retry import backoff_s

REWIND_S: Final = 5.0

logger = logging.getLogger("jetstream.client")


class Subscription(AsyncIterator[Message]):
    """The events of a subscription, in order. `subscribe` makes it; one task reads it.

    Leaving `async with` closes the connection at once, and counts the last event as done, unless an error
    has ended the block. Without `async with`, `break` closes the connection too, but the last event is not
    counted as done.
    """

    def __init__(self, items: AsyncGenerator[Message | Mark, None], progress: Progress) -> None:
        # For SyncSubscription, which reads them itself.
        self.items = items
        self.progress = progress
        self._events = _events(items, progress)

    @property
    def position(self) -> int | None:
        """Where to resume, in unix microseconds: everything below it is done. None before it is known.

        It rises with events, when the loop asks for the next one, and with heartbeats.
        """
        return self.progress.position

    @property
    def live(self) -> bool:
        """Whether playback had caught up with the stream at the last heartbeat of this connection."""
        return self.progress.live

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Message]:
        return self._events.__anext__()

    async def aclose(self) -> None:
        """Close the connection, and save the position. The last event is not counted as done."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.progress.done()
        finally:
            await self.aclose()


async def _events(
    items: AsyncGenerator[Message | Mark, None], progress: Progress
) -> AsyncGenerator[Message, None]:
    """Yield the events among the items. Each is done when the next one is asked for."""
    saving = asyncio.create_task(_save_while_quiet(progress))
    try:
        async with aclosing(items):
            async for item in items:
                event = progress.take(item)
                if event is not None:
                    yield event
                progress.done()
    finally:
        saving.cancel()
        progress.save()


async def _save_while_quiet(progress: Progress) -> None:
    """Save what is unsaved while no event comes."""
    while progress.saves:
        await asyncio.sleep(progress.save_every_s)
        try:
            progress.save_if_due()
        except Exception as error:  # noqa: BLE001 - a store of the user; `done` tries again, and raises it
            logger.warning("the cursor cannot be saved: %s", error)


def subscribe(  # noqa: PLR0913 - all but the first are named, and have defaults
    url: str | Sequence[str] = DEFAULT_URL,
    *,
    collections: Sequence[str] = (),
    dids: Sequence[str] = (),
    kinds: Sequence[Kind] = (),
    operations: Sequence[Operation] = (),
    wire: Wire | None = None,
    cursor: int | str | None = None,
    until: int | str | None = None,
    limit: int | None = None,
    store: CursorStore | None = None,
    heartbeat: int | None = None,
    compress: bool = False,
    rewind_s: float = REWIND_S,
    limits: ClientLimits = ClientLimits(),
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    backoff: Callable[[int], float] = backoff_s,
    clock: Callable[[], int] = unix_us,
) -> Subscription:
    """Return the events of a Jetstream, in order, as an asynchronous iterator.

    `url` is a host, a base URL, or a full URL. A list of them is several servers with the same events: after
    a connection that brought nothing, the next one is tried. `wire` is the spelling of events; without it,
    the URL selects it.

    What to read: `collections` are NSIDs, or prefixes such as `app.bsky.graph.*` (at most 100), and apply to
    commits only; `dids` are accounts (at most 10,000); `kinds` and `operations` select commits, identity and
    account events, and creates, updates and deletes. Empty means all. The last two need a server that has
    these parameters, as this one does.

    Where to begin: at the time `cursor`; without it, only new events come. `store` keeps the position, and
    takes precedence over `cursor` once it has one (`FileCursor`). Where to end: before the time `until`, or
    after `limit` events; without them there is no end. A time is a number of unix microseconds, or a text:
    `2026-07-04T14:30:00Z`, or an age such as `-10m`.

    After a lost connection it reconnects, with exponential backoff and full jitter up to 30 s, or after the
    time in Retry-After if that is longer. It resumes at the last `time_us` + 1, so no event is lost or
    repeated. If no event had been received, it resumes at the time at which it connected. On another server
    it resumes `rewind_s` seconds earlier, since positions differ there, and leaves out the events that it
    recognises.

    An event is done when the loop asks for the next one. Then its position is saved, at most once a second,
    and at the end. So after a crash the events of the last second come again, and none is missed.

    `heartbeat` (1 to 300 seconds) asks the server to say how far it is when it has no event for so long. Then
    `position` rises without events, `live` tells when playback has caught up, and the client reconnects when
    nothing has come for three intervals. A server without heartbeats is read as before.

    `compress=True` reads compressed messages, with the server's own dictionary. A server without one is read
    without compression, which is logged.

    A slow loop applies backpressure: what it has not taken stays on the server. Changes of the connection are
    logged to the logger `jetstream.client`.

    `sleep`, `backoff` (seconds to wait after a number of failures in a row) and `clock` (unix microseconds)
    are for tests.

    Raises InvalidParameter at once for invalid arguments, and StoreError for a file of `FileCursor` that
    cannot be used. While iterating, raises Refused if the server answers the request with anything but a
    WebSocket, a 5xx, 408, 425 or 429, and NotJetstream if it sends a message that is not an event; with
    several servers, when all of them have.
    """
    now = clock() if isinstance(cursor, str) or isinstance(until, str) else 0
    first, end = parse_position("cursor", cursor, now), parse_position("until", until, now)
    options = Options(collections, dids, kinds, operations, wire, heartbeat, end)
    requests = [Request.parse(each, options) for each in ([url] if isinstance(url, str) else url)]
    _check(requests, limit, rewind_s)
    stored = None if store is None else store.load()
    start = start_of(requests, first) if stored is None else stored
    rewind_us = round(rewind_s * 1_000_000) if len(requests) > 1 else 0
    route = Route(len(requests), start, rewind_us, elsewhere=stored is not None)
    stream = Stream(
        requests,
        route,
        compress=compress,
        heartbeat_s=heartbeat,
        until=end,
        limit=limit,
        limits=limits,
        timing=Timing(sleep, backoff, clock),
    )
    progress = Progress(store, start, stored=stored, rewind_us=rewind_us, save_every_s=limits.save_every_s)
    return Subscription(stream.items(), progress)


def _check(requests: Sequence[Request], limit: int | None, rewind_s: float) -> None:
    if not requests:
        raise InvalidParameter("url", "[]", "is an empty list: give at least one URL")
    if limit is not None and limit < 1:
        raise InvalidParameter("limit", str(limit), "is not a number of events, 1 or more")
    if not 0 <= rewind_s < float("inf"):
        raise InvalidParameter("rewind_s", str(rewind_s), "is not a number of seconds")
