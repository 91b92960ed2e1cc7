"""Statements whose answer the event loop waits for: the state of a repository that nobody has loaded ahead.

They run in a thread with an event loop and a connection of its own. One takes a round trip to the database,
so what is needed often is read ahead.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any, Final

import asyncpg

from jetstream.eventlog.postgresql.connection import LOST, connect, drop, translated

ANSWER_S: Final = 5.0  # after which a database that does not answer counts as gone


class BlockingReader:
    """Reads through a connection of its own, which is made when it is needed."""

    def __init__(self, address: str) -> None:
        self._address = address
        # Runs in the thread; both from the first `fetch` until `close`.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # Used by the thread only. Made again when it was lost.
        self._connection: asyncpg.Connection | None = None

    def fetch(self, statement: str, *values: object) -> list[Any]:
        """Return the rows of a statement. Raises LogError or LogUnreachable."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="log-lookup", daemon=True)
            self._thread.start()
        fetching = asyncio.run_coroutine_threadsafe(self._fetch(statement, *values), self._loop)
        try:
            with translated(self._address):
                return fetching.result(ANSWER_S)
        finally:
            fetching.cancel()  # of no effect once it is done

    async def _fetch(self, statement: str, *values: object) -> list[Any]:
        for attempt in range(2):
            if self._connection is None or self._connection.is_closed():
                self._connection = await connect(self._address, writes=True)
            try:
                rows: list[Any] = await self._connection.fetch(statement, *values)
            except LOST:
                await drop(self._connection)
                self._connection = None
                if attempt:
                    raise
            else:
                return rows
        raise AssertionError

    def close(self) -> None:
        """Close the connection, and end the thread."""
        if self._loop is None or self._thread is None:
            return
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(drop(self._connection), self._loop).result(1.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None
