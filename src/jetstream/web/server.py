"""One address, and the routes that are served on it.

A connection begins as a `Connection`, which speaks HTTP. It stays one until it ends, or until a request for
a WebSocket hands its transport over to a `SocketSink`.

Each request passes these checks before a handler sees it:

    Request ──▶ limits of its address   429, and below `/xrpc/` 503; the connection ends
            ──▶ guard of its path       401 or 403
            ──▶ tree, path, method      404 or 405
            ──▶ page, upgrade or upload

A token in the query is removed before the handler is called, so that no response and no line of the log
can have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from jetstream.limits import WebLimits
from jetstream.metrics import Metrics
from jetstream.steps import Steps
from jetstream.web.address_limits import OverLimit
from jetstream.web.arrival import Arrivals
from jetstream.web.connection import Answer, Connection, Handler
from jetstream.web.connections import Connections
from jetstream.web.guard import Denied, Guard
from jetstream.web.http import READ, Request, Response, other_method
from jetstream.web.listener import HandOver, Listener, as_accepted
from jetstream.web.methods import PREFIX
from jetstream.web.pages import Page
from jetstream.web.peers import Peers
from jetstream.web.tokens import PARAMETER, without_token
from jetstream.web.xrpc import error_response

if TYPE_CHECKING:
    from ssl import SSLContext

# The methods of an upload, beside OPTIONS.
_WRITE: Final = ("POST",)


class Upload(NamedTuple):
    """A route that is only written to, with POST: its handler, and the most bytes of a body.

    `Connection` refuses a longer body with 413, and one without a length with 411, before the handler is
    called.
    """

    handler: Handler
    body_bytes_max: int


class Routes(NamedTuple):
    """What is served, by path.

    Paths have no slash at their end; one in a request does not matter (`Request.route`). Trees answer all
    requests below a path, of any method; their paths end in a slash, and they are asked before all others.
    Nothing changes after the server was made.
    """

    # Answered at once, by one call for GET and HEAD. It holds the event loop, so it takes a few
    # milliseconds at most.
    pages: Mapping[str, Page]
    # The same methods, answered in steps or by a coroutine. The handler may keep the connection: a
    # WebSocket, a stream.
    upgrades: Mapping[str, Handler] = MappingProxyType({})
    # By the beginning of the path.
    trees: Mapping[str, Handler] = MappingProxyType({})
    # For POST only.
    uploads: Mapping[str, Upload] = MappingProxyType({})
    # Asked before the handler of a path. They are of single paths, also below a tree. A path without one
    # is open to all.
    guards: Mapping[str, Guard] = MappingProxyType({})


class Server:
    """One address with its routes. `tls` returns what handshakes are made with now; None: there is no TLS.

    `peers` knows which proxies are trusted, and the limits of each client address. Everything is used on
    the event loop's thread. Nothing is listened on before `start`.
    """

    def __init__(
        self,
        metrics: Metrics,
        routes: Routes,
        limits: WebLimits = WebLimits(),
        peers: Peers = Peers(),
        tls: Callable[[], SSLContext] | None = None,
    ) -> None:
        # What answers each path, as given.
        self._routes = routes
        # Every path, with the methods that it is for.
        read, write = (*routes.pages, *routes.upgrades), routes.uploads
        self._methods = dict.fromkeys(read, READ) | dict.fromkeys(write, _WRITE)
        # The head reader refuses a body for any other path, and so for all trees.
        bodies = {path: upload.body_bytes_max for path, upload in routes.uploads.items()}
        # Those of this address that speak HTTP. A subscription is not among them.
        self._connections = Connections(metrics, limits)
        # Makes the protocol of a new connection.
        self._new = partial(Connection, self._connections, self._answer, peers, bodies)
        # Makes connections of sockets, where something comes before HTTP.
        self._arrivals: Arrivals | None = None
        if tls is not None or peers.proxy_protocol:
            self._arrivals = Arrivals(self._connections, peers, self._new, tls)
        # From `start` to `stop_accepting`.
        self._listener: Listener | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port. Raises OSError when the address cannot be bound.

        `host` may be empty, for every address; port 0 is any free port. Called once; not at all where
        another process accepts and passes sockets on (`supervisor`).
        """
        connections = self._connections
        self._listener = Listener(host, port, self.hand_over, connections.make_room, connections.limits)
        return self._listener.port

    @property
    def hand_over(self) -> HandOver:
        """What makes a connection of a socket that was accepted, here or by another process."""
        return as_accepted(self._new) if self._arrivals is None else self._arrivals.hand_over

    @property
    def connections(self) -> Connections:
        """Those that speak HTTP.

        Their number is what the other processes of a server are told.
        """
        return self._connections

    def _answer(self, request: Request, connection: Connection) -> Steps[Answer]:
        """Answer a request by its path. Returns None when its connection has become a WebSocket."""
        # A refused connection is answered as cheaply as possible, whatever it asks for.
        if connection.visit is not None and (over := connection.visit.refusal) is not None:
            self._connections.count_over_limit(over, connection.peer)
            return _over_limit(over, request)
        guard = self._routes.guards.get(request.route)
        # Browsers send OPTIONS before the request of another site's page, and never with a token (the
        # Fetch standard, CORS-preflight fetch).
        if guard is not None and request.method != "OPTIONS":
            found = guard.check(request, connection.origin)
            if isinstance(found, Denied):
                self._connections.count_denied(found, request, connection.peer)
                return _denied(found, request)
            connection.user = found
        if PARAMETER in request.query:
            request = request._replace(query=without_token(request.query))
        return (yield from self._route(request, connection))

    def _route(self, request: Request, connection: Connection) -> Steps[Answer]:
        """Answer a request by its path, in steps. Returns None when its connection has been taken over.

        A tree takes every method. Another path answers OPTIONS with its methods, and any method that it is
        not for with 405. An unknown path is a 404 that lists those there are.
        """
        path, routes = request.route, self._routes
        for start, tree in routes.trees.items():
            if path.startswith(start):
                return (yield from tree(request, connection))
        methods = self._methods.get(path)
        if methods is None:
            there = ", ".join(sorted({*self._methods, *routes.trees}))
            # A body, which another method may have, is not read: it must not be taken for the next request.
            closing = request.method not in (*READ, "OPTIONS")
            return Response.sentence(404, f"there is nothing here: there are {there}", closing=closing)
        refused = other_method(request, methods)
        if refused is not None:
            return refused
        if path in routes.pages:
            return routes.pages[path](request)
        handler = routes.uploads[path].handler if path in routes.uploads else routes.upgrades[path]
        return (yield from handler(request, connection))

    def stop_accepting(self) -> None:
        """Accept no more connections. Those that are open go on.

        Later calls do nothing.
        """
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        """Accept no more connections, and close those that are open.

        Clients have `shutdown_timeout_s` to read their last response. Connections that became
        subscriptions are not closed here: `Subscribe` has them.
        """
        self.stop_accepting()
        await self._connections.close()


def _denied(denied: Denied, request: Request) -> Response:
    """Return the response to a request that a guard does not let pass.

    A body, which another method may have, is not read: it must not be taken for the next request.

    Methods of XRPC are refused with JSON, which their clients expect; all others with a sentence.
    """
    closing = request.method not in READ
    if request.path.startswith(PREFIX):
        error = error_response(denied.status, "AuthRequired", denied.text, denied.fields)
        return error._replace(closing=closing)
    return Response.sentence(denied.status, denied.text, denied.fields, closing=closing)


def _over_limit(over: OverLimit, request: Request) -> Response:
    """Return the response to a connection whose address is over a limit. It is the only one."""
    later = {"Retry-After": str(over.retry_after_s)}
    if request.path.startswith(PREFIX):  # clients of these methods are finished after a 429
        return error_response(503, "ServiceUnavailable", over.text, later)._replace(closing=True)
    return Response.sentence(429, over.text, later, closing=True)
