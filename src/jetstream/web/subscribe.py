"""`/subscribe`: a WebSocket as a subscriber of the hub."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Final

import structlog

from jetstream.delivery.publisher import Hub
from jetstream.delivery.subscriber import Close, Subscriber, SubscriberOptions
from jetstream.delivery.wires import Wire
from jetstream.errors import InvalidParameter
from jetstream.eventlog import LogReader
from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.scheduling import Line, Steps
from jetstream.web.connection import Connection, Upgrade
from jetstream.web.parameters import NotJson, SubscribeRequest, message_steps, query_steps, read_query
from jetstream.web.request import BadRequest, Request
from jetstream.web.response import Response
from jetstream.web.sink import Inbound, SocketSink
from jetstream.web.websocket import VERSION, accept, wants_upgrade

HELLO_TIMEOUT_S: Final = 60.0
RETRY_AFTER_S: Final = 10
ENDS_PER_TURN: Final = 32  # when a network loses thousands of clients at once: a millisecond
HOST_CHARS_SHOWN: Final = 100

SHUTDOWN: Final = Close(1001, "shutdown", "the server is shutting down: connect again")
FAILED: Final = Close(1011, "error", "the server has failed and is going down: connect again later")
NO_HELLO: Final = Close(
    1008, "no_hello", f"no options_update within {HELLO_TIMEOUT_S:.0f} s, though requireHello"
)
_OUR_FAULT: Final = Close(1011, "error", "the server failed to read a message: connect again")

logger = structlog.get_logger(__name__)


class Subscribe:
    """The handlers of all wires' routes, which share the limit of connections."""

    def __init__(
        self,
        hub: Hub,
        log: LogReader,
        metrics: Metrics,
        *,
        buffer_bytes: int,
        subscribers_max: int,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
    ) -> None:
        self._hub = hub
        self._log = log
        self._metrics = metrics
        self._buffer_bytes = buffer_bytes
        self._subscribers_max = subscribers_max
        self._hello_timeout_s = hello_timeout_s
        self._inbound = Inbound()
        self._throttled = Throttled(logger)
        self._clients: dict[_Client, None] = {}
        self._ending = Line(ENDS_PER_TURN)
        self._leaving: set[asyncio.Task[None]] = set()  # the ends of connections that wait in that line
        self._empty = asyncio.Event()
        self._empty.set()
        self._last_word: Close | None = None  # set by `close_all`: what later connections are closed with

    def __len__(self) -> int:
        """How many are connected, with those that have not sent an options_update yet."""
        return len(self._clients)

    def on(self, wire: Wire) -> Upgrade:
        """Return the handler of one wire."""
        return partial(self._handle, wire)

    def _handle(self, wire: Wire, request: Request, connection: Connection) -> Steps[Response | None]:
        """Check everything, and upgrade."""
        try:
            query = yield from read_query(request.query)
            subscription = yield from query_steps(query, request.headers)
            refusal = self._refusal(request)
            answer = b"" if refusal else accept(request)
        except InvalidParameter as error:
            refusal = Response.sentence(400, str(error))
        except BadRequest as error:
            self._metrics.refusals.inc()
            connection.note_bad(error)
            headers = {"Upgrade": "websocket", "Sec-WebSocket-Version": VERSION}
            more = headers if error.status == 426 else {}
            return Response.sentence(error.status, error.text, more, closing=True)
        if refusal is not None:
            self._metrics.refusals.inc()
            return refusal
        if not connection.lost:
            self._begin(wire, connection, subscription, answer)
        return None

    def _refusal(self, request: Request) -> Response | None:
        if not wants_upgrade(request):
            path = request.path
            text = f"{path} is a WebSocket: connect to ws://{request.host[:HOST_CHARS_SHOWN]}{path}"
            return Response.sentence(426, text, {"Upgrade": "websocket"})
        if len(self) >= self._subscribers_max:
            text = (
                f"{self._subscribers_max} subscribers are connected, and that is the limit: try again later"
            )
            return Response.sentence(503, text, {"Retry-After": str(RETRY_AFTER_S)})
        return None

    def _begin(
        self, wire: Wire, connection: Connection, subscription: SubscribeRequest, answer: bytes
    ) -> None:
        sink = SocketSink(connection.transport, self._buffer_bytes, self._inbound)
        client = _Client(self, sink, wire, subscription)
        self._clients[client] = None
        self._empty.clear()
        rest = connection.upgrade(sink, answer)
        if self._last_word is not None:
            sink.close(self._last_word)
        client.begin(self._hello_timeout_s)
        sink.begin(rest)

    def close_all(self, close: Close) -> None:
        """End every connection, those without a hello too, and let none begin."""
        self._last_word = close
        for client in list(self._clients):
            client.sink.close(close)

    async def wait_empty(self) -> None:
        """Return once there is no connection."""
        await self._empty.wait()

    def subscriber(self, client: _Client, options: SubscriberOptions) -> Subscriber:
        """Begin to serve a client from where it asked."""
        lane, cursor = self._hub.lane(), client.subscription.cursor
        # A cursor beyond the tip is the tip's, not the lane's: another lane may have sent what is below it.
        position = lane.position if cursor is None else min(cursor, self._log.tip + 1)
        position = max(position, self._log.floor)
        now = asyncio.get_running_loop().time()
        subscriber = Subscriber(client.sink, client.wire, options, lane, position, now)
        self._hub.add(subscriber)
        return subscriber

    def change(self, subscriber: Subscriber, options: SubscriberOptions) -> None:
        """Judge a subscriber's events by new options from now on."""
        self._hub.change(subscriber, options)

    def note_failure(self, peer: str) -> None:
        """Log an error of ours, which clients may cause again and again."""
        self._metrics.failures.labels("message").inc()
        self._throttled.exception("subscriber: a message could not be read", peer=peer)

    def end(self, client: _Client) -> None:
        """Forget a client whose connection has ended, a few in one turn of the loop."""
        task = asyncio.get_running_loop().create_task(self._let_go(client))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _let_go(self, client: _Client) -> None:
        await self._ending.turn()
        if client.subscriber is not None:
            self._hub.remove(client.subscriber)
        close = client.sink.ended
        self._metrics.ended[close.label].inc()
        # Thousands may leave by themselves at once; one that the server ends is worth a line.
        if close.label not in ("client", "lost") and close != SHUTDOWN:
            seconds = round(time.monotonic() - client.sink.began, 1)
            figures = {"seconds": seconds, "bytes": client.sink.written}
            self._throttled.info(f"subscriber: cut, {close.label}", peer=client.sink.peer, **figures)
        del self._clients[client]
        if not self._clients:
            self._empty.set()


class _Client:
    """One connection: its socket, what it asked for, and its place in the hub once it has said hello."""

    __slots__ = ("_hello", "_subscribe", "sink", "subscriber", "subscription", "wire")

    def __init__(
        self, subscribe: Subscribe, sink: SocketSink, wire: Wire, subscription: SubscribeRequest
    ) -> None:
        self._subscribe = subscribe
        self.sink = sink
        self.wire = wire
        self.subscription = subscription
        self.subscriber: Subscriber | None = None
        self._hello: asyncio.TimerHandle | None = None  # closes the connection when no hello comes
        sink.on_message = self._on_message
        sink.on_end = self._on_end

    def begin(self, hello_timeout_s: float) -> None:
        """Subscribe, or wait for a hello."""
        if self.subscription.require_hello:
            loop = asyncio.get_running_loop()
            self._hello = loop.call_later(hello_timeout_s, self.sink.close, NO_HELLO)
        else:
            self.subscriber = self._subscribe.subscriber(self, self.subscription.options)

    def _on_message(self, message: bytes) -> Steps[None]:
        try:
            options = yield from message_steps(message)
        except NotJson as error:
            self.sink.close(Close(1007, "bad_json", f"a message is not JSON: {error}"))
        except InvalidParameter as error:
            self.sink.close(Close(1008, "bad_options", str(error)))
        except Exception:  # noqa: BLE001 - it is logged, and the client is told
            self._subscribe.note_failure(self.sink.peer)
            self.sink.close(_OUR_FAULT)
        else:
            if options is not None and not self.sink.closing:
                yield
                self._take(options)

    def _take(self, options: SubscriberOptions) -> None:
        if self.sink.closing:
            return
        if self._hello is not None:
            self._hello.cancel()
            self._hello = None
        if self.subscriber is None:
            self.subscriber = self._subscribe.subscriber(self, options)
        else:
            self._subscribe.change(self.subscriber, options)

    def _on_end(self) -> None:
        if self._hello is not None:
            self._hello.cancel()
        # No cycle of references is left, so that a thousand ended connections are no garbage to collect.
        del self.sink.on_message, self.sink.on_end
        self._subscribe.end(self)
