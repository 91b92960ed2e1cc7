"""Subscriptions: a request becomes a WebSocket, and the WebSocket a subscriber.

    GET /subscribe?… ──▶ checked (parameters, handshake, limits of connections) ──▶ 400, 426, 429 or 503
                              │
                              ▼
                    101, a `SocketSink` and a `Client` ──▶ waits for a hello, with `requireHello`
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
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import structlog

from jetstream.delivery.delivery import Delivery, Positions
from jetstream.delivery.subscriber import Close
from jetstream.errors import InvalidParameter, LogError
from jetstream.limits import WebLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.scheduling import Worker
from jetstream.steps import Steps
from jetstream.web.address_limits import NO_PLACE, OverLimit, Place
from jetstream.web.client import WEBSOCKET_NAME, Client
from jetstream.web.connection import Answer, Connection, Handler
from jetstream.web.content_coding import IDENTITY
from jetstream.web.dialect import SHUTDOWN, CheckedRequest, Dialect, Refused, over_limit, unavailable
from jetstream.web.did_lists import DidLists
from jetstream.web.http import BadRequest, Request, Response
from jetstream.web.outbound import Outbound
from jetstream.web.positions import position_headers
from jetstream.web.sink import Inbound, SocketSink
from jetstream.web.websocket import accept

_EXAMPLE_CHARS: Final = 200  # of a request that is logged

FAILED: Final = Close(1011, "error", "the server has failed and is going down: connect again later")


class Subscribe:
    """The handlers of the routes to subscribe, which share the limit of connections.

    `buffer_bytes` is the write buffer of each client, `subscribers_max` the limit.

    One object for all endpoints to subscribe. It is what its clients share (`client.Clients`). Everything
    runs on the event loop's thread.
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
        # Where each `Client` subscribes.
        self.delivery = delivery
        # Where refusals, ends and connections are counted.
        self._metrics = metrics
        # Told which lists the filters of clients use.
        self.did_lists = DidLists(limits, time.monotonic) if did_lists is None else did_lists
        # More are refused with 503.
        self._subscribers_max = subscribers_max
        # Read by each `Client`.
        self.limits = limits
        # Shared by the sockets of all clients.
        self._inbound = Inbound(buffer_bytes, limits)
        # Clients can cause its lines again and again.
        self._throttled = Throttled(structlog.get_logger(__name__))
        # Every connection since its upgrade, in order, until it is cleaned up after its end.
        self._clients: dict[Client, None] = {}
        # The ID of the newest one. Where several processes serve, each begins at another number.
        self.newest_id = 0
        # How many are connected to other processes of the server, which share the limit.
        self.elsewhere = 0
        # Called when there is one more or less. It does nothing where nobody must know.
        self.changed: Callable[[], None] = _nothing
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
        """Return the handler of a route that is subscribed to in this dialect.

        The handler is an `upgrade` of `server.Routes`.
        """
        return partial(self._handle, dialect)

    def _handle(self, dialect: Dialect, request: Request, connection: Connection) -> Steps[Answer]:
        """Check a request, and upgrade its connection. A refusal is one sentence. Raises BadRequest.

        A cursor beyond the known end of the log is compared with it once that is known.

        It runs in `Connections.worker`, one request at a time. Parsing takes steps; everything behind it
        takes one.
        """
        try:
            subscription = yield from dialect.parse_request(request)
        except (InvalidParameter, Refused) as error:
            return self._refuse(dialect, _refused(error), request, connection)
        if self.delivery.must_look(subscription.cursor):
            return self._look_and_open(dialect, subscription, request, connection)
        return self._open(dialect, subscription, request, connection)

    async def _look_and_open(
        self, dialect: Dialect, subscription: CheckedRequest, request: Request, connection: Connection
    ) -> Response | None:
        """Learn how far the log is, then go on. Raises BadRequest.

        The position of the newest event is asked of the log, where another process writes it. A log that
        cannot be read is a 503.
        """
        try:
            await self.delivery.look()
        except LogError as error:
            text = f"the log cannot be read now ({error.problem}): try again later"
            refused = unavailable("log_unreadable", text, self.limits)
            return self._refuse(dialect, refused, request, connection)
        return self._open(dialect, subscription, request, connection)

    def _open(
        self, dialect: Dialect, subscription: CheckedRequest, request: Request, connection: Connection
    ) -> Response | None:
        """Upgrade a connection to a subscription. A refusal is one sentence. Raises BadRequest.

        The order matters: first what costs nothing and changes nothing, then the number of subscribers,
        then the place of the address, which must be given back if anything fails after it.
        """
        try:
            positions = self.delivery.positions(subscription.cursor)
            wire = {"Jetstream-Wire": subscription.encoding.renderer.name}
            opening = subscription.opening or _UPGRADE
            answer = opening.accept(request, {**subscription.fields, **wire, **position_headers(positions)})
            if isinstance(answer, Response):
                return answer
            self._check_room()
            place = _enter(connection, replays=subscription.cursor is not None and _is_past(positions))
        except (InvalidParameter, Refused) as error:
            return self._refuse(dialect, _refused(error), request, connection)
        except BadRequest:
            self._metrics.refusals["handshake"].inc()  # logged where it is answered
            raise
        # After this, nothing can fail: the place belongs to the client.
        if connection.transport.is_closing():  # the client has gone meanwhile
            place.leave()
        else:
            sink = opening.open(connection, self._inbound)
            client = Client(self, sink, dialect, subscription, place, connection.user)
            self._begin(client, connection, answer)
        return None

    def _refuse(
        self, dialect: Dialect, refused: Refused, request: Request, connection: Connection
    ) -> Response:
        """Count and log a refusal, and return the response.

        The log line has the beginning of the query. A token was removed from it before.
        """
        self._metrics.refusals[refused.reason].inc()
        example = f"{request.path}?{request.query}"[:_EXAMPLE_CHARS]
        self._throttled.info(
            f"subscription: refused, {refused.reason}",
            problem=refused.text,
            example=example,
            peer=connection.peer,
        )
        return dialect.refusal(refused)

    @property
    def full(self) -> str | None:
        """A sentence that says that there is no room for another subscriber; None while there is.

        It counts the clients of all processes of a server. `/health` has the sentence, too, as a
        condition.
        """
        most = self._subscribers_max
        if len(self) + self.elsewhere < most:
            return None
        return f"{most} subscribers are connected, and that is the limit"

    def _check_room(self) -> None:
        """Raise Refused when there is no room for another subscriber."""
        if (text := self.full) is not None:
            raise unavailable("full", f"{text}: try again later", self.limits)

    def _begin(self, client: Client, connection: Connection, answer: bytes) -> None:
        """Hand a connection over to a client. What the client has sent behind its request is read there.

        The metrics are counted back in `_remove`.
        """
        self.newest_id += 1
        client.id = self.newest_id
        self._clients[client] = None
        self.changed()
        self._metrics.compressions[client.subscription.compression].inc()
        self.empty.clear()
        rest = connection.upgrade(client.sink, answer)
        if self._closed is None:
            client.start()
        else:  # the server is stopping, and nothing is delivered any more
            client.close(self._closed)
        client.sink.start(rest)

    def close_all(self, close: Close) -> None:
        """Close every connection, and from now on each new one as soon as it is upgraded.

        The caller waits for `empty`. Each client has `close_timeout_s` seconds to answer.
        """
        self._closed = close
        for client in list(self._clients):
            client.close(close)

    async def drain(self, seconds: float, close: Close) -> None:
        """Close every connection, the oldest first and evenly over some seconds; return when none is left.

        New connections are served meanwhile, and are closed in their turn.

        Another server gets their reconnections evenly, and not all at once. A step takes `drain_step_s`
        seconds.
        """
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            open_ = [client for client in self._clients if not client.sink.closing]
            if not open_:
                return
            step_s = min(left_s, self.limits.drain_step_s)
            for client in open_[: math.ceil(len(open_) * step_s / left_s)]:
                client.close(close)
            await asyncio.sleep(step_s)

    def clients(self) -> list[Client]:
        """Return all clients, in the order of their IDs.

        The list is a copy: clients may go while it is read.
        """
        return list(self._clients)

    def has(self, client: Client) -> bool:
        """Tell whether a client is still there."""
        return client in self._clients

    def note_kicked(self, count: int, reason: str) -> None:
        """Log that an operator has disconnected clients.

        `reason` is what they were told.
        """
        self._throttled.info("subscribers: disconnected by an operator", count=count, reason=reason)

    def count_failure(self, peer: str) -> None:
        """Count and log the error that is being handled: a fault of the server.

        To be called where an exception is handled: the traceback goes to the log.
        """
        self._metrics.failures["message"].inc()
        self._throttled.exception("subscriber: a message could not be read", peer=peer)

    def remove(self, client: Client) -> None:
        """Remove a client whose connection has ended.

        That takes turns of its own: a network may lose thousands of clients at once.
        """
        self._removals.put(self._remove(client))

    def _remove(self, client: Client) -> Steps[None]:
        """Remove a client, in one step of its own.

        It leaves delivery and the metrics, and is logged if the server has cut it off.
        """
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
        self.changed()
        if not self._clients:
            self.empty.set()


def _refused(error: InvalidParameter | Refused) -> Refused:
    """Return the refusal of a request that cannot become a subscription.

    A parameter that cannot be used is a 400.
    """
    if isinstance(error, Refused):
        return error
    return Refused("parameter", 400, "InvalidRequest", str(error))


def _is_past(positions: Positions) -> bool:
    """Tell whether a subscription begins with an event that is stored.

    Such a subscription is a replay, which the limits of an address count. One whose cursor is the next
    position is not.
    """
    return positions.latest is not None and positions.cursor <= positions.latest


def _enter(connection: Connection, *, replays: bool) -> Place:
    """Take a place of the limits of an address. Raises Refused if there is none.

    The visit of a client behind a proxy begins here.

    `replays` tells whether a replay is needed, too. The caller must end what it gets (`Place.leave`). The
    connection keeps its own visit if this raises.
    """
    visit = connection.visit
    if visit is None and connection.peer != connection.origin:
        visit = connection.peers.visit(connection.peer)
    if visit is None:
        return NO_PLACE
    replay = visit.refusal or (visit.replay() if replays else None)
    if not isinstance(replay, OverLimit):
        return Place(visit, replay)
    if visit is not connection.visit:
        visit.leave()
    raise over_limit(replay)


# The default of `changed`.
def _nothing() -> None:
    pass


class _Upgrade:
    """The upgrade of a connection to a WebSocket.

    It is the opening of a request that has none of its own (`CheckedRequest.opening`).
    """

    coding: Final = IDENTITY
    transport: Final = WEBSOCKET_NAME

    def accept(self, request: Request, fields: Mapping[str, str]) -> bytes:
        """Accept a handshake. Raises BadRequest."""
        return accept(request, fields)

    def open(self, connection: Connection, inbound: Inbound) -> Outbound:
        """Return the socket of the connection."""
        return SocketSink(connection.transport, inbound, connection.peer)


_UPGRADE: Final = _Upgrade()
