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
from jetstream.dictionary.public import PublicDictionary, fetch_in_process
from jetstream.endpoints import Endpoints, Parts, Siblings
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
from jetstream.settings import Settings, require_data_dir
from jetstream.status import Status
from jetstream.web.access import Access
from jetstream.web.dialect import SHUTDOWN
from jetstream.web.subscribe import FAILED

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

    `clock` gives unix microseconds, as the machine has them. `log`, `delivery`, `intake`, `endpoints`
    and `subscribe` are built by `run`, and exist from `started` on.

    `siblings` are the other processes of its server, if there are any; they have other subscribers, whose IDs
    are not above `first_id`, or above all that are given out here.
    """

    def __init__(
        self,
        settings: Settings,
        limits: Limits = Limits(),
        *,
        clock: Callable[[], int] = unix_us,
        siblings: Siblings | None = None,
        first_id: int = 0,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics(RENDERERS)
        self.conditions = Conditions()
        self.started = asyncio.Event()  # set once the listeners are open and the parts run
        self._limits = limits
        self._clock = SteadyClock(int(settings.clock_settle * 1_000_000), clock)
        self.figures = Figures(self.metrics, self.status, limits.runtime)
        self._siblings = siblings
        self._first_id = first_id
        self._stopping = asyncio.Event()  # set by `stop`
        self._reloading = asyncio.Event()  # set by `reload`, until the file is read

    @property
    def port(self) -> int:
        """The port of the main listener, once it is open."""
        return self.endpoints.port

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
                self.settings,
                self.log,
                self._clock,
                self.metrics,
                self.conditions,
                self._limits,
                is_awaited=lambda: bool(self.delivery),
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
        await self._listen()
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
                self.endpoints.stop_accepting()
                await cancelled(upstream)
                await self._close_subscribers(SHUTDOWN)
                await cancelled(delivery)
                await cancelled(watch)
        except BaseExceptionGroup as group:
            await self._close_subscribers(FAILED)
            raise first_error(group) from group
        finally:
            await self.endpoints.close()

    async def _watch(self) -> None:
        """Do what is due now and then, although nobody asks for it."""
        while True:
            await asyncio.sleep(self._limits.runtime.watch_every_s)
            self._check_clock()
            self.intake.check()
            self.endpoints.did_lists.expire()
            self.access.check()
            self.figures.take()
            tell_omitted()

    def _check_clock(self) -> None:
        now_us, clock = self._clock(), self._clock
        reason = clock_reason(self.log.tip, now_us, clock.ignored_us, self.settings.clock_settle)
        self.conditions.set("clock", reason)

    async def _listen(self) -> None:
        """Open the listeners, and say where everything is."""
        parts = Parts(
            self.log,
            self.delivery,
            Dictionaries(self._dictionary),
            self.metrics,
            self.figures,
            self.status,
            self._clock,
        )
        limits, siblings = self._limits.web, self._siblings
        self.endpoints = Endpoints(self.settings, self.access, parts, limits, siblings, self._first_id)
        self.subscribe = self.endpoints.subscribe
        await self.endpoints.start()
        logger.info(
            "listening",
            **self.endpoints.urls(),
            verify=self.settings.verify,
            **log_ends(self.log.statistics().newest_us, self._clock()),
            **self.intake.fields(),
        )

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
            certificate_expires_s=self.access.certificate_expires_s,
            stopping=self._stopping.is_set(),
            ready_idle_s=self.settings.ready_idle,
            ready_lag_s=self.settings.ready_lag,
        )
