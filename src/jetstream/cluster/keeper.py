"""What starts processes of a cluster again, and promotes the standby of PostgreSQL when the primary is lost.

In production, systemd or Kubernetes does the first, and Patroni or a cloud provider the second.

    a process ends ──▶ told ──▶ after `restart_s` ──▶ spawned
    the primary ends ─▶ told ──▶ after `restart_s` ──▶ the standby is promoted ──▶ the lost one is rebuilt

A process that ends again and again is left alone.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from jetstream.cluster.cluster import Cluster, Term
from jetstream.cluster.postgres import Postgres
from jetstream.cluster.process import MemberFailed, Process

# Seconds between the end of a process and its start, in which a reader can see what the others do.
RESTART_S: Final = 5.0
# Ends of one process within `ENDS_S` seconds with which it is not started again.
ENDS_MAX: Final = 5
ENDS_S: Final = 120.0


class Keeper:
    """Looks after a cluster. `tell` is told in a sentence what has happened, and what is done.

    `restart_s` is after how many seconds a process is started again; None: never. `clock` gives
    monotonic seconds.

    The owner calls `look` a few times a second, and `look_at_leader` about once. For the event loop
    that has the cluster.
    """

    def __init__(
        self,
        cluster: Cluster,
        tell: Callable[[str], object],
        restart_s: float | None = RESTART_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        # Given one sentence for each thing that happens. It is called from `look`, and from tasks.
        self._tell = tell
        self._restart_s = restart_s
        self._clock = clock
        # Who wrote the log at the last look that had an answer; None: there was none yet.
        self.term: Term | None = None
        # The tasks that start processes again, by the name of the process: from its end until it is ready.
        self._recovering: dict[str, asyncio.Task[None]] = {}
        # When each process has ended, within `ENDS_S`.
        self._ends: dict[str, deque[float]] = {}
        # One server of PostgreSQL at a time: what is right for one depends on the others.
        self._one_server = asyncio.Lock()

    def look(self) -> None:
        """Note which processes have ended since the last look, and begin to mend that.

        It returns at once. A process that was stopped on purpose is not started again.
        """
        for process in self._cluster.ended():
            if process.name not in self._recovering:
                self._note_end(process)

    async def close(self) -> None:
        """Mend nothing more.

        It returns when the tasks have ended. What they have started runs on.
        """
        tasks = list(self._recovering.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def recovers(self, name: str) -> bool:
        """Tell whether a process is being started again, or is going to be."""
        return name in self._recovering

    async def look_at_leader(self) -> None:
        """Tell who leads when that has changed. While the database does not answer, it has not."""
        term = await self._cluster.term()
        if term is not None and term != self.term:
            self.term = term
            name = self._cluster.member_of(term)
            self._tell(f"{name or term.holder} leads: term {term.epoch}")

    def _note_end(self, process: Process) -> None:
        """Say that a process has ended and what becomes of that, and begin to start it again.

        It is no longer expected to run, so the next look does not find it again. The file with its ID
        is removed: an operator who reads it would kill another process.
        """
        name, how = process.name, process.how_ended
        process.expected = False
        process.pid_file.unlink(missing_ok=True)
        again = self._again(name)
        self._tell(f"{self._described(process)} is gone: {how}; {self._plan(process, again=again)}")
        if again and self._restart_s is not None:
            task = asyncio.create_task(self._recover(process, self._restart_s))
            self._recovering[name] = task
            task.add_done_callback(partial(self._forget, name))

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        """Forget a task that has ended, unless another one has its place by now."""
        if self._recovering.get(name) is task:
            del self._recovering[name]

    def _again(self, name: str) -> bool:
        """Note an end, and tell whether the process is to be started again."""
        ends = self._ends.setdefault(name, deque(maxlen=ENDS_MAX))
        ends.append(self._clock())
        return self._restart_s is not None and (len(ends) < ENDS_MAX or ends[0] < self._clock() - ENDS_S)

    def _described(self, process: Process) -> str:
        """Return the name of a process, and what a server of PostgreSQL was when it ended."""
        if not isinstance(process, Postgres):
            return process.name
        return f"{process.name}, {'a standby' if process.is_standby else 'the primary'},"

    def _plan(self, process: Process, *, again: bool) -> str:
        """Say what is going to be done.

        Of a primary it depends on whether there is a standby. Without restarts, it says which commands
        do it by hand.
        """
        if not again and self._restart_s is not None:
            return f"it has ended {ENDS_MAX} times within {ENDS_S:g} s and is left alone: see {process.log}"
        standby = self._standby_for(process)
        if not again:
            promote = f"psql {standby.address} -c 'SELECT pg_promote()'" if standby is not None else ""
            by_hand = f"To promote its standby: {promote}. " if promote else ""
            return f"it is left alone. {by_hand}It was started with: {shlex.join(process.command())}"
        if standby is not None:
            return f"its standby is promoted in {self._restart_s:g} s"
        waits = ": commits wait for it" if isinstance(process, Postgres) and process.is_standby else ""
        return f"it is started again in {self._restart_s:g} s{waits}"

    async def _recover(self, process: Process, after_s: float) -> None:
        """Start a process again, after a pause, and say how that went.

        A failure is told and not raised. The process is then expected to run: if it does not, that is
        its next end, and counts for `ENDS_MAX`.
        """
        await asyncio.sleep(after_s)
        try:
            if isinstance(process, Postgres):
                async with self._one_server:
                    await self._recover_server(process)
            else:
                await self._cluster.spawn(process.name)
                self._tell(f"{process.name} runs again: process {process.pid}")
        except MemberFailed as error:
            self._tell(f"{error}")
            # It counts as another end at the next look, unless it runs and is only late.
            process.expected = True

    async def _recover_server(self, server: Postgres) -> None:
        """Start a standby again; in the place of a primary, promote the standby and rebuild the lost one.

        Raises MemberFailed. The caller holds `_one_server`. If another server was promoted meanwhile,
        the lost one becomes a standby of that: what it has stored and the other has not is given up.
        """
        standby = self._standby_for(server)
        if standby is not None:
            await self._cluster.promote(standby.name)
            self._tell(f"{standby.name} is the primary now; {server.name} is rebuilt as its standby")
        if server.is_standby or self._cluster.primary is None:
            await self._cluster.spawn(server.name)
        else:
            await self._cluster.rebuild(server.name)
        role = "a standby" if server.is_standby else "the primary"
        self._tell(f"{server.name} runs again, as {role}: process {server.pid}")

    def _standby_for(self, process: Process) -> Postgres | None:
        """Return the standby that takes the place of a lost primary; None: none does, or another one has."""
        if not isinstance(process, Postgres) or process.is_standby or self._cluster.primary is not None:
            return None
        standbys = [each for each in self._cluster.servers if each.running and each.is_standby]
        return standbys[0] if standbys else None
