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
from typing import Final, NamedTuple, Protocol

from jetstream.delivery.delivery import Delivery
from jetstream.dictionary.choice import Dictionaries
from jetstream.dictionary.own import OWN
from jetstream.eventlog import LogReader
from jetstream.figures import Figures
from jetstream.limits import WebLimits
from jetstream.metrics import Metrics
from jetstream.settings import Settings
from jetstream.status import Status
from jetstream.web import dictionary, front_page, openapi, page_files, pages, ready, status_page, xrpc
from jetstream.web.access import Access
from jetstream.web.allowance import Allowance, always
from jetstream.web.connection import Handler
from jetstream.web.dialect import SubscribeDialect
from jetstream.web.did_lists import BODY_BYTES_MAX, DidLists
from jetstream.web.event_stream import EventStreamDialect
from jetstream.web.explain import Explain
from jetstream.web.gaps import Gaps
from jetstream.web.http import Request, Response
from jetstream.web.listening import listen, urls
from jetstream.web.methods import GET_ZSTD_DICTIONARY, PREFIX, SUBSCRIBE_EVENTS
from jetstream.web.positions import cursors
from jetstream.web.server import Routes, Server, Upload
from jetstream.web.subscribe import Subscribe
from jetstream.web.subscribers import BODY_BYTES_MAX as KICK_BYTES_MAX
from jetstream.web.subscribers import Subscribers

# All paths of events. A server without subscribers answers them with a sentence instead of an unknown
# path.
_SUBSCRIPTIONS: Final = ("/subscribe", "/v1/subscribe", "/events", f"{PREFIX}{SUBSCRIBE_EVENTS}")


class Parts(NamedTuple):
    """What the endpoints show, and serve from. `now_us` gives unix microseconds.

    Made once, by `Service`. The endpoints only read these; a request changes none of them but the
    counters of `metrics` and the subscribers of `delivery`.
    """

    # The log as readers see it. That of a mirror knows how far upstream is.
    log: LogReader
    delivery: Delivery | None  # None: the server has no subscribers
    # The zstd dictionaries of compressed messages: the server's own, and the public one if it is
    # offered.
    dictionaries: Dictionaries
    metrics: Metrics
    # Rates and the history, for `/status.json`.
    figures: Figures
    # Makes the state of now. It is called for each request of `/health`, `/ready` and `/metrics`.
    status: Callable[[], Status]
    now_us: Callable[[], int]
    # The statuses of accounts whose records are erased. They can change when a mirror learns those of
    # its upstream.
    erases: Callable[[], frozenset[str]] = frozenset


class Siblings(Protocol):
    """The other processes of a server that has several (`supervisor`).

    The port is with the supervisor then, which passes each accepted connection on to an edge. Limits and
    pages must count for all processes together, not for each.
    """

    def cover(self, routes: Routes) -> Routes:
        """Return routes that answer for all processes.

        Figures, the front page, lists of subscribers and uploads are then asked of the supervisor.
        """

    def allowance(self, rate: str) -> Allowance:
        """Return what tells whether all processes may do something once more, by a rate of `WebLimits`."""

    def take(self, endpoints: Endpoints) -> None:
        """Get connections, instead of listening, and share what is limited."""

    def stop_taking(self) -> None:
        """Get no more connections."""

    def with_upstreams(self, status: Callable[[], Status]) -> Callable[[], Status]:
        """Return a status with the upstreams that another process reads."""


class Endpoints:
    """The listeners of one server, with their routes. Nothing is listened on before `start`.

    `first_id` is what the IDs of subscribers begin after. `siblings`: None where the server has one process.
    """

    def __init__(
        self,
        settings: Settings,
        access: Access,
        parts: Parts,
        limits: WebLimits,
        siblings: Siblings | None = None,
        first_id: int = 0,
    ) -> None:
        self._siblings = siblings
        # All of these are fixed from here on. What changes at runtime, such as a certificate, changes
        # inside `access`.
        self._settings = settings
        self._access = access
        self._parts = parts
        self._limits = limits
        # The lists of DIDs that clients have uploaded.
        self.did_lists = DidLists(limits, time.monotonic)
        # All who subscribe, by whichever path, and one by one for operators; None: there is nobody.
        self.subscribe = None if parts.delivery is None else self._new_subscribe(parts.delivery, first_id)
        self.subscribers = None if self.subscribe is None else Subscribers(self.subscribe, parts.now_us)
        # Limits for each client address; None: there are none.
        self.addresses = access.peers.addresses
        # The main listener first. Metrics may have a second one.
        self.servers = [
            Server(parts.metrics, self._covered(self._routes()), limits, access.peers, access.tls)
        ]
        if settings.metrics_listen is not None:
            routes = Routes({"/metrics": self._metrics()}, guards=access.guards)
            self.servers.append(Server(parts.metrics, self._covered(routes), limits))
        # Their ports, once they are open. None: there is no second one.
        # Their ports, once they are open: with port 0 in the settings, the one that the system has
        # chosen. 0 before, and with siblings. None: there is no second listener.
        self.port = 0
        self.metrics_port: int | None = None

    def _new_subscribe(self, delivery: Delivery, first_id: int) -> Subscribe:
        """Return what takes subscribers, whichever path they use.

        They share one limit of their number, and one sequence of IDs, which begins after `first_id`.
        """
        settings = self._settings
        subscribe = Subscribe(
            delivery,
            self._parts.metrics,
            buffer_bytes=settings.subscriber_buffer,
            subscribers_max=settings.max_subscribers,
            did_lists=self.did_lists,
            limits=self._limits,
        )
        subscribe.newest_id = first_id
        return subscribe

    async def start(self) -> None:
        """Listen. Raises SettingError for an address that cannot be used.

        With siblings, nothing is listened on: connections come from the supervisor, and
        `--metrics-listen` is its, too.
        """
        settings = self._settings
        if self._siblings is not None:
            self._siblings.take(self)
            return
        self.port = await listen("--listen", settings.listen, self.servers[0].start)
        if settings.metrics_listen is not None:
            start = self.servers[1].start
            self.metrics_port = await listen("--metrics-listen", settings.metrics_listen, start)

    def _covered(self, routes: Routes) -> Routes:
        """Return routes as all processes of the server answer them; as they are if there is one process."""
        return routes if self._siblings is None else self._siblings.cover(routes)

    def stop_accepting(self) -> None:
        """Accept no more connections. Those that are open go on.

        Clients that connect from now on are refused by the system. With siblings, the supervisor passes no
        more of them to this process.
        """
        if self._siblings is not None:
            self._siblings.stop_taking()
        for server in self.servers:
            server.stop_accepting()

    async def close(self) -> None:
        """Close all connections. Responses may be read for `WebLimits.shutdown_timeout_s` more."""
        for server in self.servers:
            await server.close()

    def urls(self) -> dict[str, str]:
        """Return where the most important endpoints are, for a line of the log."""
        serves = self.subscribe is not None
        return urls(self._settings, self.port, tls=self._access.tls is not None, serves=serves)

    def _routes(self) -> Routes:
        """Return the routes of the main listener.

        Without subscribers (`--role ingest`), the paths to subscribe at answer 404 with a sentence that
        says so, and the pages about the server are the same.
        """
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
        """Return the routes of a server that has subscribers.

        Those are the paths of events, and what helps a client or an operator with them: filters,
        cursors, the dictionary, explanations and lists.
        """
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
        """Return what answers `/gaps`: where the log misses events. It reads the log, so it is limited."""
        parts, allowed = self._parts, self._allowance("gap_pages")
        return Gaps(parts.log, self._limits, now_us=parts.now_us, allowed=allowed).handle

    def _allowance(self, rate: str) -> Allowance:
        """Return what limits a costly answer: over all processes where there are several.

        With one process the handler has a limit of its own, so there is nothing to ask.
        """
        return always if self._siblings is None else self._siblings.allowance(rate)

    def _pages(self, files: page_files.PageFiles) -> dict[str, pages.Page]:
        """Return the pages about the server, which every role has.

        `/metrics` is among them unless it has a listener of its own. The front page shows upstreams,
        which with siblings are another process's; `/health` and `/ready` are of this process only, and
        are covered later.
        """
        settings, parts = self._settings, self._parts
        metrics_here = settings.metrics_listen is None
        siblings, status = self._siblings, parts.status
        status = status if siblings is None else siblings.with_upstreams(status)
        found = {
            "/": front_page.page(
                settings.wire,
                status,
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
        """Return the page of the Prometheus metrics, for whichever listener has it."""
        return pages.metrics(self._parts.metrics, self._limits)

    def _status_page(self) -> pages.Page:
        """Return the page of `/status.json`, with the settings that bound the log."""
        settings, parts = self._settings, self._parts
        server = status_page.Server(parts.now_us(), settings.retention, settings.retention_bytes)
        return status_page.page(server, parts.status, parts.figures.statistics, parts.metrics, self._limits)

    def _subscriptions(self, subscribe: Subscribe) -> Mapping[str, Handler]:
        """Return what answers each path to subscribe at, but for the v2 wire's."""
        now_us, find_list = self._parts.now_us, self.did_lists.find
        # The same options for both paths; only the wire differs. `/subscribe` has that of `--wire`.
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
        """Return what answers the XRPC method of the v2 wire (docs/api.md)."""
        parts = self._parts
        dialect = xrpc.SubscribeEventsDialect(
            lambda: parts.log.oldest_us,
            parts.dictionaries.framing,
            self._limits,
            parts.now_us,
            self.did_lists.find,
            parts.erases,
        )
        return subscribe.on(dialect)

    def _explain(self, delivery: Delivery) -> Handler:
        """Return what answers `/explain`: what a subscription would get of the last minute.

        It judges and renders events of the log, so there are limits of one client and of all.
        """
        parts = self._parts
        return Explain(
            parts.log,
            self._settings.wire,
            delivery.positions,
            parts.dictionaries,
            self._limits,
            find_list=self.did_lists.find,
            now_us=parts.now_us,
            allowed=self._allowance("explanations"),
        ).handle


def _nobody(_request: Request) -> Response:
    """Answer a request to subscribe, where nobody is served."""
    return Response.sentence(404, "this server only reads upstream (--role ingest): connect to an edge")
