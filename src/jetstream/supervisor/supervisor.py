"""The process that has the ports: it starts the others, watches them, and stops them in order.

    start    listen; start the ingest, which checks the settings; once it is ready, the edges
    SIGHUP   every process reads the files again that settings name
    stop     the edges drain and end, then the ingest; the ports are closed after the edges

It has neither the log nor subscribers, so it stays small, and it does little that could fail.

What it has: the listeners and the connections that wait (`Acceptor`), a `Process` for each place, the
last figures of all (`View`), and what limits are shared (`SharedLimits`). Each child tells it
something, and it tells the others:

    kind         from a child              to children
    ready        it serves                 to an edge: lists, usage and subscribers of the others
    load         connections, subscribers  `subscribers`, to those that do not know it
    usage        changes of addresses      `usage`, to the other edges
    lists        lists of DIDs in use      `lists`, to the other edges
    leaving      an edge ends by itself
    last         its figures at the end
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

    SIGHUP reads files of settings again, if there are any. A LogError or another error of a process is
    raised here as that process said it. To be called once in a process, in the main thread: it handles
    signals.
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

    `run` is called once. `stop` and `reload` may be called at any time from the event loop's thread.
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
        # Those of the supervisor are under `limits.supervisor`; the others are given to the children.
        self._limits = limits
        # Every child has the same command and clock; only its place differs.
        process = partial(Process, owner=self, limits=limits.supervisor, command=command, clock=clock)
        self.ingest = process(Place("ingest"))
        self.edges = [process(Place("edge", number)) for number in range(1, settings.edges + 1)]
        # Connections on their way, and the load of each edge. Its edges are the numbers of these
        # places.
        self.acceptor = Acceptor(settings.edges, limits.supervisor, clock)
        # The last figures of all processes, and answers made of them.
        self.view = View(self.ingest, self.edges, self.acceptor, limits, now_us=unix_us(), clock=clock)
        # What edges have of addresses and subscribers; changed by what they tell.
        self._shared = SharedLimits(settings.max_subscribers)
        # The end of the pause after which what is shared is told; None: nothing is to be told.
        self._sharing: asyncio.TimerHandle | None = None
        # The listeners, the main one first; from `run` on.
        self._listeners: list[Listener] = []
        # The number of the next process that is started, of any place: it gives the process its range of IDs.
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

        A second call does nothing. Connections are accepted until the edges have ended.
        """
        self.view.stopping = True
        for process in (self.ingest, *self.edges):
            process.retire()
        self._stopping.set()

    def reload(self) -> None:
        """Have every process read the files again that settings name.

        These are the file of upstreams, tokens and certificates. A process that has not started yet
        reads them when it does.
        """
        for process in (self.ingest, *self.edges):
            process.tell(ChannelMessage("reload"))

    async def run(self) -> None:
        """Serve until `stop`.

        Raises SettingError for a setting that cannot be used, and what a process has failed with.

        Of several failures, the first one is raised. In every case, no process is left when this
        returns: what does not end in `stop_s` seconds, and the time to drain, is killed.
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
        """Open the listeners of the settings. Raises SettingError for an address that cannot be used.

        They accept at once. Connections wait in the acceptor until the first edge is ready.
        """
        settings = self.settings
        await listen("--listen", settings.listen, partial(self._open, 0))
        if settings.metrics_listen is not None:
            await listen("--metrics-listen", settings.metrics_listen, partial(self._open, 1))

    async def _open(self, number: int, host: str, port: int) -> None:
        """Accept connections on an address. Raises OSError.

        `number` is what edges know the listener by. With a port of 0, the system chooses one.
        """
        hand_over, acceptor = partial(self._accept, number), self.acceptor
        self._listeners.append(
            Listener(host, port, hand_over, limits=self._limits.web, is_full=lambda: acceptor.full)
        )

    async def _accept(self, listener: int, sock: socket.socket, _peer: str) -> None:
        """Give an accepted connection to the acceptor. The edge finds out the peer by itself."""
        self.acceptor.accept(listener, sock)

    def _close_listeners(self) -> None:
        """Accept no more connections.

        Clients in the queue of the kernel are refused. Without listeners, nothing happens.
        """
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    # --- the processes ---

    async def _run(self, process: Process, after: Process | None = None) -> None:
        """Run a process to its end, once another one is ready. Its failure stops the server.

        Edges wait for the ingest because it makes the log, and because it checks the settings: what is
        wrong with them is said once, and not by each edge.
        """
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
        """Tell processes to end, wait, and kill those that do not end in time.

        `tasks` are those that run the processes, in the same order. It returns when all of them have
        ended.
        """
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
        """Return what is done beside the processes, until cancelled.

        They kill processes that are silent, pass connections that have waited long enough, gather
        figures, and log when all is ready.
        """
        limits = self._limits.supervisor
        yield self._repeat(limits.hang_s / limits.looks, self._look)
        yield self._repeat(limits.look_s, self.acceptor.pump)
        yield self._repeat(limits.gather_every_s, self._gather)
        yield self._tell()

    async def _repeat(self, every_s: float, work: Callable[[], Awaitable[None] | None]) -> None:
        """Do some work now and then. An error is logged, and does not end the server.

        `work` may return an awaitable, which is awaited before the next pause.
        """
        while True:
            await asyncio.sleep(every_s)
            try:
                if (rest := work()) is not None:
                    await rest
            except Exception:  # noqa: BLE001 - it is counted and logged
                self.view.note_failure("supervisor: an error, it goes on")

    def _look(self) -> None:
        """Look whether processes live; one that is silent for too long is killed, and replaced."""
        for process in (self.ingest, *self.edges):
            process.look()

    async def _gather(self) -> None:
        """Take the figures that nobody has asked for, and do what is due.

        Figures are gathered so that little is lost of the counters of a process that is killed. Uploads
        whose time is over are dropped, and log lines that were left out are written.
        """
        await self.view.gather()
        self.view.uploads.expire()
        tell_omitted()

    async def _tell(self) -> None:
        """Log where everything is, once all processes are ready.

        If a process ends before all have been ready, this waits for its successor.
        """
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
        """Return the setup of a process.

        `passing` is the supervisor's end of the socket for connections, of which the ingest needs none.
        """
        if process is self.ingest:
            passing.close()
        else:
            self.acceptor.begin(process.place.number, passing)
        place, number = process.place, next(self._started)
        return Setup.of(self.settings, self._limits, place, number, is_first=not process.was_ready).encode()

    def ready(self, process: Process) -> None:
        """Let an edge have connections, and what it must know of the others.

        The lists of DIDs come first: a client that was moved to this edge may ask for its list at once.
        """
        number = process.place.number
        if number:
            self._shared.begin(number)
            for body in self.view.uploads.bodies():
                process.tell(ChannelMessage("list", body=body))
            self._share_soon()
            self.acceptor.ready(number)

    def told(self, process: Process, message: ChannelMessage) -> None:
        """Take what a process tells of itself.

        Other kinds are ignored. `leaving` of the ingest has no consequence: it has no connections.
        """
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
        """Answer a question for which all processes are needed.

        An answer that cannot be given is a response of status 503, which the client gets.
        """
        try:
            return await self.view.answer(message)
        except Unanswered as error:
            return ChannelMessage(
                "", {"status": 503, "type": "text/plain; charset=utf-8"}, f"{error}\n".encode()
            )

    def ended(self, process: Process) -> None:
        """Give what a process had to others. An error in its figures must not keep others from the rest.

        The counters of the process are kept, the other edges are told what it had of addresses, and
        connections that it has not taken go to others.
        """
        try:
            self.view.end(process)
        except Exception:  # noqa: BLE001 - it is counted and logged
            self.view.note_failure("supervisor: the counters of a process that has ended are lost")
        if process.place.number:
            self._shared.end(process.place.number)
            self.acceptor.end(process.place.number)
            self._share_soon()

    def _note_load(self, number: int, fields: Any) -> None:
        """Take how many connections an edge has, and how many it has taken, so that `spread` knows its load.

        An ingest has no load. The number of subscribers counts for the limit of all of them.
        """
        load = self.acceptor.loads.get(number)
        if load is not None:
            load.open, load.taken = fields["open"], fields["taken"]
            self._shared.count_subscribers(number, fields["subscribers"])
            self._share_soon()

    def _note_lists(self, process: Process, list_ids: list[str]) -> None:
        """Have the others keep the lists of DIDs that an edge uses.

        A list in use at one edge must not be dropped by the others: its client may be moved to one of
        them.
        """
        self.view.uploads.use(list_ids)
        for other in self.edges:
            if other is not process:
                other.tell(ChannelMessage("lists", {"ids": list_ids}))

    def _share_soon(self) -> None:
        """Tell edges of each other, after a moment in which more may come.

        The pause is half of `share_every_s`: the edge has waited the other half.
        """
        if self._sharing is None:
            pause_s = self._limits.supervisor.share_every_s / 2
            self._sharing = asyncio.get_running_loop().call_later(pause_s, self._share)

    def _share(self) -> None:
        """Tell each edge what has changed at the others. Nothing is sent to an edge that knows everything.

        An edge that ends while this is sent loses it, and its successor is told all.
        """
        self._sharing = None
        for number in self._shared.edges:
            changes, others = self._shared.take(number)
            process = self.edges[number - 1]
            if changes:
                process.tell(ChannelMessage("usage", {"changes": packed(changes)}))
            if others is not None:
                process.tell(ChannelMessage("subscribers", {"elsewhere": others}))
