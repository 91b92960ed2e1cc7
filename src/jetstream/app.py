"""The server's life: its parts are built, started in order, and stopped in order.

    start   open the log, then the listeners; then run delivery, upstream and the watch
    SIGHUP  read the files again that settings name
    stop    accept no more connections, stop reading upstream, close the subscribers, stop delivery,
            close the listeners, close the log

What was read from upstream is stored before the subscribers are closed, so a restart resumes after it. If a
part fails, the subscribers are closed and the error ends the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import structlog

from jetstream import __version__
from jetstream.clock import SteadyClock, clock_reason, unix_us
from jetstream.conditions import Conditions
from jetstream.delivery.delivery import Delivery
from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.subscriber import Close
from jetstream.dictionary.choice import Dictionaries
from jetstream.dictionary.own import OWN
from jetstream.dictionary.public import PublicDictionary, fetch_in_process
from jetstream.errors import SettingError
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.figures import Figures, log_ends
from jetstream.intake import Intake, starts_of, upstreams_of
from jetstream.limits import Limits
from jetstream.logging_setup import tell_omitted
from jetstream.metrics import Metrics
from jetstream.runtime import (
    FileShortage,
    cancelled,
    first_error,
    housekeeping,
    raise_file_limit,
    reload_on_hangup,
    stop_on_signals,
    tune_gc,
    written_bytes,
)
from jetstream.settings import Address, Settings, require_data_dir
from jetstream.status import Status
from jetstream.web import dictionary, front_page, openapi, page_files, pages, ready, status_page, xrpc
from jetstream.web.access import Access
from jetstream.web.dialect import SHUTDOWN, SubscribeDialect
from jetstream.web.did_lists import BODY_BYTES_MAX, DidLists
from jetstream.web.event_stream import EventStreamDialect
from jetstream.web.explain import Explain
from jetstream.web.gaps import Gaps
from jetstream.web.methods import GET_ZSTD_DICTIONARY, PREFIX, SUBSCRIBE_EVENTS
from jetstream.web.positions import cursors
from jetstream.web.server import Routes, Server, Upload
from jetstream.web.subscribe import FAILED, Subscribe
from jetstream.web.subscribers import BODY_BYTES_MAX as KICK_BYTES_MAX
from jetstream.web.subscribers import Subscribers

logger = structlog.get_logger(__name__)


async def serve(settings: Settings, limits: Limits = Limits()) -> None:
    """Run a server until SIGTERM or SIGINT; a second signal ends the process at once.

    Raises SettingError, and what `Service.run` raises.
    """
    upstreams = len(upstreams_of(settings, limits))
    shortage = raise_file_limit(
        settings.max_subscribers, limits.web.files_reserved, limits.runtime.beside(upstreams)
    )
    tune_gc(limits.runtime)
    service = Service(settings, limits)
    stop_on_signals(service.stop)
    if settings.has_files:
        reload_on_hangup(service.reload)
    async with housekeeping(limits.runtime):
        await service.run(shortage)


class Service:
    """One server: its upstreams, a log, the delivery to subscribers, and the routes.

    `clock` gives unix microseconds, as the machine has them. `log`, `delivery`, `intake`, `subscribe` and
    `servers` are built by `run`, and exist from `started` on.
    """

    def __init__(
        self, settings: Settings, limits: Limits = Limits(), *, clock: Callable[[], int] = unix_us
    ) -> None:
        self.settings = settings
        self.metrics = Metrics(RENDERERS)
        self.conditions = Conditions()
        self.port = 0  # of the main listener, once it is open
        self.metrics_port: int | None = None  # of the second listener, if there is one
        self.started = asyncio.Event()  # set once the listeners are open and the parts run
        self._limits = limits
        self._clock = SteadyClock(int(settings.clock_settle * 1_000_000), clock)
        self._figures = Figures(self.metrics, self.status, limits.runtime)
        self._stopping = asyncio.Event()  # set by `stop`
        self._reloading = asyncio.Event()  # set by `reload`, until the file is read

    def reload(self) -> None:
        """Ask `run` to read `--upstream-file` again, and read the other files that settings name."""
        if self.settings.upstream_file is not None:
            self._reloading.set()
        self.access.reload()

    def stop(self) -> None:
        """Ask `run` to end in good order."""
        self._stopping.set()

    async def run(self, shortage: FileShortage | None = None) -> None:
        """Serve until `stop`. Warns of a shortage of files once everything else is found usable.

        Raises SettingError for an upstream, a directory or an address that cannot be used, LogError for a
        log that cannot be opened.
        """
        # What is wrong with the upstreams is said before the log is opened.
        starts_of(self.settings, upstreams_of(self.settings, self._limits))
        require_data_dir(self.settings.data_dir)
        self.access = Access(self.settings, self.conditions, self._limits.web)
        self._dictionary = self._open_dictionary()
        self.log = await SqliteLog.open(
            self.settings.data_dir,
            retention_s=self.settings.retention,
            retention_bytes=self.settings.retention_bytes,
            erase=frozenset(self.settings.forget.split(",")) - {"none"},
            clock=self._clock,
            conditions=self.conditions,
            limits=self._limits.log,
        )
        if self.log.clock_offset_us is not None:
            self._clock.resume(self.log.clock_offset_us)
        async with AsyncExitStack() as ending:
            ending.push_async_callback(self._close_log)
            if self._dictionary is not None:
                ending.push_async_callback(self._dictionary.close)
            self.intake = Intake(
                self.settings, self.log, self._clock, self.metrics, self.conditions, self._limits
            )
            ending.push_async_callback(self.intake.close)
            await self._run(shortage)

    async def _close_log(self) -> None:
        await self.log.close()
        tell_omitted(waiting=False)
        logger.info("stopped", tip=self.log.tip)

    def _open_dictionary(self) -> PublicDictionary | None:
        """Return the dictionary of compressed messages; None where they are not offered."""
        settings = self.settings
        if settings.zstd_dictionary == "none":
            return None
        fetch = partial(fetch_in_process, settings.data_dir, settings.zstd_dictionary_url)
        return PublicDictionary(settings.zstd_dictionary, settings.data_dir, fetch)

    async def _run(self, shortage: FileShortage | None) -> None:
        self.delivery = Delivery(
            self.log,
            self.metrics,
            self._limits.delivery,
            slow_timeout_s=self.settings.slow_timeout,
            buffer_total=self.settings.buffer_total,
            now_us=self._clock,
        )
        await self.intake.open()
        self.metrics.watch(self.status)
        self._check_clock()
        self.servers = servers = await self._listen()
        if shortage is not None:
            shortage.warn()
        try:
            async with asyncio.TaskGroup() as tasks:
                delivery = tasks.create_task(self.delivery.run())
                upstream = tasks.create_task(self.intake.run(self._reloading))
                watch = tasks.create_task(self._watch())
                self.started.set()
                await self._stopping.wait()
                logger.info("stopping", subscribers=len(self.subscribe))
                for server in servers:
                    server.stop_accepting()
                await cancelled(upstream)
                await self._close_subscribers(SHUTDOWN)
                await cancelled(delivery)
                await cancelled(watch)
        except BaseExceptionGroup as group:
            await self._close_subscribers(FAILED)
            raise first_error(group) from group
        finally:
            for server in servers:
                await server.close()

    async def _watch(self) -> None:
        """Do what is due now and then, although nobody asks for it."""
        while True:
            await asyncio.sleep(self._limits.runtime.watch_every_s)
            self._check_clock()
            self.intake.check()
            self._did_lists.expire()
            self.access.check()
            self._figures.take()
            tell_omitted()

    def _check_clock(self) -> None:
        now_us, clock = self._clock(), self._clock
        reason = clock_reason(self.log.tip, now_us, clock.ignored_us, self.settings.clock_settle)
        self.conditions.set("clock", reason)

    async def _listen(self) -> list[Server]:
        """Open the listeners, and say where everything is."""
        settings = self.settings
        self._did_lists = did_lists = DidLists(self._limits.web, time.monotonic)
        self.subscribe = Subscribe(
            self.delivery,
            self.metrics,
            buffer_bytes=settings.subscriber_buffer,
            subscribers_max=settings.max_subscribers,
            did_lists=did_lists,
            limits=self._limits.web,
        )
        own = dictionary.page(lambda: OWN.data)
        files = page_files.PageFiles()
        routes = {
            "/": front_page.page(settings.wire, self.status, files, metrics=settings.metrics_listen is None),
            "/favicon.ico": files.icon,
            "/health": pages.health(self.status),
            "/ready": ready.page(self.status),
            "/status.json": self._status_page(),
            "/cursors": cursors(self.delivery.positions, self._clock),
            "/zstd-dictionary": own,
            "/openapi.json": openapi.page(settings.wire, metrics=settings.metrics_listen is None),
        }
        wires = {"/subscribe": settings.wire, "/v1/subscribe": "v1"}
        dictionaries = Dictionaries(self._dictionary)
        compressed = dictionaries.framing
        dialects = {
            path: SubscribeDialect(wire, compressed, self._limits.web, self._clock, did_lists.find)
            for path, wire in wires.items()
        }
        upgrades = {path: self.subscribe.on(dialect) for path, dialect in dialects.items()}
        stream = EventStreamDialect(self.metrics, self._limits.web, self._clock, did_lists.find)
        upgrades["/events"] = self.subscribe.on(stream)
        events = xrpc.SubscribeEventsDialect(
            self._oldest_us, compressed, self._limits.web, self._clock, did_lists.find
        )
        explain = Explain(
            self.log,
            settings.wire,
            self.delivery.positions,
            dictionaries,
            self._limits.web,
            find_list=did_lists.find,
            now_us=self._clock,
        )
        upgrades["/explain"] = explain.handle
        upgrades["/gaps"] = Gaps(self.log, self._limits.web, now_us=self._clock).handle
        methods = xrpc.Xrpc({SUBSCRIBE_EVENTS: self.subscribe.on(events)}, {GET_ZSTD_DICTIONARY: own})
        trees = {PREFIX: methods.answer, page_files.PREFIX: files.answer}
        figures = pages.metrics(self.metrics, self._limits.web)
        if settings.metrics_listen is None:
            routes["/metrics"] = figures
        subscribers = Subscribers(self.subscribe, self._clock)
        upgrades["/subscribers.json"] = subscribers.list
        uploads = {
            "/filters": Upload(did_lists.handle, BODY_BYTES_MAX),
            "/subscribers/kick": Upload(subscribers.kick, KICK_BYTES_MAX),
        }
        served = Routes(routes, upgrades, trees, uploads, self.access.guards)
        servers = [Server(self.metrics, served, self._limits.web, self.access.peers, self.access.tls)]
        self.port = await _start(servers[0], "--listen", settings.listen)
        if settings.metrics_listen is not None:
            servers.append(
                Server(
                    self.metrics, Routes({"/metrics": figures}, guards=self.access.guards), self._limits.web
                )
            )
            self.metrics_port = await _start(servers[1], "--metrics-listen", settings.metrics_listen)
        base = f"{settings.listen.host or 'localhost'}:{self.port}"
        ws, http = ("ws", "http") if self.access.tls is None else ("wss", "https")
        listen = settings.metrics_listen
        metrics = f"{http}://{base}/metrics" if listen is None else f"http://{listen}/metrics"
        logger.info(
            "listening",
            subscribe=f"{ws}://{base}/subscribe",
            client_libraries=f"{ws}://{base}/v1/subscribe",
            metrics=metrics,
            verify=settings.verify,
            **log_ends(self.log.statistics().newest_us, self._clock()),
            **self.intake.fields(),
        )
        return servers

    def _status_page(self) -> pages.Page:
        settings = self.settings
        server = status_page.Server(self._clock(), settings.retention, settings.retention_bytes)
        return status_page.page(server, self.status, self._figures.statistics, self.metrics, self._limits.web)

    def _oldest_us(self) -> int | None:
        return self.log.oldest_us

    async def _close_subscribers(self, close: Close) -> None:
        self.subscribe.close_all(close)
        try:
            async with asyncio.timeout(self._limits.runtime.close_s):
                await self.subscribe.empty.wait()
        except TimeoutError:
            logger.warning("subscribers did not close in time", subscribers=len(self.subscribe))

    def status(self) -> Status:
        """Return the state of the server now."""
        return Status(
            version=__version__,
            now_us=self._clock(),
            tip=self.log.tip,
            log=self.log.statistics(),
            upstreams=self.intake.sources.relays(),
            reasons=dict(self.conditions.reasons),
            subscribers=len(self.subscribe),
            pds=self.intake.sources.pds(),
            waiting=self.intake.waiting,
            readers=self.delivery.readers(),
            subscribers_max=self.settings.max_subscribers,
            collections=self.metrics.collections.totals(),
            written_bytes=written_bytes(),
            stopping=self._stopping.is_set(),
            ready_idle_s=self.settings.ready_idle,
            ready_lag_s=self.settings.ready_lag,
        )


async def _start(server: Server, flag: str, address: Address) -> int:
    try:
        return await server.start(*address)
    except OSError as error:
        problem = (error.strerror or str(error)).partition(" (while ")[0]  # Python repeats the address
        raise SettingError(flag, str(address), f"cannot be listened on: {problem}") from error
