"""What the server offers over HTTP: each path with what answers it, on one listener or two.

    pages       one response each: /health, /metrics, …
    upgrades    take their connection over, or answer in steps: /subscribe, /events, /explain, …
    uploads     take a body: /filters, …
    trees       all paths that begin alike: /xrpc/…, /page/…

A new endpoint is added here. `docs/api.md` describes each, and a test compares the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from jetstream.delivery.delivery import Delivery
from jetstream.dictionary.choice import Dictionaries
from jetstream.dictionary.own import OWN
from jetstream.errors import SettingError
from jetstream.eventlog import LogReader
from jetstream.figures import Figures
from jetstream.limits import WebLimits
from jetstream.metrics import Metrics
from jetstream.settings import Address, Settings
from jetstream.status import Status
from jetstream.web import dictionary, front_page, openapi, page_files, pages, ready, status_page, xrpc
from jetstream.web.access import Access
from jetstream.web.connection import Handler
from jetstream.web.dialect import SubscribeDialect
from jetstream.web.did_lists import BODY_BYTES_MAX, DidLists
from jetstream.web.event_stream import EventStreamDialect
from jetstream.web.explain import Explain
from jetstream.web.gaps import Gaps
from jetstream.web.http import Request, Response
from jetstream.web.methods import GET_ZSTD_DICTIONARY, PREFIX, SUBSCRIBE_EVENTS
from jetstream.web.positions import cursors
from jetstream.web.server import Routes, Server, Upload
from jetstream.web.subscribe import Subscribe
from jetstream.web.subscribers import BODY_BYTES_MAX as KICK_BYTES_MAX
from jetstream.web.subscribers import Subscribers

_SUBSCRIPTIONS: Final = ("/subscribe", "/v1/subscribe", "/events", f"{PREFIX}{SUBSCRIBE_EVENTS}")


class Parts(NamedTuple):
    """What the endpoints show, and serve from. `now_us` gives unix microseconds."""

    log: LogReader
    delivery: Delivery | None  # None: the server has no subscribers
    dictionaries: Dictionaries
    metrics: Metrics
    figures: Figures
    status: Callable[[], Status]
    now_us: Callable[[], int]


class Endpoints:
    """The listeners of one server, with their routes. Nothing is listened on before `start`."""

    def __init__(self, settings: Settings, access: Access, parts: Parts, limits: WebLimits) -> None:
        self._settings = settings
        self._access = access
        self._parts = parts
        self._limits = limits
        # The lists of DIDs that clients have uploaded.
        self.did_lists = DidLists(limits, time.monotonic)
        # All who subscribe, by whichever path; None: there is nobody.
        self.subscribe = None if parts.delivery is None else self._new_subscribe(parts.delivery)
        # The main listener first. Metrics may have a second one.
        self.servers = [Server(parts.metrics, self._routes(), limits, access.peers, access.tls)]
        if settings.metrics_listen is not None:
            routes = Routes({"/metrics": self._metrics()}, guards=access.guards)
            self.servers.append(Server(parts.metrics, routes, limits))
        # Their ports, once they are open. None: there is no second one.
        self.port = 0
        self.metrics_port: int | None = None

    def _new_subscribe(self, delivery: Delivery) -> Subscribe:
        settings = self._settings
        return Subscribe(
            delivery,
            self._parts.metrics,
            buffer_bytes=settings.subscriber_buffer,
            subscribers_max=settings.max_subscribers,
            did_lists=self.did_lists,
            limits=self._limits,
        )

    async def start(self) -> None:
        """Listen. Raises SettingError for an address that cannot be used."""
        settings = self._settings
        self.port = await _start(self.servers[0], "--listen", settings.listen)
        if settings.metrics_listen is not None:
            self.metrics_port = await _start(self.servers[1], "--metrics-listen", settings.metrics_listen)

    def stop_accepting(self) -> None:
        """Accept no more connections. Those that are open go on."""
        for server in self.servers:
            server.stop_accepting()

    async def close(self) -> None:
        """Close all connections."""
        for server in self.servers:
            await server.close()

    def urls(self) -> dict[str, str]:
        """Return where the most important endpoints are, for a line of the log."""
        listen, metrics_listen = self._settings.listen, self._settings.metrics_listen
        base = f"{listen.host or 'localhost'}:{self.port}"
        ws, http = ("ws", "http") if self._access.tls is None else ("wss", "https")
        subscribe = {
            "subscribe": f"{ws}://{base}/subscribe",
            "client_libraries": f"{ws}://{base}/v1/subscribe",
        }
        metrics = f"{http}://{base}/metrics" if metrics_listen is None else f"http://{metrics_listen}/metrics"
        return {
            **({"page": f"{http}://{base}/"} if self.subscribe is None else subscribe),
            "metrics": metrics,
        }

    def _routes(self) -> Routes:
        """Return the routes of the main listener."""
        files = page_files.PageFiles()
        delivery, subscribe = self._parts.delivery, self.subscribe
        if delivery is None or subscribe is None:
            pages_ = {**self._pages(files), **dict.fromkeys(_SUBSCRIPTIONS, _nobody)}
            uploads: Mapping[str, Upload] = {}
            upgrades = {"/gaps": self._gaps()}
            return Routes(pages_, upgrades, {page_files.PREFIX: files.answer}, uploads, self._access.guards)
        return self._routes_of_subscribers(files, delivery, subscribe)

    def _routes_of_subscribers(
        self, files: page_files.PageFiles, delivery: Delivery, subscribe: Subscribe
    ) -> Routes:
        own = dictionary.page(lambda: OWN.data)
        subscribers = Subscribers(subscribe, self._parts.now_us)
        methods = xrpc.Xrpc({SUBSCRIBE_EVENTS: self._subscribe_events(subscribe)}, {GET_ZSTD_DICTIONARY: own})
        upgrades = {
            **self._subscriptions(subscribe),
            "/explain": self._explain(delivery),
            "/gaps": self._gaps(),
            "/subscribers.json": subscribers.list,
        }
        uploads = {
            "/filters": Upload(self.did_lists.handle, BODY_BYTES_MAX),
            "/subscribers/kick": Upload(subscribers.kick, KICK_BYTES_MAX),
        }
        trees = {PREFIX: methods.answer, page_files.PREFIX: files.answer}
        positions = cursors(delivery.positions, self._parts.now_us)
        document = openapi.page(self._settings.wire, metrics=self._settings.metrics_listen is None)
        pages_ = {
            **self._pages(files),
            "/cursors": positions,
            "/openapi.json": document,
            "/zstd-dictionary": own,
        }
        return Routes(pages_, upgrades, trees, uploads, self._access.guards)

    def _gaps(self) -> Handler:
        return Gaps(self._parts.log, self._limits, now_us=self._parts.now_us).handle

    def _pages(self, files: page_files.PageFiles) -> dict[str, pages.Page]:
        settings, parts = self._settings, self._parts
        metrics_here = settings.metrics_listen is None
        found = {
            "/": front_page.page(
                settings.wire,
                parts.status,
                files,
                metrics=metrics_here,
                serves=parts.delivery is not None,
            ),
            "/favicon.ico": files.icon,
            "/health": pages.health(parts.status),
            "/ready": ready.page(parts.status),
            "/status.json": self._status_page(),
        }
        return {**found, "/metrics": self._metrics()} if metrics_here else found

    def _metrics(self) -> pages.Page:
        return pages.metrics(self._parts.metrics, self._limits)

    def _status_page(self) -> pages.Page:
        settings, parts = self._settings, self._parts
        server = status_page.Server(parts.now_us(), settings.retention, settings.retention_bytes)
        return status_page.page(server, parts.status, parts.figures.statistics, parts.metrics, self._limits)

    def _subscriptions(self, subscribe: Subscribe) -> Mapping[str, Handler]:
        """Return what answers each path to subscribe at, but for the v2 wire's."""
        now_us, find_list = self._parts.now_us, self.did_lists.find
        dialect = partial(
            SubscribeDialect,
            compressed=self._parts.dictionaries.framing,
            limits=self._limits,
            now_us=now_us,
            find_list=find_list,
        )
        return {
            "/subscribe": subscribe.on(dialect(self._settings.wire)),
            "/v1/subscribe": subscribe.on(dialect("v1")),
            "/events": subscribe.on(EventStreamDialect(self._parts.metrics, self._limits, now_us, find_list)),
        }

    def _subscribe_events(self, subscribe: Subscribe) -> Handler:
        parts = self._parts
        dialect = xrpc.SubscribeEventsDialect(
            lambda: parts.log.oldest_us,
            parts.dictionaries.framing,
            self._limits,
            parts.now_us,
            self.did_lists.find,
        )
        return subscribe.on(dialect)

    def _explain(self, delivery: Delivery) -> Handler:
        parts = self._parts
        return Explain(
            parts.log,
            self._settings.wire,
            delivery.positions,
            parts.dictionaries,
            self._limits,
            find_list=self.did_lists.find,
            now_us=parts.now_us,
        ).handle


def _nobody(_request: Request) -> Response:
    """Answer a request to subscribe, where nobody is served."""
    return Response.sentence(404, "this server only reads upstream (--role ingest): connect to an edge")


async def _start(server: Server, flag: str, address: Address) -> int:
    try:
        return await server.start(*address)
    except OSError as error:
        problem = (error.strerror or str(error)).partition(" (while ")[0]  # Python repeats the address
        raise SettingError(flag, str(address), f"cannot be listened on: {problem}") from error
