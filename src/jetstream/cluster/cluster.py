"""All processes of a cluster, by name.

    async with Cluster(members(Shape(), free_ports(Shape().size), directory), directory) as cluster:
        await cluster.start()
        leader = await cluster.leader()
        await cluster.kill(leader)
        await cluster.wait_leader(besides=leader)
        await cluster.spawn(leader)

Names are `postgres-1`, `postgres-2`, `relay-1`, `ingest-1`, `edge-1` and so on. Nothing is done by itself: a
process that ends stays ended until it is started again, and a standby is promoted when that is asked for.
`keeper` does more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import orjson

from jetstream.cluster.answers import accepts, get
from jetstream.cluster.members import KINDS, Kind, Member, log_address
from jetstream.cluster.postgres import Postgres, check_access, find_binaries
from jetstream.cluster.process import MemberFailed, Process
from jetstream.errors import LogError, LogUnreachable
from jetstream.eventlog.postgresql.connection import connect, drop, translated
from jetstream.scheduling import whole

# Seconds for the database to answer, with the connection.
ASK_S: Final = 5.0
# Seconds for a process to start and be ready, and for a standby to be synchronous.
READY_S: Final = 60.0
# Seconds for another ingest to lead. It takes over after 3 s of silence, but what the database needs to
# recover counts as well.
TAKEOVER_S: Final = 60.0
# Seconds between two looks while something is waited for.
_LOOK_S: Final = 0.1
# The one row of the table `term`: see `eventlog/postgresql/leading`.
_TERM: Final = "SELECT epoch, holder FROM term"
# Of the standbys for which a commit waits, as one row: none means that the primary does not answer.
_SYNCHRONOUS: Final = """
SELECT array(
    SELECT application_name::text FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')
) AS names
"""
# How many events were ever stored, as the newest batch has it.
_EVENTS: Final = "SELECT max(appended) AS events FROM tail"


class Term(NamedTuple):
    """Who writes the log.

    The newest one is that of the process that leads, or that led last.
    """

    # The number of the term. It rises by one with each.
    epoch: int
    holder: str  # host:pid:random

    @property
    def pid(self) -> str:
        """The process that has it, as its machine numbers it."""
        return self.holder.split(":")[1] if ":" in self.holder else ""


class Cluster:
    """The processes of a cluster, none of which runs at first. For the event loop of the main thread.

    `binaries` is the directory of PostgreSQL's programs; None: it is looked for. Raises
    PostgresMissing.

    All methods that wait raise MemberFailed when it takes too long. The directory has the logs and IDs
    of all processes, and the data of each server of PostgreSQL and each ingest.
    """

    def __init__(self, members: Sequence[Member], directory: Path, *, binaries: Path | None = None) -> None:
        self.directory = directory
        binaries = binaries or find_binaries()
        # By name, in the order in which they are started.
        self.processes: dict[str, Process] = {
            each.name: Postgres(each, directory, binaries)
            if each.kind == "postgres"
            else Process(each, directory)
            for each in members
        }

    async def __aenter__(self) -> Self:
        """Return the cluster; nothing runs yet.

        `start` is called in the block, so that what was started is ended when it fails.
        """
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """End all processes."""
        await self.close()

    # --- which there are ---

    def names(self, kind: Kind) -> list[str]:
        """Return the names of all members of a kind.

        In the order in which they are started.
        """
        return [name for name, each in self.processes.items() if each.member.kind == kind]

    def server(self, name: str) -> Postgres:
        """Return a server of PostgreSQL.

        Raises KeyError for a name that no process has.
        """
        found = self.processes[name]
        assert isinstance(found, Postgres), f"{name} is no server of PostgreSQL"
        return found

    @property
    def servers(self) -> list[Postgres]:
        """All servers of PostgreSQL."""
        return [self.server(name) for name in self.names("postgres")]

    @property
    def primary(self) -> str | None:
        """The name of the server that is the primary: of several, the one promoted last; None: none runs.

        After a promotion, the server before may still run, or run again, as a primary of an older
        timeline: nobody must write to that.
        """
        found = [each for each in self.servers if each.running and not each.is_standby]
        return max(found, key=lambda each: each.timeline).name if found else None

    @property
    def log_address(self) -> str:
        """The address of the log, with all servers of PostgreSQL, for `--log`."""
        return log_address([each.port for each in self.servers])

    # --- starting and stopping ---

    async def start(self, note: Callable[[str], object] = lambda _: None) -> None:
        """Start all processes, in order, and wait until they are ready. `note` is told what is done.

        The first ingest leads. Data of an earlier run in the directory is used. Raises MemberFailed.
        """
        check_access(self.directory)
        # The relay needs nothing, and starts meanwhile. All others need the log, so PostgreSQL comes
        # before them.
        leader, *others = self.names("ingest")
        self._spawn_all(self.names("relay"), note)  # which takes its time to start
        await self._start_servers(note)
        await self._wait_all(self.names("relay"))
        self._spawn_all([leader], note)
        await self.wait_ready(leader)
        await self.wait_leader()
        others += self.names("edge")
        self._spawn_all(others, note)
        await self._wait_all(others)

    async def _start_servers(self, note: Callable[[str], object]) -> None:
        """Start PostgreSQL: the primary first, then the others as its standbys.

        With data of an earlier run, the primary is the server that was promoted last. Another server
        that is no standby of it, or of one that listened elsewhere, is made again as a copy of it.
        """
        candidates = [each for each in self.servers if each.created and not each.is_standby]
        primary = max(candidates, key=lambda each: each.timeline, default=self.servers[0])
        note(f"starting {primary.name}, the primary")
        if not primary.created:
            await _in_thread(primary.create)
        await self.spawn(primary.name)
        for each in self.servers:
            if each is not primary:
                note(f"starting {each.name}, its synchronous standby")
                await (self.spawn(each.name) if each.follows(primary) else self.rebuild(each.name))
                await self.wait_synchronous()

    def _spawn_all(self, names: Sequence[str], note: Callable[[str], object]) -> None:
        """Start processes, and do not wait for them. Raises MemberFailed for one that cannot be started."""
        if names:
            note(f"starting {', '.join(names)}")
        for name in names:
            self.processes[name].spawn()

    async def _wait_all(self, names: Sequence[str]) -> None:
        """Wait until all of these processes are ready. Raises MemberFailed at the first that is not."""
        await asyncio.gather(*map(self.wait_ready, names))

    async def spawn(self, name: str) -> None:
        """Start a process, and wait until it is ready. Raises MemberFailed.

        A process of that name must not run. A server of PostgreSQL begins as what it was: primary or
        standby.
        """
        self.processes[name].spawn()
        await self.wait_ready(name)

    async def stop(self, name: str) -> None:
        """End a process in good order, and wait for that.

        One that does not end within `STOP_S` seconds is killed. It is not an error if it does not run.
        """
        await asyncio.to_thread(self.processes[name].stop)

    async def close(self) -> None:
        """End all processes in good order: what was started last ends first.

        Edges end first, then ingests and the relay, and PostgreSQL last. Processes of one kind end
        together.
        """
        for kind in reversed(KINDS[1:]):
            await asyncio.gather(*map(self.stop, self.names(kind)))
        # Before its standbys: its last commits reach them.
        for server in sorted(self.servers, key=lambda each: each.is_standby):
            await self.stop(server.name)

    # --- what breaks ---

    async def kill(self, name: str) -> None:
        """Kill a process, with all of its sessions if it is PostgreSQL, and wait for its end.

        Nothing of it runs any more when this returns. It stays away until `spawn`.
        """
        await asyncio.to_thread(self.processes[name].kill)

    def freeze(self, name: str) -> None:
        """Stop a process where it is, with all of its sessions if it is PostgreSQL.

        Others see a process that does not answer, with connections that stay. It returns at once.
        """
        self.processes[name].freeze()

    def thaw(self, name: str) -> None:
        """Let a process go on after `freeze`.

        A frozen leader finds then that it does not lead any more, if another one has taken over.
        """
        self.processes[name].thaw()

    # --- PostgreSQL ---

    async def promote(self, name: str) -> None:
        """Make a standby the primary, and wait until it is. Raises MemberFailed.

        The primary before it must not run: what is written there from now on is lost.
        """
        await _in_thread(self.server(name).promote)

    async def rebuild(self, name: str) -> None:
        """Make a server that does not run a standby of the present primary, by a new copy of it.

        Raises MemberFailed.

        What it had is removed. It returns when the standby takes connections, which may be before
        commits wait for it: see `wait_synchronous`.
        """
        primary = self.primary
        if primary is None:
            raise MemberFailed(f"{name} cannot be a standby: no primary runs")
        await _in_thread(self.server(name).copy, self.server(primary))
        await self.spawn(name)

    async def synchronous(self) -> list[str] | None:
        """Return the names of the standbys for which commits wait; None: the primary does not answer.

        An empty list: no standby is connected. With two servers, commits wait then.
        """
        rows = await self.ask(_SYNCHRONOUS)
        return list(rows[0]["names"]) if rows else None

    async def wait_synchronous(self, within_s: float = READY_S) -> None:
        """Wait until commits of the primary wait for a standby. Raises MemberFailed."""

        async def holds() -> bool:
            return bool(await self.synchronous())

        await _wait(holds, within_s, "no standby is synchronous")

    async def ask(self, statement: str, *values: object, address: str | None = None) -> list[Any]:
        """Run a statement at the primary, or at an address, and return its rows; none if it does not answer.

        Raises LogError if the statement is refused.

        `values` are parameters of the statement. Without an address, each server is tried, and the one
        that can be written to is asked. Each call has a connection of its own.
        """
        connection = None
        try:
            with translated(address or self.log_address):
                async with asyncio.timeout(ASK_S):
                    connection = await connect(address or self.log_address, writes=address is None)
                    rows: list[Any] = await connection.fetch(statement, *values)
        except LogUnreachable:
            return []
        else:
            return rows
        finally:
            await drop(connection)

    # --- ingests and edges ---

    async def status(self, name: str) -> Mapping[str, Any] | None:
        """Return `/status.json` of an ingest or an edge; None: it does not answer.

        None also for an answer with another status than 200.
        """
        answer = await get(self.processes[name].port, "/status.json")
        return orjson.loads(answer.body) if answer is not None and answer.status == 200 else None

    async def is_ready(self, name: str) -> bool:
        """Tell whether a process does its work. An ingest that stands by does, too.

        PostgreSQL is ready when it takes connections, the relay when its port does, and other processes
        by their `/ready`.
        """
        process = self.processes[name]
        if isinstance(process, Postgres):
            return await asyncio.to_thread(lambda: process.accepts)
        if process.member.kind == "relay":
            return await accepts(process.port)
        answer = await get(process.port, "/ready")
        return answer is not None and answer.status == 200

    async def wait_ready(self, name: str, within_s: float = READY_S) -> None:
        """Wait until a process does its work. Raises MemberFailed, with the end of its log.

        A process that ends meanwhile raises it at once.
        """
        process = self.processes[name]

        async def holds() -> bool:
            if not process.running:
                raise MemberFailed(f"{name}: {process.how_ended}{_log_of(process)}")
            return await self.is_ready(name)

        await _wait(holds, within_s, f"{name} is not ready", lambda: _log_of(process))

    async def term(self) -> Term | None:
        """Return who writes the log; None: the primary does not answer, or nobody writes it.

        The term of a leader that was killed stays until another process leads.
        """
        try:
            rows = await self.ask(_TERM)
        except LogError:  # there are no tables yet
            return None
        return Term(*rows[0]) if rows and rows[0]["holder"] else None

    async def count_events(self) -> int | None:
        """Return how many events were ever stored; None: the primary does not answer."""
        rows = await self.ask(_EVENTS)
        return int(rows[0]["events"]) if rows else None

    async def leader(self) -> str | None:
        """Return the name of the ingest that has the newest term; None: none that runs has it."""
        return self.member_of(await self.term())

    def member_of(self, term: Term | None) -> str | None:
        """Return the name of the ingest that has a term; None: none that runs has it.

        The processes are told apart by the ID that the holder has in its name.
        """
        pid = term.pid if term is not None else ""
        return next((name for name in self.names("ingest") if str(self.processes[name].pid) == pid), None)

    async def wait_leader(self, *, besides: str | None = None, within_s: float = TAKEOVER_S) -> str:
        """Wait until an ingest leads, another one than `besides`; return its name. Raises MemberFailed.

        With `besides`, the term of a leader that was killed is passed over.
        """
        found: str | None = None

        async def holds() -> bool:
            nonlocal found
            found = await self.leader()
            return found not in (None, besides)

        await _wait(holds, within_s, "no ingest leads")
        assert found is not None
        return found

    # --- looking after them ---

    def ended(self) -> list[Process]:
        """Return the processes that were to run and do not.

        That is, without `stop` or `kill` of this object. A process that is frozen runs.
        """
        return [each for each in self.processes.values() if each.expected and not each.running]

    def bound_logs(self) -> None:
        """Keep log files from growing without end. To be called now and then."""
        for each in self.processes.values():
            each.bound_log()


async def _wait(
    holds: Callable[[], Awaitable[bool]],
    within_s: float,
    problem: str,
    more: Callable[[], str] = str,
) -> None:
    """Wait until something holds. Raises MemberFailed when the time is over.

    `problem` begins the text of the error, and what `more` returns ends it. It looks at least once.
    """
    until = time.monotonic() + within_s
    while not await holds():
        if time.monotonic() > until:
            raise MemberFailed(f"{problem} after {within_s:g} s{more()}")
        await asyncio.sleep(_LOOK_S)


def _log_of(process: Process) -> str:
    """Return the end of a log, for an error.

    The lines are in one line, with the name of the file. Empty: nothing was written.
    """
    lines = process.last_lines()
    return f"; {process.log} ends: {' | '.join(lines)}" if lines else ""


async def _in_thread(call: Callable[..., None], *given: object) -> None:
    """Run a call in a thread. A cancellation waits for its end: nothing can end it before."""
    await whole(asyncio.ensure_future(asyncio.to_thread(call, *given)))
