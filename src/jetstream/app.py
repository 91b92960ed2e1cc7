"""The server's life: its parts are built, started in order, and stopped in order.

    start   open the log, then the listeners; then run delivery, upstream and the watch
    SIGHUP  read the files again that settings name
    stop    close the subscribers one after another, if that is asked for; accept no more connections, stop
            reading upstream, close the other subscribers, stop delivery, close the listeners, close the log

What was read from upstream is stored before the subscribers are closed, so a restart resumes after it. If a
part fails, the subscribers are closed and the error ends the server.

    role     log                                    upstream    subscribers
    all      its own                                yes         yes
    ingest   its own, which edges read              yes         no
    edge     that of another process, read only     no          yes
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

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
from jetstream.eventlog import LogReader, ReadWriteLog
from jetstream.eventlog.mirrored import MirroredLog
from jetstream.eventlog.opening import erased_statuses, open_database, open_edge_log, open_log
from jetstream.eventlog.sqlite.edge import EdgeLog
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.figures import Figures, log_ends
from jetstream.intake import Intake, starts_of, upstreams_of
from jetstream.limits import Limits
from jetstream.logging_setup import tell_omitted
from jetstream.metrics import Metrics
from jetstream.roles import reads_upstream, serves_subscribers
from jetstream.runtime import (
    FileShortage,
    cancelled,
    first_error,
    housekeeping,
    raise_file_limit,
    reload_on_hangup,
    stop_on_signals,
    tune_gc,
    unless,
    written_bytes,
)
from jetstream.settings import Settings, require_data_dir
from jetstream.status import EdgeStatus, ReaderStatus, Status
from jetstream.web.access import Access
from jetstream.web.dialect import SHUTDOWN
from jetstream.web.subscribe import FAILED, Subscribe

if TYPE_CHECKING:
    from jetstream.eventlog.postgresql.store import PostgresLog
    from jetstream.terms import Terms

logger = structlog.get_logger(__name__)


async def serve(settings: Settings, limits: Limits = Limits()) -> None:
    """Run a server until SIGTERM or SIGINT; a second signal ends the process at once.

    Raises SettingError, and what `Service.run` raises.
    """
    # Each upstream takes an open file, and so does each subscriber: both numbers are known before
    # anything opens.
    upstreams = len(upstreams_of(settings, limits)) if reads_upstream(settings.role) else 0
    most = settings.max_subscribers if serves_subscribers(settings.role) else 0
    shortage = raise_file_limit(most, limits.web.files_reserved, limits.runtime.beside(upstreams))
    tune_gc(limits.runtime)
    service = Service(settings, limits)
    stop_on_signals(service.stop)
    if settings.has_files:
        reload_on_hangup(service.reload)
    async with housekeeping(limits.runtime):
        await service.run(shortage)


class Service:
    """One server: its upstreams, a log, the delivery to subscribers, and the routes, as its role has them.

    `clock` gives unix microseconds, as the machine has them. `reader` and `endpoints` are built by
    `run`, and exist from `started` on; so do `log` and `intake` where the server reads upstream, and
    `delivery` and `subscribe` where it has subscribers. With the log in PostgreSQL, `log` and `intake`
    are not set: each term has an intake of its own (`terms`).

    `siblings` are the other processes of its server, if there are any. `first_id` is below the IDs of
    all subscribers here, which other processes do not give out.

    Everything runs on one event loop. Make a service in it, call `run` once, and `stop` from a signal
    handler of that loop.
    """

    log: SqliteLog
    intake: Intake
    delivery: Delivery
    subscribe: Subscribe

    def __init__(
        self,
        settings: Settings,
        limits: Limits = Limits(),
        *,
        clock: Callable[[], int] = unix_us,
        siblings: Siblings | None = None,
        first_id: int = 0,
    ) -> None:
        # Fixed for the life of the server. Files that settings name are read again by `reload`; their
        # names do not change.
        self.settings = settings
        # All counters of this process. The parts add to them, and the gauges are made of `status` at
        # each scrape.
        self.metrics = Metrics(RENDERERS)
        # The lasting states that an operator must know of. All parts begin and end them here.
        self.conditions = Conditions()
        # Set once the listeners are open and the parts run. A process of a server with several tells
        # the supervisor then that it is ready.
        self.started = asyncio.Event()
        # What of the server's work its role has. At least one of both is true.
        self._reads = reads_upstream(settings.role)
        self._serves = serves_subscribers(settings.role)
        # Where no subscriber of this process waits for events, upstream is read in larger portions.
        self._limits = limits if self._serves else limits.of_ingest()
        # The time of all parts: the stamps of events, retention and `/status.json`. It may differ from
        # the wall clock.
        self._clock = SteadyClock(int(settings.clock_settle * 1_000_000), clock)
        # Samples of the counters, one a second, from `_watch`.
        self.figures = Figures(self.metrics, self.status, limits.runtime)
        # None: this process is the whole server, and listens itself.
        self._siblings = siblings
        self._first_id = first_id
        # The log of another process; None where this one writes it.
        self._edge: EdgeLog | PostgresLog | None = None
        # Leads the log in PostgreSQL, when it may; None: that is not for this server.
        self._terms: Terms | None = None
        # Set by `stop`, and never cleared. `/ready` answers 503 from then on.
        self._stopping = asyncio.Event()
        # Set by `reload`. `Intake.run` clears it when it reads the file, so several requests in between
        # become one.
        self._reloading = asyncio.Event()

    @property
    def port(self) -> int:
        """The port of the main listener, once it is open."""
        return self.endpoints.port

    def reload(self) -> None:
        """Ask `run` to read `--upstream-file` again, and read the other files that settings name.

        Returns at once. A file that cannot be used changes nothing, and is logged where it is read.
        """
        if self._reads and self.settings.upstream_file is not None:
            self._reloading.set()
        self.access.reload()

    def stop(self) -> None:
        """Ask `run` to end in good order: return at once, and do nothing if it was called before."""
        self._stopping.set()

    async def run(self, shortage: FileShortage | None = None) -> None:
        """Serve until `stop`. Warns of a shortage of files once everything else is found usable.

        Raises SettingError for an upstream, a directory or an address that cannot be used, LogError for
        a log that cannot be opened, and the first error of a part that has failed while the server ran.
        Returns without serving if `stop` is called while a log in another process is waited for.
        """
        # The checks come in the order of their cost: nothing is created for settings that cannot be
        # used.
        settings = self.settings
        if self._reads:  # what is wrong with the upstreams is said before the log is opened
            starts_of(settings, upstreams_of(settings, self._limits))
        if self._siblings is None and (unused := settings.unused):
            logger.info("ignoring settings without effect in this role", role=settings.role, names=unused)
        # The order from here on: files that settings name, then the log, then the parts that use it.
        # What is opened is closed in reverse, so the log is closed last.
        require_data_dir(settings.data_dir)
        self.access = Access(settings, self.conditions, self._limits.web)
        self._dictionary = self._open_dictionary()
        async with AsyncExitStack() as ending:
            if not await self._open_log(ending):
                return
            if self._dictionary is not None:
                ending.push_async_callback(self._dictionary.close)
            if self._reads and self._terms is None:
                self.intake = self._new_intake(self.log)
                ending.push_async_callback(self.intake.close)
            await self._run(shortage)

    async def _open_log(self, ending: AsyncExitStack) -> bool:
        """Open the log, and have it closed at the end. Returns False if the server is stopped before."""
        settings, limits = self.settings, self._limits.log
        self.reader: LogReader
        # A log that another process writes may be missing or unreachable: it is waited for, until
        # `stop`. One of this process is opened at once, or the server ends.
        if settings.database is not None or not self._reads:
            if await unless(self._stopping, self._open_other()) is None:
                logger.info("stopped")
                return False
            ending.push_async_callback(self._close_log, self.reader)
            return True
        if settings.log is not None:
            require_data_dir(settings.log_dir, "--log")
        # Readers and the writer of this process share one object.
        self.reader = self.log = await open_log(settings, self._clock, self.conditions, limits)
        ending.push_async_callback(self._close_log, self.log)
        if self.log.clock_offset_us is not None:
            self._clock.resume(self.log.clock_offset_us)
        return True

    async def _open_other(self) -> LogReader:
        """Open a log that another process may write, and prepare to lead it, if that is for this server."""
        # `on_read` counts events where another process stores them: the writer's metrics are not here.
        settings, limits, on_read = self.settings, self._limits.log, self.metrics.count_events
        if settings.database is None:
            self.reader = self._edge = await open_edge_log(settings, self.conditions, limits, on_read)
            return self.reader
        log = await open_database(settings.database, self.conditions, limits, on_read, writes=self._reads)
        self.reader = self._edge = log
        if self._reads:
            self._terms = self._new_terms(log)
        return log

    def _new_terms(self, log: PostgresLog) -> Terms:
        """Return what leads the log in PostgreSQL, and makes an intake for each term."""
        from jetstream.terms import terms_of  # noqa: PLC0415 - loads asyncpg

        return terms_of(self.settings, log, self._clock, self._new_intake, self.conditions, self._limits)

    def _new_intake(self, log: ReadWriteLog) -> Intake:
        """Return what reads upstream and writes to a log: the server's own, or that of a term.

        An intake of a term goes on after the cursors of the log, whatever `--upstream-cursor` says of
        these sources: it would else begin there again with each term.
        """
        return Intake(
            self.settings,
            log,
            self._clock,
            self.metrics,
            self.conditions,
            self._limits,
            # Asked again and again: without a subscriber, upstream is read with longer pauses.
            is_awaited=lambda: self._serves and bool(self.delivery),
            takes_over=self._terms is not None,
        )

    @property
    def _reading(self) -> Intake | None:
        """What reads upstream now, if anything does."""
        if self._terms is not None:
            return self._terms.intake
        return self.intake if self._reads else None

    async def _close_log(self, log: SqliteLog | EdgeLog | PostgresLog) -> None:
        """Close the log, and print the last lines: the ones that were omitted, and the tip."""
        await log.close()
        tell_omitted(waiting=False)
        logger.info("stopped", tip=log.tip)

    def _open_dictionary(self) -> PublicDictionary | None:
        """Return the dictionary of compressed messages; None where they are not offered."""
        settings = self.settings
        if settings.zstd_dictionary == "none" or not self._serves:
            return None
        # In a process of its own: the libraries for downloading take no memory of the server.
        fetch = partial(fetch_in_process, settings.data_dir, settings.zstd_dictionary_url)
        return PublicDictionary(settings.zstd_dictionary, settings.data_dir, fetch)

    def _erases(self) -> frozenset[str]:
        """Return the statuses of accounts whose records are erased; of an edge, as its settings say."""
        reading = self._reading
        return erased_statuses(self.settings) if reading is None else reading.erases

    def _shown_log(self) -> LogReader:
        """Return the log as readers see it: that of a mirror may be behind the stream."""
        mirrored = self.settings.mirrored
        if mirrored is None:
            return self.reader
        from jetstream.upstream.mirror.question import newest_of  # noqa: PLC0415 - for mirrors only

        return MirroredLog(
            self.reader,
            partial(newest_of, mirrored.url, self._limits.upstream.question_timeout_s),
            self._clock,
        )

    async def _run(self, shortage: FileShortage | None) -> None:
        """Start the parts over the open log, run them until `stop`, and stop them in order.

        Raises the first error of a part. The subscribers are closed in any case: with `SHUTDOWN`, which
        tells them to come back, or with `FAILED` if a part has failed.
        """
        # What readers see of the log. The writer has `self.log`, or that of its term.
        self._shown = self._shown_log()
        if self._serves:
            self.delivery = Delivery(
                self._shown,
                self.metrics,
                self._limits.delivery,
                slow_timeout_s=self.settings.slow_timeout,
                buffer_total=self.settings.buffer_total,
            )
        # Before the listeners are open: an error of the settings ends the command before a client is
        # connected.
        if self._reads and self._terms is None:
            await self.intake.open()
        self.metrics.watch(self.status)
        self._check_clock()
        await self._listen()
        # Last, so that it is the line that an operator sees below the addresses.
        if shortage is not None:
            shortage.warn()
        try:
            # An error in any of these tasks cancels the others and this one, and comes out as a group.
            async with asyncio.TaskGroup() as tasks:
                upstream = self._started(tasks, self._upstream_work())
                following = self._started(tasks, None if self._edge is None else self._edge.run())
                delivery = self._started(tasks, self.delivery.run() if self._serves else None)
                watch = tasks.create_task(self._watch())
                self.started.set()
                await self._stopping.wait()
                # Events still come from upstream while connections are drained: those that are left get
                # them.
                await self._drain()
                self.endpoints.stop_accepting()
                if upstream is not None:  # the log is followed until the subscribers are closed
                    await cancelled(upstream)
                # What was read from upstream is stored by now: a client that comes back with its cursor
                # misses nothing.
                await self._close_subscribers(SHUTDOWN)
                for task in (delivery, following, watch):
                    if task is not None:
                        await cancelled(task)
        except BaseExceptionGroup as group:
            await self._close_subscribers(FAILED)
            raise first_error(group) from group
        finally:
            await self.endpoints.close()

    def _upstream_work(self) -> Coroutine[Any, Any, None] | None:
        """Return what reads upstream until it is cancelled; None: nothing does."""
        if self._terms is not None:
            return self._terms.run(self._reloading)
        return self.intake.run(self._reloading) if self._reads else None

    def _started(
        self, tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, None] | None
    ) -> asyncio.Task[None] | None:
        """Return a task of some work in the group; None where there is no work."""
        return None if work is None else tasks.create_task(work)

    async def _drain(self) -> None:
        """Close the subscribers one after another, if that is asked for. `/ready` answers 503 by now.

        It takes the seconds of `--drain`, or of an edge without that setting `RuntimeLimits.drain_s`. A
        load balancer has that long to send new clients elsewhere.
        """
        # With siblings the supervisor has set 0 where the setting is absent: its edges are closed at
        # once then.
        drain_s = self.settings.drain
        if drain_s is None and self.settings.role == "edge":
            drain_s = self._limits.runtime.drain_s
        if not self._serves:
            logger.info("stopping")
            return
        logger.info("stopping", subscribers=len(self.subscribe), **({"drain_s": drain_s} if drain_s else {}))
        if drain_s is not None:
            await self.subscribe.drain(drain_s, SHUTDOWN)

    async def _watch(self) -> None:
        """Do what is due now and then, although nobody asks for it. An error in it ends the server."""
        while True:
            await asyncio.sleep(self._limits.runtime.watch_every_s)
            self._check_clock()
            self._check_full()
            if (intake := self._reading) is not None:
                intake.check()
            self.endpoints.did_lists.expire()
            self.access.check()
            self.figures.take()
            tell_omitted()

    def _check_clock(self) -> None:
        """Begin or end the condition `clock`, by the tip and by what `SteadyClock` ignores now."""
        now_us, clock = self._clock(), self._clock
        reason = clock_reason(self.reader.tip, now_us, clock.ignored_us, self.settings.clock_settle)
        self.conditions.set("clock", reason)

    def _check_full(self) -> None:
        """Begin or end the condition `full`, which says that there is no room for another subscriber."""
        if self._serves and self.settings.max_subscribers:  # 0: none is wanted
            self.conditions.set("full", self.subscribe.full)

    async def _listen(self) -> None:
        """Open the listeners, and say where everything is.

        Raises SettingError for an address that cannot be listened on. With siblings nothing is listened
        on here: connections are passed on by the supervisor.
        """
        parts = Parts(
            self._shown,
            self.delivery if self._serves else None,
            Dictionaries(self._dictionary),
            self.metrics,
            self.figures,
            self.status,
            self._clock,
            self._erases,
        )
        limits, siblings = self._limits.web, self._siblings
        self.endpoints = Endpoints(self.settings, self.access, parts, limits, siblings, self._first_id)
        if self.endpoints.subscribe is not None:
            self.subscribe = self.endpoints.subscribe
        await self.endpoints.start()
        # The one line that an operator reads first: only what differs from the usual is in it.
        fields = {
            **({} if self.settings.role == "all" else {"role": self.settings.role}),
            **({"verify": self.settings.verify} if self._reads and self.settings.mirrored is None else {}),
            **({} if self._edge is None else {"log": str(self.settings.log or self.settings.log_dir)}),
            **log_ends(self.reader.statistics().newest_us, self._clock()),
            **({} if self._reading is None else self._reading.fields()),
        }
        if siblings is None:
            logger.info("listening", **self.endpoints.urls(), **fields)
        else:
            logger.info("started", **fields)

    async def _close_subscribers(self, close: Close) -> None:
        """Close all subscribers at once, and wait until they are gone, for `RuntimeLimits.close_s` at most.

        How many take longer is logged. Their connections are closed with the listener.
        """
        if not self._serves:
            return
        self.subscribe.close_all(close)
        try:
            async with asyncio.timeout(self._limits.runtime.close_s):
                await self.subscribe.empty.wait()
        except TimeoutError:
            logger.warning("subscribers did not close in time", subscribers=len(self.subscribe))

    def _edge_status(self) -> EdgeStatus | None:
        """Return where the server stands with a log that another process writes; None: it writes it."""
        if self._edge is None or self._reading is not None:
            return None
        return self._edge.status(self.delivery.position if self._serves else self.reader.tip + 1)

    def status(self) -> Status:
        """Return the state of the server now.

        The only place where the parts are put together for `/health`, `/ready`, `/status.json` and the
        gauges. Raises OSError if the log's disk does not answer.
        """
        # Read once: with the log in PostgreSQL, each term has another intake, and there is none between
        # terms.
        intake = self._reading
        sources = None if intake is None else intake.sources
        return Status(
            version=__version__,
            now_us=self._clock(),
            tip=self.reader.tip,
            log=self.reader.statistics(),
            upstreams=() if sources is None else sources.relays(),
            reasons=dict(self.conditions.reasons),
            subscribers=len(self.subscribe) if self._serves else 0,
            pds=None if sources is None else sources.pds(),
            waiting=None if intake is None else intake.waiting,
            readers=self.delivery.readers() if self._serves else ReaderStatus(),
            subscribers_max=self.settings.max_subscribers if self._serves else 0,
            collections=self.metrics.collections.totals(),
            written_bytes=written_bytes(),
            certificate_expires_s=self.access.certificate_expires_s,
            role=self.settings.role,
            edge=self._edge_status(),
            stopping=self._stopping.is_set(),
            ready_idle_s=self.settings.ready_idle,
            ready_lag_s=self.settings.ready_lag,
        )
