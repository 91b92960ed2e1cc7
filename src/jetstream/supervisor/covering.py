"""The routes of an edge that answer for the whole server.

What needs all processes, an edge asks the supervisor, which may in turn ask every edge, this one too:

    /metrics  /health  /ready  /status.json  and the text at /      what all processes say together
    /subscribers.json  /subscribers/kick                            the subscribers of all edges
    /filters                                                        every edge reads the list

Many clients may ask for the same figures at once. They get the answer to one question.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

import orjson

from jetstream.errors import InvalidParameter
from jetstream.status import PdsStatus, Status, UpstreamStatus
from jetstream.steps import Steps
from jetstream.supervisor.view import HEALTH, KICK, LIST, METRICS, READY, STATUS
from jetstream.web.connection import Answer, Connection, Handler
from jetstream.web.http import Request, Response
from jetstream.web.pages import Page, accepted
from jetstream.web.server import Routes, Upload
from jetstream.web.subscribers import page_of

_INTEGER_MAX: Final = (1 << 63) - 1  # of a message
_FIGURES: Final = {"/metrics": METRICS, "/health": HEALTH, "/ready": READY, "/status.json": STATUS}


class Ask(Protocol):
    """Asks the supervisor."""

    def __call__(
        self, kind: str, fields: Mapping[str, Any], body: bytes = b""
    ) -> Coroutine[Any, Any, Response]:
        """Return the response that its answer is."""


class Covering:
    """Makes the routes of one process those of all. `upload` has every edge read a list of DIDs."""

    def __init__(self, ask: Ask, upload: Callable[[bytes], Coroutine[Any, Any, Response]]) -> None:
        self._ask = ask
        self._ask_upload = upload
        # Questions for figures that are not answered yet, by kind and format.
        self._asking: dict[tuple[str, str], asyncio.Task[Response]] = {}
        # The upstreams, as the ingest said last.
        self._upstreams: tuple[UpstreamStatus, ...] = ()
        self._pds: PdsStatus | None = None

    def with_upstreams(self, status: Callable[[], Status]) -> Callable[[], Status]:
        """Return a status with the upstreams of the ingest, as it said last."""
        return lambda: replace(status(), upstreams=self._upstreams, pds=self._pds)

    def routes(self, routes: Routes) -> Routes:
        """Return routes that answer for all processes."""
        figures = {path: self._figures(kind) for path, kind in _FIGURES.items() if path in routes.pages}
        front = {"/": self._front(routes.pages["/"])} if "/" in routes.pages else {}
        upgrades = {**routes.upgrades, **figures, **front}
        if "/subscribers.json" in upgrades:
            upgrades["/subscribers.json"] = self._list
        handlers: dict[str, Handler] = {"/subscribers/kick": self._kick, "/filters": self._upload}
        uploads = {
            path: Upload(handlers.get(path, upload.handler), upload.body_bytes_max)
            for path, upload in routes.uploads.items()
        }
        pages = {path: page for path, page in routes.pages.items() if path not in upgrades}
        return routes._replace(pages=pages, upgrades=upgrades, uploads=uploads)

    def _figures(self, kind: str) -> Handler:
        """Return what answers a page with figures."""

        def handler(request: Request, _connection: Connection) -> Steps[Answer]:
            yield from ()
            return self._asked(kind, accepted(request))

        return handler

    async def _asked(self, kind: str, accept: str = "") -> Response:
        """Return figures: the answer to a question, or to one that is being answered."""
        key = kind, accept
        task = self._asking.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(kind, {"accept": accept}))
            self._asking[key] = task
            task.add_done_callback(lambda _task: self._asking.pop(key))
        return await asyncio.shield(task)

    def _front(self, page: Page) -> Handler:
        """Return what answers the page at `/`, whose text names the upstreams."""

        def handler(request: Request, _connection: Connection) -> Steps[Answer]:
            yield from ()
            return page(request) if "text/html" in request.headers.get("accept", "") else answer(request)

        async def answer(request: Request) -> Response:
            asked = await self._asked(HEALTH)
            if asked.content_type == "application/json":
                self._note_upstreams(orjson.loads(asked.body))
            return page(request)

        return handler

    def _note_upstreams(self, health: Mapping[str, Any]) -> None:
        self._upstreams = tuple(
            UpstreamStatus(each["name"], each["url"], each["state"], each["seq"], None, each["lag_s"])
            for each in health.get("upstreams", ())
        )
        pds = health.get("pds")
        if pds is not None:
            gone = tuple(pds["not_connected"])
            states = Counter({name: count for name, count in pds.items() if name != "not_connected"})
            self._pds = PdsStatus(states, gone)

    def _list(self, request: Request, _connection: Connection) -> Steps[Answer]:
        """Answer `/subscribers.json`."""
        try:
            after, most = yield from page_of(request)
        except InvalidParameter as error:
            return Response.sentence(400, str(error))
        return self._ask(LIST, {"after": min(after, _INTEGER_MAX), "limit": most})

    def _kick(self, request: Request, _connection: Connection) -> Steps[Answer]:
        """Answer `/subscribers/kick`."""
        yield from ()
        return self._ask(KICK, {}, request.body)

    def _upload(self, request: Request, _connection: Connection) -> Steps[Answer]:
        """Answer `/filters`."""
        yield from ()
        return self._ask_upload(request.body)
