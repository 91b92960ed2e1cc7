"""The server as a whole: builds the parts, starts them in order, and stops them in order."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
from collections.abc import Callable, Iterator
from typing import Final, get_args

import structlog
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from jetstream import __version__
from jetstream.clock import SteadyClock, clock_reason, unix_us
from jetstream.conditions import CONDITIONS, Conditions
from jetstream.delivery.delivery import Delivery
from jetstream.delivery.encoding import Encoding
from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.subscriber import Close
from jetstream.errors import SettingError
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.ingest import Ingest, Stamper
from jetstream.limits import Limits
from jetstream.metrics import Metrics, gauge
from jetstream.runtime import collect_young, release_memory, tune_gc
from jetstream.settings import Address, Settings, require_data_dir
from jetstream.upstream.connection import State, Upstream, origin
from jetstream.upstream.intake import Intake
from jetstream.upstream.seq_tracker import SeqTracker
from jetstream.web import pages
from jetstream.web.server import Server
from jetstream.web.subscribe import FAILED, SHUTDOWN, Subscribe

GOODBYE_S: Final = 5.0  # for subscribers to take their close frames
CLOCK_EVERY_S: Final = 1.0  # how often the clock is looked at, beside at every batch
FILES_OF_OUR_OWN: Final = 32  # log, its readers, listeners, upstream
FILES_BESIDE_SUBSCRIBERS: Final = 200  # the same with scrapes and handshakes, at the most

logger = structlog.get_logger(__name__)


class Service:
    """One Jetstream: an upstream, a log, a delivery and its routes.

    `clock` gives unix microseconds, as the machine has them.
    """

    def __init__(
        self, settings: Settings, limits: Limits = Limits(), *, clock: Callable[[], int] = unix_us
    ) -> None:
        self.settings = settings
        self._limits = limits
        self.metrics = Metrics()
        self.conditions = Conditions()
        self.port = 0
        self.metrics_port: int | None = None
        self.started = asyncio.Event()
        self._clock = SteadyClock(int(settings.clock_settle * 1_000_000), clock)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask `run` to end in good order."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`.

        Raises SettingError for a directory or an address that cannot be used, LogError for a log that
        cannot be opened.
        """
        require_data_dir(self.settings.data_dir)
        self.log = await SqliteLog.open(
            self.settings.data_dir,
            retention_s=self.settings.retention,
            retention_bytes=self.settings.retention_bytes,
            forget=frozenset(self.settings.forget.split(",")) - {"none"},
            clock=self._clock,
            conditions=self.conditions,
        )
        if self.log.clock_offset_us is not None:
            self._clock.resume(self.log.clock_offset_us)
        try:
            await self._run()
        finally:
            await self.log.close()
            logger.info("stopped", tip=self.log.tip)

    async def _run(self) -> None:
        self.delivery = Delivery(
            self.log,
            self.metrics,
            self._limits.delivery,
            slow_timeout_s=self.settings.slow_timeout,
            buffer_total=self.settings.buffer_total,
        )
        self.upstream = self._upstream()
        self.metrics.watch(self._families)
        self._look_at_clock()
        servers = await self._listen()
        try:
            async with asyncio.TaskGroup() as tasks:
                delivery = tasks.create_task(self.delivery.run())
                upstream = tasks.create_task(self.upstream.run())
                clock = tasks.create_task(self._watch_clock())
                self.started.set()
                await self._stopping.wait()
                logger.info("stopping", subscribers=len(self.subscribe))
                for server in servers:
                    server.stop_accepting()
                await _cancelled(upstream)
                await self._say_goodbye(SHUTDOWN)
                await _cancelled(delivery)
                await _cancelled(clock)
        except BaseExceptionGroup as group:
            await self._say_goodbye(FAILED)
            raise _first(group) from group
        finally:
            for server in servers:
                await server.close()

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_EVERY_S)
            self._look_at_clock()

    def _look_at_clock(self) -> None:
        """Begin or end the condition `clock`."""
        now_us, clock = self._clock(), self._clock
        reason = clock_reason(self.log.tip, now_us, clock.ignored_us, self.settings.clock_settle)
        if reason is None:
            self.conditions.end("clock")
        else:
            self.conditions.begin("clock", reason)

    def _upstream(self) -> Upstream:
        settings = self.settings
        where = origin(settings.upstream)
        intake = Intake(self._sequence(where), check_cid=settings.verify == "cid")
        stamper = Stamper(self.log.tip, self._clock)
        ingest = Ingest(self.log, where, stamper, self.metrics, self.conditions)
        return Upstream(settings.upstream, intake, ingest.store, self.metrics, self.conditions, self.log)

    def _sequence(self, where: str) -> SeqTracker:
        """Return where to resume: what the setting says, else the log if it is of the same upstream."""
        if self.settings.upstream_cursor is not None:
            return SeqTracker(self.settings.upstream_cursor)
        stored = self.log.cursors.get(where)
        if stored is not None:
            return SeqTracker(*stored, resumed=True)
        if self.log.cursors:
            logger.warning(
                "stored cursor belongs to another upstream; starting at the live end",
                stored=", ".join(self.log.cursors),
                upstream=where,
            )
        return SeqTracker(None)

    async def _listen(self) -> list[Server]:
        """Open the listeners, and say where everything is."""
        settings = self.settings
        self.subscribe = Subscribe(
            self.delivery,
            self.metrics,
            buffer_bytes=settings.subscriber_buffer,
            subscribers_max=settings.max_subscribers,
            limits=self._limits.web,
        )
        routes = {"/": pages.page(settings.wire), "/health": pages.health(self._health)}
        wires = {"/subscribe": settings.wire, "/v1/subscribe": "v1"}
        upgrades = {
            path: self.subscribe.on(Encoding(RENDERERS[wire], WEBSOCKET)) for path, wire in wires.items()
        }
        figures = pages.metrics(self.metrics)
        if settings.metrics_listen is None:
            routes["/metrics"] = figures
        servers = [Server(self.metrics, routes, upgrades, self._limits.web)]
        self.port = await _start(servers[0], "--listen", settings.listen)
        if settings.metrics_listen is not None:
            servers.append(Server(self.metrics, {"/metrics": figures}, limits=self._limits.web))
            self.metrics_port = await _start(servers[1], "--metrics-listen", settings.metrics_listen)
        base = f"{settings.listen.host or 'localhost'}:{self.port}"
        logger.info(
            "listening",
            subscribe=f"ws://{base}/subscribe",
            client_libraries=f"ws://{base}/v1/subscribe",
            metrics=f"http://{settings.metrics_listen or base}/metrics",
            upstream=self.upstream.url,
            cursor=self.upstream.seq,
        )
        return servers

    async def _say_goodbye(self, close: Close) -> None:
        self.subscribe.close_all(close)
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self.subscribe.wait_empty()
        except TimeoutError:
            logger.warning("subscribers did not go in time", subscribers=len(self.subscribe))

    def _health(self) -> tuple[bool, dict[str, object]]:
        figures, upstream = self.log.statistics(), self.upstream
        newest = figures.newest_us
        age_s = None if newest is None else round((self._clock() - newest) / 1e6, 3)
        return figures.writable, {
            "status": self._status(figures.writable),
            "reasons": list(self.conditions.reasons.values()),
            "version": __version__,
            "upstream": {"url": upstream.url, "state": upstream.state, "seq": upstream.seq},
            "last_event_age_s": age_s,
            "log": {
                "events": figures.events,
                "bytes": figures.bytes_on_disk,
                "wal_bytes": figures.wal_bytes,
                "damaged": figures.damaged,
                "oldest_us": figures.oldest_us,
                "oldest": pages.iso(figures.oldest_us),
                "newest_us": newest,
                "newest": pages.iso(newest),
            },
            "subscribers": len(self.subscribe),
        }

    def _status(self, writable: bool) -> str:
        if not writable:
            return "the log cannot be written: is the disk full?"
        return "degraded" if self.conditions.reasons else "ok"

    def _families(self) -> Iterator[Metric]:
        figures, upstream = self.log.statistics(), self.upstream
        yield from gauge("jetstream_log_events", "Events in the log.", figures.events)
        yield from gauge("jetstream_log_bytes", "Size of the log on disk.", figures.bytes_on_disk)
        yield from gauge("jetstream_log_wal_bytes", "Size of its write-ahead log.", figures.wal_bytes)
        yield from gauge("jetstream_log_damaged", "Damaged parts that were met.", figures.damaged)
        yield from gauge(
            "jetstream_log_ahead_seconds",
            "How far the newest event is ahead of the clock.",
            max(0, self.log.tip - self._clock()) / 1e6,
        )
        yield from gauge("jetstream_log_oldest_us", "time_us of the oldest event.", figures.oldest_us)
        yield from gauge("jetstream_log_newest_us", "time_us of the newest event.", figures.newest_us)
        yield from gauge("jetstream_log_writable", "1 while commits succeed.", figures.writable)
        yield from gauge("jetstream_upstream_seq", "The last seq taken.", upstream.taken_seq)
        yield from gauge(
            "jetstream_upstream_lag_seconds",
            "How old upstream's last message was on arrival.",
            upstream.lag_s,
        )
        state = GaugeMetricFamily(
            "jetstream_upstream_state", "1 for the state upstream is in.", labels=["state"]
        )
        for name in get_args(State):
            state.add_metric([name], upstream.state == name)
        yield state
        condition = GaugeMetricFamily(
            "jetstream_condition", "1 while /health gives this reason.", labels=["condition"]
        )
        for name in CONDITIONS:
            condition.add_metric([name], name in self.conditions.reasons)
        yield condition


async def _start(server: Server, flag: str, address: Address) -> int:
    try:
        return await server.start(*address)
    except OSError as error:
        problem = (error.strerror or str(error)).partition(" (while ")[0]  # Python repeats the address
        raise SettingError(flag, str(address), f"cannot be listened on: {problem}") from error


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what went wrong first, out of a task group: a person wants to read that, not the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def raise_file_limit(subscribers_max: int, reserved: int) -> int | None:
    """Raise the soft limit of open files to the hard one; return how many subscribers fit if not all do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        logger.info("raised the limit of open files", soft=soft, hard=hard)
    if hard == resource.RLIM_INFINITY or hard >= subscribers_max + FILES_BESIDE_SUBSCRIBERS:
        return None
    return max(hard - min(reserved, hard // 8) - FILES_OF_OUR_OWN, 0)


async def _warn_of_files(service: Service, subscribers: int) -> None:
    """Say how many subscribers the limit of open files has room for, and what to do, once the server runs."""
    await service.started.wait()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = service.settings.max_subscribers + FILES_BESIDE_SUBSCRIBERS
    text = (
        f"the limit of open files is below what may be needed: there is room for {subscribers} subscribers."
        f" Raise it (`ulimit -Hn {needed}`, with systemd LimitNOFILE={needed}, with Docker"
        f" --ulimit nofile={needed}), or set --max-subscribers {subscribers}"
    )
    logger.warning(text, limit=limit, needed=needed)


async def serve(settings: Settings, limits: Limits = Limits()) -> None:
    """Run a service until SIGTERM or SIGINT; a second signal ends the process at once."""
    fit = raise_file_limit(settings.max_subscribers, limits.web.files_reserved)
    gc.collect()  # what the imports left, before it is put out of the collector's sight
    tune_gc()
    service = Service(settings, limits)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)
            signal.signal(name, signal.SIG_DFL)
        service.stop()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    upkeep = [loop.create_task(collect_young()), loop.create_task(release_memory())]
    if fit is not None:
        upkeep.append(loop.create_task(_warn_of_files(service, fit)))
    try:
        await service.run()
    finally:
        for task in upkeep:
            task.cancel()
