"""`/subscribe`: a request becomes a WebSocket, and the WebSocket a subscriber.

    GET /subscribe?… ──▶ checked (parameters, limit of connections, handshake) ──▶ 400, 426 or 503
                              │
                              ▼
                    101, a `SocketSink` and a `_Client` ──▶ waits for a hello, with `requireHello`
                              │                                 │
                              ▼                                 ▼
                    a `Subscriber` in delivery, which each `options_update` changes

Everything is checked before the upgrade: a refusal is a plain HTTP response with one sentence that names the
parameter and its value. After the upgrade, problems close the WebSocket with a code and a reason.

`Subscribe` counts a client until it is cleaned up, so that the limit of connections and the end of the server
include clients that have not answered the close frame yet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
from orjson import JSONDecodeError

from jetstream.delivery.delivery import Delivery
from jetstream.delivery.framing import Framing
from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.subscriber import Close, Encoding, Subscriber, SubscriberOptions
from jetstream.errors import InvalidParameter
from jetstream.limits import WebLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.scheduling import Worker
from jetstream.steps import Steps
from jetstream.web.connection import Connection, Handler
from jetstream.web.http import BadRequest, Request, Response
from jetstream.web.parameters import SubscribeRequest, parse_message, parse_request
from jetstream.web.sink import Inbound, SocketSink
from jetstream.web.websocket import accept, wants_upgrade

_HOST_CHARS_SHOWN: Final = 100  # in a refusal

SHUTDOWN: Final = Close(1001, "shutdown", "the server is shutting down: connect again")
FAILED: Final = Close(1011, "error", "the server has failed and is going down: connect again later")
_OUR_FAULT: Final = Close(1011, "error", "the server failed to read a message: connect again")


class _Refused(Exception):
    """A request cannot become a subscription, whatever its parameters; `response` says why."""

    def __init__(self, response: Response) -> None:
        self.response = response
        super().__init__()


class Subscribe:
    """The handlers of the routes to subscribe, which share the limit of connections.

    `buffer_bytes` is the write buffer of each client, `subscribers_max` the limit.
    """

    def __init__(
        self,
        delivery: Delivery,
        metrics: Metrics,
        *,
        buffer_bytes: int,
        subscribers_max: int,
        compressed: Callable[[], Framing | None] | None = None,
        limits: WebLimits = WebLimits(),
    ) -> None:
        # Where each `_Client` subscribes.
        self.delivery = delivery
        self._metrics = metrics
        # More are refused with 503.
        self._subscribers_max = subscribers_max
        # Returns the framing of compressed messages, or None while the dictionary is missing. None: they are
        # not offered.
        self._compressed = compressed
        # Read by each `_Client`.
        self.limits = limits
        # Shared by the sockets of all clients.
        self._inbound = Inbound(buffer_bytes, limits)
        # Clients can cause its lines again and again.
        self._throttled = Throttled(structlog.get_logger(__name__))
        # Every connection since its upgrade, in order, until it is cleaned up after its end.
        self._clients: dict[_Client, None] = {}
        # Cleans up after connections that have ended.
        self._removals = Worker(turn_s=limits.removals_turn_s)
        # Set while there is no client.
        self.empty = asyncio.Event()
        self.empty.set()
        # Set by `close_all`: what new connections are closed with at once.
        self._closed: Close | None = None

    def __len__(self) -> int:
        """How many clients are connected, also those that still owe an `options_update`."""
        return len(self._clients)

    def on(self, wire: str) -> Handler:
        """Return the handler of a route. `wire` is the wire of requests that select none."""
        return partial(self._handle, wire)

    def _handle(self, wire: str, request: Request, connection: Connection) -> Steps[Response | None]:
        """Check a request, and upgrade its connection. A refusal is one sentence. Raises BadRequest."""
        try:
            subscription = yield from parse_request(request)
            self._check(request)
            encoding = Encoding(RENDERERS[subscription.wire or wire], self._framing(subscription))
            answer = accept(request, {"Jetstream-Wire": encoding.renderer.name})
        except InvalidParameter as error:
            self._metrics.refusals.inc()
            return Response.sentence(400, str(error))
        except _Refused as refused:
            self._metrics.refusals.inc()
            return refused.response
        except BadRequest:
            self._metrics.refusals.inc()
            raise
        if not connection.transport.is_closing():  # else the client has gone meanwhile
            self._begin(encoding, connection, subscription, answer)
        return None

    def _framing(self, subscription: SubscribeRequest) -> Framing:
        """Return the framing that a request selects. Raises InvalidParameter or _Refused."""
        if not subscription.compress:
            return WEBSOCKET
        if self._compressed is None:
            raise InvalidParameter("compress", "true", "is not offered here: leave it out for plain JSON")
        framing = self._compressed()
        if framing is None:
            raise self._unavailable("compression is not available yet: try again later, or leave it out")
        return framing

    def _unavailable(self, text: str) -> _Refused:
        """Return the refusal that asks a client to try again."""
        return _Refused(Response.sentence(503, text, {"Retry-After": str(self.limits.retry_after_s)}))

    def _check(self, request: Request) -> None:
        """Raise _Refused for a request that asks for no WebSocket, or comes when there is no room."""
        if not wants_upgrade(request):
            path = request.path
            text = f"{path} is a WebSocket: connect to ws://{request.host[:_HOST_CHARS_SHOWN]}{path}"
            raise _Refused(Response.sentence(426, text, {"Upgrade": "websocket"}))
        if len(self) >= (most := self._subscribers_max):
            raise self._unavailable(
                f"{most} subscribers are connected, and that is the limit: try again later"
            )

    def _begin(
        self, encoding: Encoding, connection: Connection, subscription: SubscribeRequest, answer: bytes
    ) -> None:
        """Upgrade a connection. What the client has sent behind its handshake is read as frames."""
        sink = SocketSink(connection.transport, self._inbound)
        client = _Client(self, sink, encoding, subscription)
        self._clients[client] = None
        self.empty.clear()
        rest = connection.upgrade(sink, answer)
        if self._closed is not None:  # the server is stopping
            sink.close(self._closed)
        client.start()
        sink.start(rest)

    def close_all(self, close: Close) -> None:
        """Close every connection, and from now on each new one as soon as it is upgraded."""
        self._closed = close
        for client in list(self._clients):
            client.sink.close(close)

    def count_failure(self, peer: str) -> None:
        """Count and log the error that is being handled: a fault of the server."""
        self._metrics.failures["message"].inc()
        self._throttled.exception("subscriber: a message could not be read", peer=peer)

    def remove(self, client: _Client) -> None:
        """Remove a client whose connection has ended.

        That takes turns of its own: a network may lose thousands of clients at once.
        """
        self._removals.put(self._remove(client))

    def _remove(self, client: _Client) -> Steps[None]:
        """Do so, in one step."""
        yield from ()
        if client.subscriber is not None:
            self.delivery.remove(client.subscriber)
        close = client.sink.ended
        self._metrics.disconnects[close.label].inc()
        # Clients that leave by themselves get no log line: thousands may do so at once.
        if close.label not in ("client", "lost") and close != SHUTDOWN:
            seconds = round(time.monotonic() - client.sink.opened_at, 1)
            figures = {"seconds": seconds, "bytes": client.sink.written}
            self._throttled.info(f"subscriber: cut, {close.label}", peer=client.sink.peer, **figures)
        del self._clients[client]
        if not self._clients:
            self.empty.set()


class _Client:
    """One connection: its socket, what it asked for, and its subscriber in delivery.

    The sink calls `_on_message` and `_on_end`.
    """

    __slots__ = ("_hello_timeout", "_subscribe", "encoding", "sink", "subscriber", "subscription")

    def __init__(
        self, subscribe: Subscribe, sink: SocketSink, encoding: Encoding, subscription: SubscribeRequest
    ) -> None:
        self._subscribe = subscribe
        self.sink = sink
        # How its events become bytes, by its route and its parameters.
        self.encoding = encoding
        # What its URL asked for. Options may change later, the start does not.
        self.subscription = subscription
        # Set once, after the hello if one is required.
        self.subscriber: Subscriber | None = None
        # Closes the connection when no hello comes; None when none is awaited.
        self._hello_timeout: asyncio.TimerHandle | None = None
        sink.on_message = self._on_message
        sink.on_end = self._on_end

    def start(self) -> None:
        """Subscribe, or wait for a hello."""
        if self.subscription.require_hello:
            timeout_s = self._subscribe.limits.hello_timeout_s
            close = Close(1008, "no_hello", f"no options_update within {timeout_s:g} s, though requireHello")
            self._hello_timeout = asyncio.get_running_loop().call_later(timeout_s, self.sink.close, close)
        else:
            self._apply(self.subscription.options)

    def _on_message(self, message: bytes) -> Steps[None]:
        """Handle a message, in steps. A bad one closes the connection, and the client is told why."""
        try:
            options = yield from parse_message(message)
        except JSONDecodeError as error:
            self.sink.close(Close(1007, "bad_json", f"a message is not JSON: {error}"))
        except InvalidParameter as error:
            self.sink.close(Close(1008, "bad_options", str(error)))
        except Exception:  # noqa: BLE001 - it is logged, and the client is told
            self._subscribe.count_failure(self.sink.peer)
            self.sink.close(_OUR_FAULT)
        else:
            yield
            if options is not None and not self.sink.closing:
                self._stop_timeout()
                self._apply(options)

    def _apply(self, options: SubscriberOptions) -> None:
        """Start to subscribe with the first options that are awaited; change them with later ones."""
        delivery, cursor = self._subscribe.delivery, self.subscription.cursor
        if self.subscriber is None:
            self.subscriber = delivery.subscribe(self.sink, self.encoding, options, cursor)
        else:
            delivery.change(self.subscriber, options)

    def _on_end(self) -> None:
        """Clean up after the connection."""
        self._stop_timeout()
        # These refer to the client, and the client to the sink. Without the cycle, both are freed at once:
        # the garbage collector would stop the event loop for half a second after thousands of connections.
        del self.sink.on_message, self.sink.on_end
        self._subscribe.remove(self)

    def _stop_timeout(self) -> None:
        if self._hello_timeout is not None:
            self._hello_timeout.cancel()
            self._hello_timeout = None
