"""Subscriptions: a request becomes a WebSocket, and the WebSocket a subscriber.

    GET /subscribe?… ──▶ checked (parameters, handshake, limits of connections) ──▶ 400, 426, 429 or 503
                              │
                              ▼
                    101, a `SocketSink` and a `_Client` ──▶ waits for a hello, with `requireHello`
                              │                                 │
                              ▼                                 ▼
                    a `Subscriber` in delivery, which each `options_update` changes

Everything is checked before the upgrade: a refusal is an HTTP response with one sentence that names the
parameter and its value. After the upgrade, problems close the WebSocket with a code and a reason. What
depends on the endpoint is left to its `Dialect`. At `/events` there is no upgrade: see `event_stream`.

`Subscribe` counts a client until it is cleaned up, so that the limit of connections and the end of the server
include clients that have not answered the close frame yet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Final

import structlog

from jetstream.delivery.delivery import Delivery, Positions
from jetstream.delivery.subscriber import Close, Subscriber, SubscriberOptions
from jetstream.errors import InvalidParameter
from jetstream.limits import WebLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.scheduling import Worker
from jetstream.steps import Steps
from jetstream.web.address_limits import NO_PLACE, OverLimit, Place
from jetstream.web.connection import Connection, Handler
from jetstream.web.content_coding import IDENTITY
from jetstream.web.dialect import SHUTDOWN, Dialect, Refused, Subscription, over_limit, unavailable
from jetstream.web.did_lists import DidList, DidLists
from jetstream.web.http import BadRequest, Request, Response
from jetstream.web.outbound import Outbound
from jetstream.web.parameters import OptionsUpdate
from jetstream.web.positions import position_headers
from jetstream.web.sink import Inbound, SocketSink
from jetstream.web.websocket import Breach, accept

_EXAMPLE_CHARS: Final = 200  # of a request that is logged

FAILED: Final = Close(1011, "error", "the server has failed and is going down: connect again later")
_OUR_FAULT: Final = Close(1011, "error", "the server failed to read a message: connect again")


class Subscribe:
    """The handlers of the routes to subscribe, which share the limit of connections.

    `buffer_bytes` is the write buffer of each client, `subscribers_max` the limit. `now_us` gives unix
    microseconds, from which ages in parameters count.
    """

    def __init__(
        self,
        delivery: Delivery,
        metrics: Metrics,
        *,
        buffer_bytes: int,
        subscribers_max: int,
        did_lists: DidLists | None = None,
        limits: WebLimits = WebLimits(),
    ) -> None:
        # Where each `_Client` subscribes.
        self.delivery = delivery
        self._metrics = metrics
        # Told which lists the filters of clients use.
        self.did_lists = DidLists(limits, time.monotonic) if did_lists is None else did_lists
        # More are refused with 503.
        self._subscribers_max = subscribers_max
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
        # Set by `close_all`: what new connections are closed with at once, instead of being served.
        self._closed: Close | None = None

    def __len__(self) -> int:
        """How many clients are connected, also those that still owe an `options_update`."""
        return len(self._clients)

    def on(self, dialect: Dialect) -> Handler:
        """Return the handler of a route that is subscribed to in this dialect."""
        return partial(self._handle, dialect)

    def _handle(self, dialect: Dialect, request: Request, connection: Connection) -> Steps[Response | None]:
        """Check a request, and upgrade its connection. A refusal is one sentence. Raises BadRequest."""
        try:
            subscription = yield from dialect.parse_request(request)
            positions = self.delivery.positions(subscription.cursor)
            fields = {"Jetstream-Wire": subscription.encoding.renderer.name, **position_headers(positions)}
            opening = subscription.opening or _UPGRADE
            answer = opening.accept(request, {**subscription.fields, **fields})
            if isinstance(answer, Response):
                return answer
            self._check_room()
            place = _enter(connection, replays=subscription.cursor is not None and _is_past(positions))
        except InvalidParameter as error:
            refused = Refused("parameter", 400, "InvalidRequest", str(error))
            return self._refuse(dialect, refused, request, connection)
        except Refused as refused:
            return self._refuse(dialect, refused, request, connection)
        except BadRequest:
            self._metrics.refusals["handshake"].inc()  # logged where it is answered
            raise
        if connection.transport.is_closing():  # the client has gone meanwhile
            place.leave()
        else:
            sink = opening.open(connection, self._inbound)
            self._begin(_Client(self, sink, dialect, subscription, place), connection, answer)
        return None

    def _refuse(
        self, dialect: Dialect, refused: Refused, request: Request, connection: Connection
    ) -> Response:
        """Count and log a refusal, and return the response."""
        self._metrics.refusals[refused.reason].inc()
        example = f"{request.path}?{request.query}"[:_EXAMPLE_CHARS]
        self._throttled.info(
            f"subscription: refused, {refused.reason}",
            problem=refused.text,
            example=example,
            peer=connection.peer,
        )
        return dialect.refusal(refused)

    def _check_room(self) -> None:
        """Raise Refused when there is no room for another subscriber."""
        if len(self) >= (most := self._subscribers_max):
            text = f"{most} subscribers are connected, and that is the limit: try again later"
            raise unavailable("full", text, self.limits)

    def _begin(self, client: _Client, connection: Connection, answer: bytes) -> None:
        """Hand a connection over to a client. What the client has sent behind its request is read there."""
        self._clients[client] = None
        self._metrics.compressions[client.subscription.compression].inc()
        self.empty.clear()
        rest = connection.upgrade(client.sink, answer)
        if self._closed is not None:  # the server is stopping
            client.close(self._closed)
        client.start()
        client.sink.start(rest)

    def close_all(self, close: Close) -> None:
        """Close every connection, and from now on each new one as soon as it is upgraded."""
        self._closed = close
        for client in list(self._clients):
            client.close(close)

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
        if close.label not in ("client", "lost", "done", SHUTDOWN.label):
            seconds = round(time.monotonic() - client.sink.opened_at, 1)
            figures = {"seconds": seconds, "bytes": client.sink.written}
            self._throttled.info(f"subscriber: cut, {close.label}", peer=client.sink.peer, **figures)
        self._metrics.compressions[client.subscription.compression].dec()
        del self._clients[client]
        if not self._clients:
            self.empty.set()


def _is_past(positions: Positions) -> bool:
    """Tell whether a subscription begins with an event that is stored."""
    return positions.latest is not None and positions.cursor <= positions.latest


def _enter(connection: Connection, *, replays: bool) -> Place:
    """Take a place of the limits of an address. Raises Refused if there is none.

    The visit of a client behind a proxy begins here.
    """
    visit = connection.visit or connection.peers.visit(connection.peer)
    if visit is None:
        return NO_PLACE
    replay = visit.refusal or (visit.replay() if replays else None)
    if not isinstance(replay, OverLimit):
        return Place(visit, replay)
    if visit is not connection.visit:
        visit.leave()
    raise over_limit(replay)


class _Upgrade:
    """The upgrade of a connection to a WebSocket."""

    coding: Final = IDENTITY

    def accept(self, request: Request, fields: Mapping[str, str]) -> bytes:
        """Accept a handshake. Raises BadRequest."""
        return accept(request, fields)

    def open(self, connection: Connection, inbound: Inbound) -> Outbound:
        """Return the socket of the connection."""
        return SocketSink(connection.transport, inbound, connection.peer)


_UPGRADE: Final = _Upgrade()


class _Client:
    """One connection: its socket, what it asked for, and its subscriber in delivery.

    The sink calls `_on_message`, `_on_end` and `_resume_at`.
    """

    __slots__ = (
        "_dialect",
        "_did_list",
        "_hello_timeout",
        "_place",
        "_subscribe",
        "sink",
        "subscriber",
        "subscription",
    )

    def __init__(
        self,
        subscribe: Subscribe,
        sink: Outbound,
        dialect: Dialect,
        subscription: Subscription,
        place: Place,
    ) -> None:
        self._subscribe = subscribe
        self.sink = sink
        # What it has of the limits of its address, until its end.
        self._place = place
        # Reads its messages, and says how it is closed.
        self._dialect = dialect
        # What its URL asked for. The options are forgotten when they are in force or replaced: a large
        # filter must not stay here when it is not used any more.
        self.subscription = subscription
        # The uploaded list that the filter in force uses; changed with it.
        self._did_list: DidList | None = None
        # Set once, after the hello if one is required.
        self.subscriber: Subscriber | None = None
        # Closes the connection when no hello comes; None when none is awaited.
        self._hello_timeout: asyncio.TimerHandle | None = None
        sink.on_message = self._on_message
        sink.on_end = self._on_end
        sink.resume_at = self._resume_at

    def start(self) -> None:
        """Subscribe, or wait for a hello."""
        asked = self.subscription
        self.subscription = asked._replace(options=SubscriberOptions(), did_list=None)
        if greeting := asked.greeting:
            self.sink.controls += len(greeting)
            self.sink.write(greeting)
        if asked.require_hello:
            timeout_s = self._subscribe.limits.hello_timeout_s
            text = f"no options_update within {timeout_s:g} s: send one, or leave requireHello out"
            close = Close(1008, "no_hello", text)
            self._hello_timeout = asyncio.get_running_loop().call_later(timeout_s, self.sink.close, close)
        else:
            self._apply(OptionsUpdate(asked.options, None, asked.did_list))

    def close(self, close: Close) -> None:
        """Close the connection, in the words of its dialect."""
        self.sink.close(self._dialect.shutdown if close == SHUTDOWN else close)

    def _on_message(self, message: bytes) -> Steps[None]:
        """Handle a message, in steps. A bad one closes the connection, and the client is told why."""
        try:
            update = yield from self._dialect.parse_message(message)
        except Breach as breach:
            self.sink.close(breach.close)
        except Exception:  # noqa: BLE001 - it is logged, and the client is told
            self._subscribe.count_failure(self.sink.peer)
            self.sink.close(_OUR_FAULT)
        else:
            yield
            if update is not None and not self.sink.closing:
                self._stop_timeout()
                self._apply(update)

    def _apply(self, update: OptionsUpdate) -> None:
        """Start to subscribe with the first options that are awaited; change them with later ones."""
        delivery, asked = self._subscribe.delivery, self.subscription
        self._use_list(update.did_list)
        heartbeat_s = update.heartbeat_s or asked.heartbeat_s
        if self.subscriber is None:
            self.subscriber = delivery.subscribe(
                self.sink,
                asked.encoding,
                update.options,
                asked.cursor,
                bounds=asked.bounds,
                heartbeat_s=heartbeat_s,
                replay=self._place.replay,
            )
        else:
            delivery.change(self.subscriber, update.options, heartbeat_s)

    def _use_list(self, did_list: DidList | None) -> None:
        """Use another list, or the same, or none."""
        lists, before = self._subscribe.did_lists, self._did_list
        self._did_list = did_list
        if did_list is not None:
            lists.use(did_list)
        if before is not None:
            lists.release(before)

    def _resume_at(self) -> int:
        """Return the cursor with which the client goes on; before it has begun, where it would begin."""
        delivery = self._subscribe.delivery
        if self.subscriber is None:
            return delivery.positions(self.subscription.cursor).cursor
        return delivery.resume_at(self.subscriber)

    def _on_end(self) -> None:
        """Clean up after the connection."""
        self._stop_timeout()
        self._use_list(None)
        self._place.leave()
        self._subscribe.remove(self)

    def _stop_timeout(self) -> None:
        if self._hello_timeout is not None:
            self._hello_timeout.cancel()
            self._hello_timeout = None
