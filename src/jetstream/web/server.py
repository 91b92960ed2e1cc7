"""The routes, and the listeners they are served on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web

from jetstream.web.listener import Listener

REQUEST_LINE_BYTES_MAX: Final = 1 << 20  # 10,000 DIDs fit
KEEPALIVE_S: Final = 75.0
SHUTDOWN_S: Final = 1.0  # for answers that are under way

Handler = Callable[[web.Request], Any]


class Server:
    """Some routes on one address."""

    def __init__(self, routes: Mapping[str, Handler]) -> None:
        app = web.Application()
        for path, handler in routes.items():
            app.router.add_get(path, handler)
        app.on_response_prepare.append(_allow_every_origin)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            max_line_size=REQUEST_LINE_BYTES_MAX,
            max_field_size=REQUEST_LINE_BYTES_MAX,
            keepalive_timeout=KEEPALIVE_S,
            shutdown_timeout=SHUTDOWN_S,
        )
        self._listener: Listener | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port. Raises OSError when the address cannot be bound."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        self._listener = Listener(host, port, server)
        return self._listener.port

    def stop_accepting(self) -> None:
        """Accept no more connections; those that are there go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        """Accept no more, and end what is left."""
        self.stop_accepting()
        await self._runner.cleanup()


async def _allow_every_origin(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Access-Control-Allow-Origin"] = "*"
