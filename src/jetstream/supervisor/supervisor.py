"""The process that has the ports: it starts the others, watches them, and stops them in order.

    start    listen; start the ingest, which checks the settings; once it is ready, the edges
    SIGHUP   every process reads the files again that settings name
    stop     the edges drain and end, then the ingest; the ports are closed after the edges

It has neither the log nor subscribers, so it stays small, and it does little that could fail.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import structlog

from jetstream.clock import unix_us
from jetstream.errors import JetstreamError, SettingError
from jetstream.limits import Limits
from jetstream.logging_setup import tell_omitted
from jetstream.runtime import first_error, raise_file_limit, reload_on_hangup, stop_on_signals, tune_gc
from jetstream.settings import Settings
from jetstream.supervisor.acceptor import Acceptor
from jetstream.supervisor.channel import ChannelMessage
from jetstream.supervisor.process import Place, Process
from jetstream.supervisor.setup import Setup
from jetstream.supervisor.shared_limits import SharedLimits, packed, unpacked
from jetstream.supervisor.starting import COMMAND
from jetstream.supervisor.view import Unanswered, View
from jetstream.web.listener import Listener
from jetstream.web.listening import listen, urls

logger = structlog.get_logger(__name__)


async def serve(settings: Settings, limits: Limits = Limits()) -> None:
    """Run a server of several processes until SIGTERM or SIGINT; a second signal ends it at once.

    Raises SettingError, and what ends the server.
    """
    raise_file_limit(0, limits.web.files_reserved, limits.runtime)
    tune_gc(limits.runtime)
    supervisor = Supervisor(settings, limits)
    stop_on_signals(supervisor.stop)
    if settings.has_files:
        reload_on_hangup(supervisor.reload)
    await supervisor.run()


class Supervisor:
    """All processes of one server. `command` are the arguments of Python with which they are started.

    `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        limits: Limits = Limits(),
        *,
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        # Set once all processes are ready.
        self.started = asyncio.Event()
        self._limits = limits
        process = partial(Process, owner=self, limits=limits.supervisor, command=command, clock=clock)
        self.ingest = process(Place("ingest"))
        self.edges = [process(Place("edge", number)) for number in range(1, settings.edges + 1)]
        self.acceptor = Acceptor(settings.edges, limits.supervisor, clock)
        self.view = View(self.ingest, self.edges, self.acceptor, limits, now_us=unix_us(), clock=clock)
        self._shared = SharedLimits(settings.max_subscribers)
        # The end of the pause after which what is shared is told; None: nothing is to be told.
        self._sharing: asyncio.TimerHandle | None = None
        # The listeners, the main one first; from `run` on.
        self._listeners: list[Listener] = []
        # How many processes were started.
        self._started = count(1)
        # Set by `stop`, and by a process that ends and is not replaced: then `_failure` says why.
        self._stopping = asyncio.Event()
        self._failure: JetstreamError | None = None

    @property
    def ports(self) -> list[int]:
        """The ports of the listeners, the main one first."""
        return [each.port for each in self._listeners]

    def stop(self) -> None:
        """Ask `run` to end in good order.

        No process is replaced any more: one that ends by itself may have got the same signal.
        """
        self.view.stopping = True
        for process in (self.ingest, *self.edges):
            process.retire()
        self._stopping.set()

    def reload(self) -> None:
        """Have every process read the files again that settings name."""
        for process in (self.ingest, *self.edges):
            process.tell(ChannelMessage("reload"))

    async def run(self) -> None:
        """Serve until `stop`.

        Raises SettingError for a setting that cannot be used, and what a process has failed with.
        """
        if self.settings.role != "all":
            problem = f"is for a server that does all, and --role is {self.settings.role}"
            raise SettingError("--edges", self.settings.edges, problem)
        try:
            await self._listen()
            async with asyncio.TaskGroup() as tasks:
                ingest = tasks.create_task(self._run(self.ingest))
                edges = [tasks.create_task(self._run(each, after=self.ingest)) for each in self.edges]
                helpers = [tasks.create_task(each) for each in self._helpers()]
                await self._stopping.wait()
                logger.info("stopping")
                await self._end(self.edges, edges, self.settings.drain or 0.0)
                self._close_listeners()
                await self._end([self.ingest], [ingest])
                for each in helpers:
                    each.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        finally:
            self._close_listeners()
            self.acceptor.close()
        tell_omitted(waiting=False)
        if self._failure is not None:
            raise self._failure
        logger.info("stopped")

    async def _listen(self) -> None:
        settings = self.settings
        await listen("--listen", settings.listen, partial(self._open, 0))
        if settings.metrics_listen is not None:
            await listen("--metrics-listen", settings.metrics_listen, partial(self._open, 1))

    async def _open(self, number: int, host: str, port: int) -> None:
        """Accept connections on an address. Raises OSError."""
        hand_over, acceptor = partial(self._accept, number), self.acceptor
        self._listeners.append(
            Listener(host, port, hand_over, limits=self._limits.web, is_full=lambda: acceptor.full)
        )

    async def _accept(self, listener: int, sock: socket.socket, _peer: str) -> None:
        self.acceptor.accept(listener, sock)

    def _close_listeners(self) -> None:
        """Accept no more connections."""
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    # --- the processes ---

    async def _run(self, process: Process, after: Process | None = None) -> None:
        """Run a process to its end, once another one is ready. Its failure stops the server."""
        if after is not None:
            await after.is_ready.wait()
        try:
            await process.run()
        except JetstreamError as error:
            self._failure = self._failure or error
            self.stop()

    async def _end(
        self, processes: Sequence[Process], tasks: Sequence[asyncio.Task[None]], drain_s: float = 0.0
    ) -> None:
        """Tell processes to end, wait, and kill those that do not end in time."""
        for process, task in zip(processes, tasks, strict=True):
            process.stop()
            if process.pid is None:  # it has not started
                task.cancel()
        await asyncio.wait(tasks, timeout=self._limits.supervisor.stop_s + drain_s)
        for process, task in zip(processes, tasks, strict=True):
            if not task.done():
                logger.error("a process did not end in time, and is killed", ended=str(process.place))
                process.kill()
        await asyncio.wait(tasks)

    def _helpers(self) -> Iterator[Coroutine[Any, Any, None]]:
        """Return what is done beside the processes, until cancelled."""
        limits = self._limits.supervisor
        yield self._repeat(limits.hang_s / limits.looks, self._look)
        yield self._repeat(limits.look_s, self.acceptor.pump)
        yield self._repeat(limits.gather_every_s, self._gather)
        yield self._tell()

    async def _repeat(self, every_s: float, work: Callable[[], Awaitable[None] | None]) -> None:
        """Do some work now and then. An error is logged, and does not end the server."""
        while True:
            await asyncio.sleep(every_s)
            try:
                if (rest := work()) is not None:
                    await rest
            except Exception:  # noqa: BLE001 - it is counted and logged
                self.view.note_failure("supervisor: an error, it goes on")

    def _look(self) -> None:
        """Look whether processes live."""
        for process in (self.ingest, *self.edges):
            process.look()

    async def _gather(self) -> None:
        """Take the figures that nobody has asked for, and do what is due."""
        await self.view.gather()
        self.view.uploads.expire()
        tell_omitted()

    async def _tell(self) -> None:
        """Log where everything is, once all processes are ready."""
        for process in (self.ingest, *self.edges):
            await process.is_ready.wait()
        settings = self.settings
        logger.info(
            "listening",
            **urls(settings, self.ports[0], tls=settings.tls_cert is not None),
            edges=settings.edges,
            **({"verify": settings.verify} if settings.mirrored is None else {}),
        )
        self.started.set()

    # --- what `Process` calls ---

    def began(self, process: Process, passing: socket.socket) -> ChannelMessage:
        """Return the setup of a process."""
        if process is self.ingest:
            passing.close()
        else:
            self.acceptor.begin(process.place.number, passing)
        place, number = process.place, next(self._started)
        return Setup.of(self.settings, self._limits, place, number, is_first=not process.was_ready).encode()

    def ready(self, process: Process) -> None:
        """Let an edge have connections, and what it must know of the others."""
        number = process.place.number
        if number:
            self._shared.begin(number)
            for body in self.view.uploads.bodies():
                process.tell(ChannelMessage("list", body=body))
            self._share_soon()
            self.acceptor.ready(number)

    def told(self, process: Process, message: ChannelMessage) -> None:
        """Take what a process tells of itself."""
        number, fields = process.place.number, message.fields
        if message.kind == "load":
            self._note_load(number, fields)
        elif message.kind == "usage":
            self._shared.add(number, unpacked(fields["changes"]))
            self._share_soon()
        elif message.kind == "leaving":
            if number:
                self.acceptor.leave(number)
        elif message.kind == "last":
            self.view.keep(process, message)
        elif message.kind == "lists":
            self._note_lists(process, fields["ids"])

    async def asked(self, _process: Process, message: ChannelMessage) -> ChannelMessage:
        """Answer a question for which all processes are needed."""
        try:
            return await self.view.answer(message)
        except Unanswered as error:
            return ChannelMessage(
                "", {"status": 503, "type": "text/plain; charset=utf-8"}, f"{error}\n".encode()
            )

    def ended(self, process: Process) -> None:
        """Give what a process had to others. An error in its figures must not keep others from the rest."""
        try:
            self.view.end(process)
        except Exception:  # noqa: BLE001 - it is counted and logged
            self.view.note_failure("supervisor: the counters of a process that has ended are lost")
        if process.place.number:
            self._shared.end(process.place.number)
            self.acceptor.end(process.place.number)
            self._share_soon()

    def _note_load(self, number: int, fields: Any) -> None:
        load = self.acceptor.loads.get(number)
        if load is not None:
            load.open, load.taken = fields["open"], fields["taken"]
            self._shared.count_subscribers(number, fields["subscribers"])
            self._share_soon()

    def _note_lists(self, process: Process, list_ids: list[str]) -> None:
        """Have the others keep the lists of DIDs that an edge uses."""
        self.view.uploads.use(list_ids)
        for other in self.edges:
            if other is not process:
                other.tell(ChannelMessage("lists", {"ids": list_ids}))

    def _share_soon(self) -> None:
        """Tell edges of each other, after a moment in which more may come."""
        if self._sharing is None:
            pause_s = self._limits.supervisor.share_every_s / 2
            self._sharing = asyncio.get_running_loop().call_later(pause_s, self._share)

    def _share(self) -> None:
        self._sharing = None
        for number in self._shared.edges:
            changes, others = self._shared.take(number)
            process = self.edges[number - 1]
            if changes:
                process.tell(ChannelMessage("usage", {"changes": packed(changes)}))
            if others is not None:
                process.tell(ChannelMessage("subscribers", {"elsewhere": others}))
