"""`jetstream demo-cluster`: a cluster on this machine, shown while it runs, until Ctrl-C.

On a terminal, a table of all processes stays at the bottom, and what happens scrolls above it.
Elsewhere, the table is printed once.

    `run` ─▶ Show ─┬─ Cluster: starts, ends and asks the processes
                   ├─ Keeper: starts again what has ended, and says so
                   ├─ Balancer: one address for the edges
                   └─ demo_view: the table
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from jetstream.cluster.balancer import Balancer
from jetstream.cluster.cluster import Cluster
from jetstream.cluster.demo_view import Row, Served, counted, of_edge, of_ingest, of_server, to_try, view
from jetstream.cluster.keeper import RESTART_S, Keeper
from jetstream.cluster.members import HOST, KINDS, Change, Shape, members
from jetstream.cluster.ports import free_ports, taken
from jetstream.cluster.postgres import Postgres
from jetstream.cluster.process import MemberFailed, Process
from jetstream.errors import SettingError
from jetstream.runtime import reload_on_hangup, stop_on_signals, unless

# Seconds between two looks at which processes have ended.
LOOK_S: Final = 0.2
# Seconds between two looks at what they say of themselves, which is asked over HTTP and SQL.
SHOW_S: Final = 1.0
# Its directory tells that a directory is one of this command.
_FIRST_SERVER: Final = "postgres-1"
# Logs are for people. What a client was sent can be compared with the log, also of accounts that end later.
_CHANGES: Final = {
    "ingest": Change(settings={"log-format": "text", "forget": "none"}),
    "edge": Change(settings={"log-format": "text"}),
}


@dataclass(frozen=True)
class Demo:
    """What is asked for. `port` is that of the balancer; the processes have those after it. 0: free ones.

    Without a `directory` there is a temporary one, which is removed. `restart_s` is after how many seconds a
    process that has ended is started again; None: never.
    """

    shape: Shape
    port: int = 6008
    directory: Path | None = None
    restart_s: float | None = RESTART_S


async def run(demo: Demo, console: Console) -> None:
    """Run a cluster until SIGINT, SIGTERM or SIGHUP, and leave nothing of it.

    Raises SettingError, PostgresMissing or MemberFailed if it cannot be started.

    Everything ends when this returns or raises. A temporary directory stays only if a process has
    failed, with the logs that say why.
    """
    ports = _ports(demo)
    stopped = asyncio.Event()
    stop_on_signals(stopped.set)
    reload_on_hangup(stopped.set)
    with _directory(demo.directory) as directory:
        cluster = Cluster(members(demo.shape, ports[1:], directory, _CHANGES), directory)
        show = Show(cluster, console, demo.restart_s)
        try:
            if await unless(stopped, show.start(ports[0])):
                await show.run(stopped)
        finally:
            await show.close()


def _ports(demo: Demo) -> Sequence[int]:
    """Return the ports of the balancer and of all processes. Raises SettingError if one is not free.

    The first one is for the balancer. None is reserved: another program may take one before the cluster
    does.
    """
    count = demo.shape.size + 1
    if demo.port == 0:
        return free_ports(count)
    ports = range(demo.port, demo.port + count)
    if (port := taken(ports)) is not None:
        problem = f"cannot be used: ports {ports[0]} to {ports[-1]} are needed, and {port} is in use"
        raise SettingError("--port", demo.port, f"{problem}. Choose another one; 0 takes some that are free")
    return ports


@contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    """Give a directory; a temporary one is removed, unless the cluster has failed. Raises SettingError."""
    if given is not None:
        yield _usable(given)
        return
    directory = Path(tempfile.mkdtemp(prefix="jetstream-demo-"))
    directory.chmod(0o711)  # where this process is root, another user runs PostgreSQL in it
    try:
        yield directory
    except MemberFailed as error:
        raise MemberFailed(f"{error}. The files of all processes are in {directory}") from error
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory, ignore_errors=True)


def _usable(directory: Path) -> Path:
    """Make a directory if it is not there. Raises SettingError if it is something else's.

    Data of an earlier run of this command is used again.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        has_others = any(directory.iterdir()) and not (directory / _FIRST_SERVER).exists()
    except OSError as error:
        raise SettingError("--dir", str(directory), f"cannot be used: {error.strerror}") from error
    if has_others:
        raise SettingError("--dir", str(directory), "has other files: give an empty directory, or a new name")
    return directory


class Show:
    """A cluster with its balancer, its keeper, and what is shown of it.

    Call `start`, then `run`, and `close` in every case.
    """

    def __init__(self, cluster: Cluster, console: Console, restart_s: float | None) -> None:
        self._cluster = cluster
        self._console = console
        # Whether processes that end are started again. Shown, as what to try depends on it.
        self._restarts = restart_s is not None
        # Looks after the processes from `run` on, and knows who leads.
        self._keeper = Keeper(cluster, self.tell, restart_s)
        edges = {name: cluster.processes[name].port for name in cluster.names("edge")}
        self._balancer = Balancer(edges)
        # How many events the log had, and when that was asked, in monotonic seconds; None: it was not yet.
        self._counted: tuple[int, float] | None = None

    @property
    def url(self) -> str:
        """Where clients get events.

        Not before `start`, which may choose the port.
        """
        return f"ws://localhost:{self._balancer.port}/subscribe"

    def tell(self, text: str) -> None:
        """Print a line.

        It has the local time, and scrolls above the table.
        """
        line = Text.assemble((f"{datetime.now().astimezone():%H:%M:%S}  ", "dim"), text)
        self._console.print(line, soft_wrap=True)

    async def start(self, port: int) -> bool:
        """Start everything; the balancer listens on a port. Returns True, once all is ready.

        Raises MemberFailed. The result is for `unless`: None is a start that was interrupted.
        """
        cluster = self._cluster
        self.tell(f"PostgreSQL is that of {cluster.servers[0].binaries}; files are in {cluster.directory}")
        await cluster.start(self.tell)
        try:
            await self._balancer.start(port)
        except OSError as error:
            raise MemberFailed(f"the balancer cannot listen on port {port}: {error.strerror}") from error
        return True

    async def run(self, stopped: asyncio.Event) -> None:
        """Look after the cluster, and show it, until an event is set."""
        await self._keeper.look_at_leader()
        server = self._cluster.server(_FIRST_SERVER)
        hints = to_try(
            self.url,
            self._cluster.directory,
            server.address,
            ingests=len(self._cluster.names("ingest")),
            restarts=self._restarts,
        )
        self._console.print(hints, soft_wrap=True)
        await unless(stopped, self._look_after())

    async def close(self) -> None:
        """End all processes.

        In this order: nothing is started again while processes end. Clients of the balancer see the
        edges end.
        """
        self.tell("ending all processes")
        await self._keeper.close()
        await self._cluster.close()
        await self._balancer.close()

    async def _look_after(self) -> None:
        """Look after the processes, and show them, until cancelled. An error of either ends both."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._show())

    async def _watch(self) -> None:
        """Look after the processes, until cancelled.

        It asks nothing over the network, so it may be done several times a second.
        """
        while True:
            self._keeper.look()
            await asyncio.sleep(LOOK_S)

    async def _show(self) -> None:
        """Show the cluster, until cancelled."""
        terminal = self._console.is_terminal
        if not terminal:
            self._console.print(await self._screen(), soft_wrap=True)
        table = Live(console=self._console, auto_refresh=False, transient=True)
        with table if terminal else nullcontext() as live:
            while True:
                await self._keeper.look_at_leader()
                self._cluster.bound_logs()
                if live is not None:
                    live.update(await self._screen(), refresh=True)
                await asyncio.sleep(SHOW_S)

    async def _screen(self) -> RenderableType:
        """Ask all processes, and return what is shown of them."""
        return view(await self._served(), await self._rows())

    async def _served(self) -> Served:
        """Return where clients get events, and how many are new each second.

        The rate is a mean since the last look that had an answer; None: there was none, or this has
        none.
        """
        events, before, now = await self._cluster.count_events(), self._counted, time.monotonic()
        rate = None
        if events is not None:
            self._counted = events, now
            if before is not None:
                rate = (events - before[0]) / (now - before[1])
        return Served(self.url, rate)

    async def _rows(self) -> list[Row]:
        """Return a row for each process, and one for the balancer, which is in this one.

        Those that clients meet are first, and PostgreSQL is last. All are asked at the same time.
        """
        count = sum(self._balancer.loads.values())
        url = f"http://localhost:{self._balancer.port}"
        first = Row("balancer", os.getpid(), url, counted(count, "connection"))
        synchronous = await self._cluster.synchronous()
        names = [name for kind in reversed(KINDS) for name in self._cluster.names(kind)]
        rows = (self._row(self._cluster.processes[name], synchronous) for name in names)
        return [first, *await asyncio.gather(*rows)]

    async def _row(self, process: Process, synchronous: list[str] | None) -> Row:
        """Return the row of a process. `synchronous` are the standbys for which commits wait."""
        state, mood = await self._state(process, synchronous)
        is_server = isinstance(process, Postgres)
        where = f"{HOST}:{process.port}" if is_server else process.address
        return Row(process.name, process.pid, where, state, mood)

    async def _state(self, process: Process, synchronous: list[str] | None) -> tuple[str, str]:
        """Return what a process does, and its mood.

        The mood is `good`, `waits` or `bad`, which chooses the colour.
        """
        recovers = self._keeper.recovers(process.name)
        if not process.running:
            return "gone, is started again soon" if recovers else "gone", "bad"
        if process.frozen:
            return "frozen", "bad"
        return ("starts", "waits") if recovers else await self._doing(process, synchronous)

    async def _doing(self, process: Process, synchronous: list[str] | None) -> tuple[str, str]:
        """Return what a process does that runs, and its mood."""
        if isinstance(process, Postgres):
            accepts = await self._cluster.is_ready(process.name)
            waits = None if synchronous is None else process.name in synchronous
            return of_server(accepts=accepts, standby=process.is_standby, synchronous=waits)
        if process.member.kind == "relay":
            return f"{process.member.settings['rate']} messages a second", "good"
        status = await self._cluster.status(process.name)
        if process.member.kind == "edge":
            return of_edge(status)
        term = self._keeper.term
        leads = term is not None and self._cluster.member_of(term) == process.name
        return of_ingest(status, term.epoch if term is not None and leads else None)
