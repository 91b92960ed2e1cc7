"""The routes: which handler answers a request."""

from __future__ import annotations

from collections.abc import Mapping

from jetstream.scheduling import Steps
from jetstream.web.connection import Connection, Handler
from jetstream.web.pages import Page
from jetstream.web.request import Request
from jetstream.web.response import Response


class Routes:
    """Finds a handler by the path of a request. There is no route for a method other than GET and HEAD.

    `pages` are answered at once. `upgrades` work in steps and may take the connection over.
    """

    def __init__(self, pages: Mapping[str, Page], upgrades: Mapping[str, Handler]) -> None:
        self._pages = pages
        self._upgrades = upgrades

    def answer(self, request: Request, connection: Connection) -> Steps[Response | None]:
        """Answer a request. Returns None when the connection has become a WebSocket."""
        path = request.path
        if path not in self._pages and path not in self._upgrades:
            return Response.sentence(404, "there is nothing here: see / for what there is")
        if request.method not in ("GET", "HEAD"):
            text, allow = f"{path} is only read: use GET", {"Allow": "GET, HEAD"}
            return Response.sentence(405, text, allow, closing=True)
        if path in self._pages:
            return self._pages[path](request)
        return (yield from self._upgrades[path](request, connection))
