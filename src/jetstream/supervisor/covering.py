"""The routes of an edge that answer for the whole server.

What needs all processes, an edge asks the supervisor, which may in turn ask every edge, this one too:

    /metrics  /health  /ready  /status.json  and the text at /      what all processes say together
    /subscribers.json  /subscribers/kick                            the subscribers of all edges
    /filters                                                        every edge reads the list

Many clients may ask for the same figures at once. They get the answer to one question.

While one of these pages is asked for, the edge itself answers `snapshot` or `list` like any other
process: a question goes to the supervisor and comes back. All other routes are answered by the edge
alone.
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

# The largest integer that JSON of the channel may have. Higher IDs are asked for as this one: none has
# it.
_INTEGER_MAX: Final = (1 << 63) - 1
# Pages whose body the supervisor makes, each with the question for it.
_FIGURES: Final = {"/metrics": METRICS, "/health": HEALTH, "/ready": READY, "/status.json": STATUS}


class Ask(Protocol):
    """Asks the supervisor."""

    def __call__(
        self, kind: str, fields: Mapping[str, Any], body: bytes = b""
    ) -> Coroutine[Any, Any, Response]:
        """Return the response that its answer is.

        It does not raise: where there is no answer, the response is one of status 503. `fields` and
        `body` are those of the question.
        """


class Covering:
    """Makes the routes of one process those of all. `upload` has every edge read a list of DIDs.

    `routes` is called once, when the edge begins to serve. Its handlers run in the event loop's thread.
    """

    def __init__(self, ask: Ask, upload: Callable[[bytes], Coroutine[Any, Any, Response]]) -> None:
        # Asks the supervisor; the second one takes a token before, and waits longer.
        self._ask = ask
        self._ask_upload = upload
        # Questions for figures that are not answered yet, by kind and format.
        self._asking: dict[tuple[str, str], asyncio.Task[Response]] = {}
        # The upstreams and PDSes, as the ingest said last; changed when somebody reads the page at `/`. An
        # edge knows neither by itself, and shows none before that.
        self._upstreams: tuple[UpstreamStatus, ...] = ()
        self._pds: PdsStatus | None = None

    def with_upstreams(self, status: Callable[[], Status]) -> Callable[[], Status]:
        """Return a status with the upstreams of the ingest, as it said last.

        The page at `/` is made of a `Status`, and names the upstreams. The `taken_seq` of each is None:
        `/health` does not say it.
        """
        return lambda: replace(status(), upstreams=self._upstreams, pds=self._pds)

    def routes(self, routes: Routes) -> Routes:
        """Return routes that answer for all processes.

        A page that the server does not have is not added. Pages that need an answer of the supervisor
        become `upgrades`, whose handlers may return a coroutine. The limits of uploads stay.
        """
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
        """Return what answers a page with figures.

        The format that the client accepts is part of the question: Prometheus asks for its own text.
        """

        def handler(request: Request, _connection: Connection) -> Steps[Answer]:
            yield from ()
            return self._asked(kind, accepted(request))

        return handler

    async def _asked(self, kind: str, accept: str = "") -> Response:
        """Return figures: the answer to a question, or to one that is being answered.

        The task is shielded: a client that goes away does not cancel the answer for the others.
        """
        key = kind, accept
        task = self._asking.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(kind, {"accept": accept}))
            self._asking[key] = task
            task.add_done_callback(lambda _task: self._asking.pop(key))
        return await asyncio.shield(task)

    def _front(self, page: Page) -> Handler:
        """Return what answers the page at `/`, whose text names the upstreams.

        A browser gets a page that loads the figures itself, so nothing is asked for. As text, the page
        is made when the answer is there; with an answer of 503, the upstreams of the last one are
        shown.
        """

        def handler(request: Request, _connection: Connection) -> Steps[Answer]:
            yield from ()
            return page(request) if "text/html" in request.headers.get("accept", "") else answer(request)

        async def answer(request: Request) -> Response:
            """Return the page as text, once the upstreams are known that it names."""
            asked = await self._asked(HEALTH)
            if asked.content_type == "application/json":
                self._note_upstreams(orjson.loads(asked.body))
            return page(request)

        return handler

    def _note_upstreams(self, health: Mapping[str, Any]) -> None:
        """Keep the upstreams of a body of `/health`, which is in JSON.

        In its part `pds`, the states and their counts are beside the list of those that are not
        connected.
        """
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
        """Answer `/subscribers.json`, with a page of the subscribers of all edges. A bad parameter is 400."""
        try:
            after, most = yield from page_of(request)
        except InvalidParameter as error:
            return Response.sentence(400, str(error))
        return self._ask(LIST, {"after": min(after, _INTEGER_MAX), "limit": most})

    def _kick(self, request: Request, _connection: Connection) -> Steps[Answer]:
        """Answer `/subscribers/kick`: every edge disconnects those of the IDs that it knows."""
        yield from ()
        return self._ask(KICK, {}, request.body)

    def _upload(self, request: Request, _connection: Connection) -> Steps[Answer]:
        """Answer `/filters`: every edge reads the list, so that it is there whichever edge a client gets."""
        yield from ()
        return self._ask_upload(request.body)
