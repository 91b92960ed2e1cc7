"""A client of the server under test: it reads events, sends messages, and knows how the connection ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

from tests.serving import connected
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

Event = dict[str, Any]
PATIENCE_S = 20.0


class Subscriber:
    """One connection to `/subscribe`."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def event(self) -> Event:
        """Return the next event. Raises ConnectionClosed when the connection has ended."""
        async with asyncio.timeout(PATIENCE_S):
            message = await self.connection.recv()
        assert isinstance(message, str)
        event: Event = json.loads(message)
        return event

    async def events(self, count: int) -> list[Event]:
        """Return the next events."""
        return [await self.event() for _ in range(count)]

    async def rest(self) -> list[Event]:
        """Return all events until the server ends the connection."""
        events = []
        try:
            while True:
                events.append(await self.event())
        except ConnectionClosed:
            return events

    async def say(self, message: object) -> None:
        """Send a message: JSON for anything but text or bytes, which go as they are."""
        await self.connection.send(
            message if isinstance(message, str | bytes) else json.dumps(message, separators=(",", ":"))
        )

    async def update(self, **payload: object) -> None:
        """Send an `options_update`."""
        await self.say({"type": "options_update", "payload": payload})

    async def ended(self) -> tuple[int, str]:
        """Wait for the server to end the connection; return its code and reason."""
        await self.rest()
        code, reason = self.connection.close_code, self.connection.close_reason
        assert code is not None
        assert reason is not None
        return code, reason

    async def ended_at(self) -> tuple[int, str, int]:
        """Wait as `ended`; return the code, and the text and the cursor of the reason."""
        code, reason = await self.ended()
        text, found, cursor = reason.rpartition("; cursor=")
        assert found, reason
        return code, text, int(cursor)


@asynccontextmanager
async def subscribe(
    port: int,
    path: str = "/subscribe",
    *,
    headers: Mapping[str, str] | None = None,
    receive_buffer: int | None = None,
    queue: int = 4,
    **query: Any,
) -> AsyncIterator[Subscriber]:
    """Connect to `path` with a query. `receive_buffer` limits the unread bytes of the socket.

    With more than `queue` messages that the test has not taken, the socket is not read. A client that leaves
    then does not see the server close: the library waits for that in vain, 10 seconds long.
    """
    sock = await connected(port, receive_buffer)
    if query:
        path += "?" + urlencode(query, doseq=True)
    async with connect(
        f"ws://127.0.0.1:{port}{path}",
        sock=sock,
        additional_headers=headers,
        compression=None,
        max_size=None,
        max_queue=queue,
        ping_interval=None,
        proxy=None,
    ) as connection:
        yield Subscriber(connection)
