"""A connection while it speaks HTTP: requests in, answers out, until it ends or becomes a WebSocket.

No route takes a body and every answer is made at once, so a connection is in one of three states: a
request is *unfinished* (or has not begun, or its answer is not taken), a request is *running*, or it is
*idle* between two requests. `Connections` bounds how long the first and the last may take, and how much
memory all of them hold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final, cast

import structlog

from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.scheduling import Steps, Worker
from jetstream.token_bucket import TokenBucket
from jetstream.web.discard import Discards
from jetstream.web.pages import Page
from jetstream.web.request import BadRequest, HeadReader, Request
from jetstream.web.response import Response
from jetstream.web.unfinished import Unfinished

REQUEST_S: Final = 10.0  # for a whole request, and for a client to take its answer
KEEPALIVE_S: Final = 75.0  # between two requests: longer than what proxies keep a connection for
SWEEP_S: Final = 0.5  # between two looks at who is late
# Without a subscription. Each takes some 3 kB; a storm of as many clients that are slow to ask is served.
CONNECTIONS_MAX: Final = 10_000
# Of one connection, as one behind a proxy may carry many clients. An answer takes 0.1 ms, /metrics 1 ms.
REQUESTS_PER_S: Final = 100
REQUESTS_BURST: Final = 200
EVICTED_AT_ONCE: Final = 4  # as many as are accepted in a turn

# Answers a request whose answer is worked out in steps, or takes the connection over and returns None.
Upgrade = Callable[[Request, "Connection"], Steps[Response | None]]

_TOO_SLOW: Final = BadRequest(408, "timeout", f"the request was not whole within {REQUEST_S:.0f} s")
_OVERLOADED: Final = BadRequest(503, "overload", "there are too many unfinished requests: try again later")
_TOO_MANY: Final = BadRequest(
    429, "flood", f"more than {REQUESTS_PER_S} requests a second on one connection: ask less often"
)

logger = structlog.get_logger(__name__)


class Connections:
    """All connections of one server that are no subscriptions, and what they ask for.

    `pages` and `upgrades` are its routes.
    """

    def __init__(self, pages: Mapping[str, Page], upgrades: Mapping[str, Upgrade], metrics: Metrics) -> None:
        self._pages = pages
        self._upgrades = upgrades
        self._metrics = metrics
        self._log = Throttled(logger)
        self._all: dict[Connection, None] = {}
        self._unfinished: Unfinished[Connection] = Unfinished(REQUEST_S)
        self._idle: Unfinished[Connection] = Unfinished(KEEPALIVE_S)
        self.discards = Discards()
        self._worker = Worker()  # requests are answered one after another
        self._sweep: asyncio.TimerHandle | None = None  # set while there are connections

    def __len__(self) -> int:
        return len(self._all)

    def __call__(self) -> Connection:
        """Return the protocol of a connection that was accepted."""
        return Connection(self)

    def add(self, connection: Connection) -> None:
        """Wait for the first request of a connection; with too many, close the one that waits the longest."""
        self._all[connection] = None
        self._unfinished.begin(connection, time.monotonic())
        if len(self._all) > CONNECTIONS_MAX:
            self._evict()
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._close_late)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has ended, or is a subscription now."""
        self._all.pop(connection, None)
        self.run(connection)

    def wait(self, connection: Connection, size: int) -> None:
        """Wait for the rest of a request of which `size` bytes are there."""
        self._idle.end(connection)
        self._unfinished.hold(connection, time.monotonic(), size)
        if (victim := self._unfinished.excess()) is not None:
            victim.refuse(_OVERLOADED)

    def idle(self, connection: Connection) -> None:
        """Wait for the next request of a connection."""
        self._unfinished.end(connection)
        self._idle.begin(connection, time.monotonic())

    def linger(self, connection: Connection) -> None:
        """Wait for a client to take its answer."""
        self._idle.end(connection)
        self._unfinished.begin(connection, time.monotonic())

    def run(self, connection: Connection) -> None:
        """Wait for a connection no more: its request is whole."""
        self._unfinished.end(connection)
        self._idle.end(connection)

    def put(self, job: Steps[None]) -> None:
        """Answer a request after those that came before it."""
        self._worker.put(job)

    def answer(self, request: Request, connection: Connection) -> Steps[Response | None]:
        """Find the route of a request, and answer it. Returns None when it has become a subscription."""
        path = request.path
        if path not in self._pages and path not in self._upgrades:
            return Response.sentence(404, "there is nothing here: see / for what there is")
        if request.method not in ("GET", "HEAD"):
            text, allow = f"{path} is only read: use GET", {"Allow": "GET, HEAD"}
            return Response.sentence(405, text, allow, closing=True)
        if path in self._pages:
            return self._pages[path](request)
        return (yield from self._upgrades[path](request, connection))

    def note_bad(self, error: BadRequest, peer: str) -> None:
        """Count and log a request that is not served."""
        self._metrics.bad_requests.labels(error.reason).inc()
        self._log.info(f"request: not served, {error.reason}", problem=error.text, peer=peer)

    def note_failure(self, peer: str) -> None:
        """Log an error of ours, which clients may cause again and again."""
        self._metrics.failures.labels("request").inc()
        self._log.exception("request: could not be answered", peer=peer)

    def make_room(self) -> bool:
        """Close those that have been waited for the longest; return whether there are any."""
        return sum(self._evict() for _ in range(EVICTED_AT_ONCE)) > 0

    def _evict(self) -> bool:
        connection = self._idle.longest() or self._unfinished.longest()
        if connection is None:
            return False
        self._metrics.evicted.inc()
        self._log.info("connection: closed to make room for others", peer=connection.peer)
        connection.cut()
        return True

    def _close_late(self) -> None:
        now = time.monotonic()
        while (connection := self._idle.expired(now)) is not None:
            connection.cut()
        while (connection := self._unfinished.expired(now)) is not None:
            connection.give_up(_TOO_SLOW)
        again = asyncio.get_running_loop().call_later
        self._sweep = again(SWEEP_S, self._close_late) if self._all else None

    async def close(self, timeout_s: float) -> None:
        """End all connections; those that have not taken their answer have `timeout_s` for it."""
        for connection in list(self._all):
            connection.close()
        deadline = time.monotonic() + timeout_s
        while self._all and time.monotonic() < deadline:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.01)
        for connection in list(self._all):
            connection.cut()
        if self._sweep is not None:
            self._sweep.cancel()


class Connection(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_budget",
        "_connections",
        "_discarded",
        "_ending",
        "_full",
        "_reader",
        "_running",
        "peer",
        "transport",
    )

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._reader = HeadReader()
        self._budget = TokenBucket(REQUESTS_PER_S, REQUESTS_BURST, time.monotonic())  # of requests
        self._running = False  # whether a request is being answered
        self._full = False  # whether the client takes its answers more slowly than it asks
        self._ending = False  # whether the last answer is out, or none will be
        self._discarded = 0  # bytes that came after that
        self.peer = ""  # its address, for the log
        self.transport: asyncio.Transport  # from `connection_made` on

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        self.transport = cast(asyncio.Transport, transport)
        self.peer = (transport.get_extra_info("peername") or ("",))[0]
        self._connections.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget the connection."""
        self._ending = True
        self._connections.remove(self)

    def pause_writing(self) -> None:
        """Answer no more until the client has taken what it was sent."""
        self._full = True

    def resume_writing(self) -> None:
        """Go on with the next request."""
        self._full = False
        if not self._ending and not self._running:
            self._next()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request, or of several."""
        if self._ending:
            self._discarded += len(data)
            self._connections.discards.drop(self.transport, self._discarded)
            return
        self._reader.feed(data)
        if not self._running and not self._full:
            self._next()

    def _next(self) -> None:
        """Answer the next request, or wait for the rest of it."""
        try:
            request = self._reader.next()
        except BadRequest as error:
            self.refuse(error)
            return
        if self.transport.is_closing():
            return
        if request is not None:
            self._run(request)
            return
        self.transport.resume_reading()
        if self._reader.begun:
            self._connections.wait(self, len(self._reader))

    def _run(self, request: Request) -> None:
        if not self._budget.spend(time.monotonic()):
            self.refuse(_TOO_MANY)
            return
        self._running = True
        self._connections.run(self)
        self.transport.pause_reading()
        self._connections.put(self._answer(request))

    def _answer(self, request: Request) -> Steps[None]:
        if self._ending:
            return
        try:
            response = yield from self._connections.answer(request, self)
        except BadRequest as error:
            self.refuse(error)
            return
        except Exception:  # noqa: BLE001 - it is logged, and the client is told
            self._connections.note_failure(self.peer)
            response = Response.sentence(500, "the server failed to answer", closing=True)
        self._running = False
        if response is not None and not self._ending:
            self._send(request, response)

    def _send(self, request: Request, response: Response) -> None:
        keep_alive = request.keep_alive and not response.closing
        self._write(response.encode(keep_alive=keep_alive, with_body=request.method != "HEAD"))
        if not keep_alive:
            self._end()
        elif self._full:
            self._connections.linger(self)
        else:
            self._connections.idle(self)
            self._next()

    def _write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def upgrade(self, protocol: asyncio.Protocol, answer: bytes) -> bytes:
        """Hand the transport over to another protocol with the answer to its handshake.

        Returns what the client has sent since. Reading is paused.
        """
        self._ending = True
        self._connections.remove(self)
        self.transport.set_protocol(protocol)
        self.transport.write(answer)
        return self._reader.rest()

    @property
    def lost(self) -> bool:
        """Whether the client is gone."""
        return self.transport.is_closing()

    def note_bad(self, error: BadRequest) -> None:
        """Count and log a request of this connection that is not served."""
        self._connections.note_bad(error, self.peer)

    def refuse(self, error: BadRequest) -> None:
        """Answer with one sentence, count and log it, and end the connection."""
        self.note_bad(error)
        self._write(Response.refusing(error).encode(keep_alive=False))
        self._end()

    def give_up(self, error: BadRequest) -> None:
        """End a connection that took too long, with an answer if it has begun a request."""
        if self._reader.begun and not self._ending and not self._full:
            self.refuse(error)
        else:
            self.cut()

    def _end(self) -> None:
        """Say that nothing more comes, and give the client a while to take what has been sent."""
        self._ending = True
        self._reader = HeadReader()
        self._connections.linger(self)
        if not self.transport.is_closing():
            self.transport.write_eof()
            self.transport.resume_reading()

    def close(self) -> None:
        """End the connection once what was sent has been taken."""
        self._ending = True
        self.transport.close()

    def cut(self) -> None:
        """End the connection at once."""
        self._ending = True
        self._connections.remove(self)
        self.transport.abort()
