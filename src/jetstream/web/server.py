"""One address that is served: a listener, its HTTP connections, and the routes that answer them.

A connection begins as a `Connection`, which speaks HTTP. It stays one until it ends, or until a request for
a WebSocket hands its transport over to a `SocketSink`.
"""

from __future__ import annotations

from collections.abc import Mapping

from jetstream.limits import WebLimits
from jetstream.metrics import Metrics
from jetstream.web.connection import Connections, Handler
from jetstream.web.listener import Listener
from jetstream.web.pages import Page
from jetstream.web.routes import Routes


class Server:
    """Routes on one address: `pages` by their paths, and `upgrades`, which become WebSockets."""

    def __init__(
        self,
        metrics: Metrics,
        pages: Mapping[str, Page],
        upgrades: Mapping[str, Handler] | None = None,
        limits: WebLimits = WebLimits(),
    ) -> None:
        self._limits = limits
        self._connections = Connections(Routes(pages, upgrades or {}).answer, metrics, limits)
        self._listener: Listener | None = None  # from `start` to `stop_accepting`

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port. Raises OSError when the address cannot be bound."""
        connections = self._connections
        self._listener = Listener(host, port, connections.new, connections.make_room, self._limits)
        return self._listener.port

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
