"""The connections with which a process reads, and the threads in which it does so.

A scan runs in a thread, since zstd takes milliseconds; each of its statements is run by the event loop, for
which the thread waits.

A database that is frozen answers nothing, and keeps its connections. So each statement has a time in which it
must be answered, and what is cancelled meanwhile is cut short: a server that stops does not wait for its
database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

import asyncpg

from jetstream.eventlog.damage import DamageRecord
from jetstream.eventlog.postgresql.connection import CONNECT_S, connect, translated
from jetstream.eventlog.postgresql.reader import DatabaseReader
from jetstream.limits import LogLimits
from jetstream.scheduling import whole

Result = TypeVar("Result")

READ_S: Final = 30.0  # after which a statement that reads is not waited for any more
IDLE_S: Final = 60.0  # after which a connection that nobody uses is closed
_CUT_S: Final = 1.0  # for which what is cancelled may go on


class Pool:
    """Connections that are made when they are needed; with `primary`, to a server that is no replica."""

    def __init__(self, address: str, size: int, *, primary: bool = False, read_s: float = READ_S) -> None:
        """Open nothing yet. `size` is how many connections there may be, `read_s` seconds per statement."""
        self._address, self._size, self._primary = address, size, primary
        self._read_s = read_s
        # Made by `open`.
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Prepare connections: each is made when it is needed.

        Raises nothing for a database that does not answer: the first statement does.
        """
        address, primary, read_s = self._address, self._primary, self._read_s
        self._pool = await asyncpg.create_pool(
            address,
            min_size=0,
            max_size=self._size,
            max_inactive_connection_lifetime=IDLE_S,
            connect=lambda *_, **__: connect(address, primary=primary, answer_s=read_s),
            reset=_nothing,
        )

    async def fetch(self, statement: str, *values: object) -> list[Any]:
        """Return the rows of one statement. Raises LogError or LogUnreachable."""
        assert self._pool is not None
        with translated(self._address):
            async with self._pool.acquire(timeout=CONNECT_S) as connection:
                return await answered(connection, statement, *values)

    async def close(self) -> None:
        """Close the connections.

        At once: statements that run end with an error.
        """
        if self._pool is not None:
            self._pool.terminate()


class ReaderPool(Pool):
    """Runs work that reads the database in threads, each with a connection.

    What is found damaged is added to `damages`.
    """

    def __init__(
        self,
        address: str,
        limits: LogLimits,
        damages: DamageRecord,
        *,
        primary: bool = False,
        read_s: float = READ_S,
    ) -> None:
        """Prepare a thread and a connection for each of `limits.reader_threads`; both begin when needed."""
        super().__init__(address, limits.reader_threads, primary=primary, read_s=read_s)
        self._limits = limits
        self._damages = damages
        self._threads = ThreadPoolExecutor(limits.reader_threads, thread_name_prefix="log-reader")

    async def run(self, work: Callable[[DatabaseReader], Result], revision: int = 0) -> Result:
        """Call `work` in a thread, with a reader. Raises Hole, LogError or LogUnreachable.

        `revision` is the newest revision of erasures that the caller has seen: an older answer, of a
        replica, raises Hole. A cancellation lets the work go on for a second, and then cuts its
        connection.
        """
        assert self._pool is not None
        with translated(self._address):
            async with self._pool.acquire() as connection:
                loop = asyncio.get_running_loop()

                def fetch(statement: str, *values: object) -> list[Any]:
                    """Run a statement on the event loop, and wait for it in this thread."""
                    fetching = answered(connection, statement, *values)
                    return asyncio.run_coroutine_threadsafe(fetching, loop).result()

                reader = DatabaseReader(fetch, self._limits, revision)
                working = loop.run_in_executor(self._threads, work, reader)
                try:
                    return await whole(working, partial(cut, connection), _CUT_S)
                finally:
                    self._damages.add(reader.damage)

    async def close(self) -> None:
        """Close the connections, which ends what is read, and wait for the threads."""
        await super().close()
        await asyncio.to_thread(self._threads.shutdown)


async def answered(connection: Any, statement: str, *values: object) -> list[Any]:
    """Return the rows of a statement. A connection that is not waited for is closed: it may never answer."""
    try:
        rows: list[Any] = await connection.fetch(statement, *values)
    except (TimeoutError, asyncio.CancelledError):
        cut(connection)
        raise
    return rows


def cut(connection: Any) -> None:
    """Close a connection of a pool at once, whatever runs on it."""
    with suppress(asyncpg.InterfaceError):  # it is closed
        connection.terminate()


async def _nothing(_connection: object) -> None:
    """Leave a session as it is when it is given back: nothing changes it."""
