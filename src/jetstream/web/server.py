"""The routes, and the listeners they are served on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from jetstream.metrics import Metrics
from jetstream.web.connection import Connections, Upgrade
from jetstream.web.listener import Listener
from jetstream.web.pages import Page

SHUTDOWN_S: Final = 1.0  # for answers that have not been taken


class Server:
    """Some routes on one address: pages, and those that become WebSockets."""

    def __init__(
        self, metrics: Metrics, pages: Mapping[str, Page], upgrades: Mapping[str, Upgrade] | None = None
    ) -> None:
        self._connections = Connections(pages, upgrades or {}, metrics)
        self._listener: Listener | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port. Raises OSError when the address cannot be bound."""
        self._listener = Listener(host, port, self._connections, self._connections.make_room)
        return self._listener.port

    def stop_accepting(self) -> None:
        """Accept no more connections; those that are there go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        """Accept no more, and end what is left."""
        self.stop_accepting()
        await self._connections.close(SHUTDOWN_S)
