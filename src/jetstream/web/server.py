"""The routes, and the address on which they are served.

A connection begins as a `Connection`, which speaks HTTP. It stays one until it ends, or until a request for
a WebSocket hands its transport over to a `SocketSink`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from jetstream.limits import WebLimits
from jetstream.metrics import Metrics
from jetstream.steps import Steps
from jetstream.web.connection import Connection, Connections, Handler
from jetstream.web.listener import Listener
from jetstream.web.pages import Page
from jetstream.web.request import Request
from jetstream.web.response import Response


class Server:
    """One address with its routes: `pages` are answered at once, `upgrades` may become WebSockets."""

    def __init__(
        self,
        metrics: Metrics,
        pages: Mapping[str, Page],
        upgrades: Mapping[str, Handler] | None = None,
        limits: WebLimits = WebLimits(),
    ) -> None:
        # By path.
        self._pages = pages
        # By path.
        self._upgrades = upgrades or {}
        self._limits = limits
        self._connections = Connections(self._answer, metrics, limits)
        # From `start` to `stop_accepting`.
        self._listener: Listener | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port. Raises OSError when the address cannot be bound."""
        connections = self._connections
        new = partial(Connection, connections)
        self._listener = Listener(host, port, new, connections.make_room, self._limits)
        return self._listener.port

    def _answer(self, request: Request, connection: Connection) -> Steps[Response | None]:
        """Answer a request by its path. Returns None when its connection has become a WebSocket."""
        path = request.path
        if path not in self._pages and path not in self._upgrades:
            return Response.sentence(404, "there is nothing here: see / for what there is")
        if request.method not in ("GET", "HEAD"):
            text, allow = f"{path} is only read: use GET", {"Allow": "GET, HEAD"}
            return Response.sentence(405, text, allow, closing=True)
        if path in self._pages:
            return self._pages[path](request)
        return (yield from self._upgrades[path](request, connection))

    def stop_accepting(self) -> None:
        """Accept no more connections. Those that are open go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        """Accept no more connections, and close those that are open.

        Clients have `shutdown_timeout_s` to read their last response.
        """
        self.stop_accepting()
        await self._connections.close()
