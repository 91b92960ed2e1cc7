"""Examine messages: in this process, or in several others.

    tasks ─ by hash of the DID ─┬─▶ process 1 ─┬─▶ findings, in the order of the tasks
                                └─▶ process 2 ─┘

The messages of one repository are always sent to the same process, which has its key parsed already. All
calls are independent, and may overlap: one is stored while another is examined.

A call of `examine` goes through four steps. It waits for its turn to send, so that calls are sent in order.
It sends *parcels*, some tasks each, while less than `bytes_max` is with all processes. It waits until every
task has a finding. A process that ends meanwhile is replaced, and its parcels are sent again (`in_flight`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self
from zlib import crc32

from prometheus_client import Counter

from jetstream.admission.examiners.examination import Finding, Task, examine
from jetstream.admission.examiners.in_flight import Parcel, Setup
from jetstream.admission.examiners.worker import COMMAND, Worker
from jetstream.errors import WorkerError
from jetstream.limits import UpstreamLimits, WorkerLimits
from jetstream.metrics import Children
from jetstream.scheduling import Notifier
from jetstream.verify_modes import Mode


class Examiners:
    """Examines messages, in `count` processes, or in this one if that is 0. An async context manager.

    `restarts` are the counters of `Metrics.workers`, which processes need. `clock` gives seconds.
    `command` are the arguments of Python for a process; tests give another one. Used by the event loop's
    thread only.
    """

    def __init__(
        self,
        mode: Mode,
        count: int = 0,
        restarts: Children[Counter] | None = None,
        upstream: UpstreamLimits = UpstreamLimits(),
        limits: WorkerLimits = WorkerLimits(),
        clock: Callable[[], float] = time.perf_counter,
        command: Sequence[str] = COMMAND,
    ) -> None:
        # How messages are examined: `verify_modes`, and the limits of a record.
        self._mode: Mode = mode
        self._upstream = upstream
        self._limits = limits
        self._clock = clock
        setup = Setup(mode, upstream, limits.cpu_s)
        assert restarts is not None or not count, "processes are counted"
        # The processes, which are started by `__aenter__`. Empty: messages are examined here.
        self.workers = [
            Worker(setup, restarts, self._answered, self._failed, limits, command)
            for _ in range(count)
            if restarts is not None
        ]
        # Held by the call that sends, or that examines in this process; the others wait for it in order.
        self._turn = asyncio.Lock()
        # Notified when parcels were answered, when a process is ready, and when none can be started.
        self._room = Notifier()
        # The calls that wait for findings, or still send.
        self._calls: set[_Call] = set()
        # Why no process can be started, for people; empty: all is well. Once it is set, every call
        # raises WorkerError.
        self._problem = ""
        # Looks for processes that hang, from `__aenter__` to `close`.
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start the processes. Raises WorkerError if one cannot be started."""
        for worker in self.workers:
            worker.start()
        if self.workers:
            self._looking = asyncio.create_task(self._look())
        try:
            for worker in self.workers:
                await self._started(worker)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all processes: see `close`."""
        await self.close()

    async def close(self) -> None:
        """End all processes. Calls that wait, and all later ones, raise WorkerError."""
        self._failed(self._problem or "the server stops")
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.gather(*(worker.close() for worker in self.workers))

    @property
    def bytes(self) -> int:
        """How many bytes are with all processes."""
        return sum(worker.outstanding.bytes for worker in self.workers)

    async def examine(self, tasks: Sequence[Task]) -> list[Finding]:
        """Return the findings, in the order of the tasks. Gives others their turn.

        A message that has ended its processes is refused (`crash`), as is one on which `examine` has made an
        error. Raises WorkerError if no process can be started. A caller that is cancelled leaves its tasks
        with the processes, and their findings are dropped.
        """
        if not self.workers:
            return await self._examine_here(tasks)
        self._raise_problem()
        call = _Call(len(tasks))
        self._calls.add(call)
        try:
            async with self._turn:
                await self._send(tasks, call)
            await call.done
        finally:
            self._calls.discard(call)
        self._raise_problem()
        return call.findings

    # --- in this process ---

    async def _examine_here(self, tasks: Sequence[Task]) -> list[Finding]:
        """Examine in turns. Only one call at a time does so: all together take one turn."""
        findings: list[Finding] = []
        async with self._turn:
            while len(findings) < len(tasks):
                await asyncio.sleep(0)
                self._examine_some(tasks, findings)
        return findings

    def _examine_some(self, tasks: Sequence[Task], findings: list[Finding]) -> None:
        """Examine tasks for one turn; at least one."""
        until = self._clock() + self._limits.turn_s
        for place in range(len(findings), len(tasks)):
            findings.append(examine(tasks[place], self._mode, self._upstream))
            if self._clock() >= until:
                break

    # --- in other processes ---

    async def _started(self, worker: Worker) -> None:
        """Return when a process takes tasks. Raises WorkerError if it cannot be started."""
        while not worker.ready:
            self._raise_problem()
            await self._room.wait()
        self._raise_problem()

    async def _send(self, tasks: Sequence[Task], call: _Call) -> None:
        """Send the tasks of a call. Waits while too many bytes are with the processes.

        A parcel of more bytes than that is sent when nothing else is. Raises WorkerError.
        """
        for worker, places in self._divided(tasks):
            for parcel in self._parcels(tasks, places, call):
                while self.bytes and self.bytes + len(parcel.data) > self._limits.bytes_max:
                    await self._room.wait()
                    self._raise_problem()
                worker.send(parcel)

    def _divided(self, tasks: Sequence[Task]) -> Iterator[tuple[Worker, list[int]]]:
        """Yield which tasks a process is sent next, as their places.

        A part ends at `parcel_bytes` or `parcel_tasks`. The DID decides which process it is: CRC-32 is
        the same in every run, and cheap.
        """
        count, limits = len(self.workers), self._limits
        places: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for place, task in enumerate(tasks):
            number = crc32(task.did.encode()) % count
            places[number].append(place)
            sizes[number] += limits.task_bytes + task.blocks_bytes
            if sizes[number] >= limits.parcel_bytes or len(places[number]) >= limits.parcel_tasks:
                yield self.workers[number], places[number]
                places[number], sizes[number] = [], 0
        yield from ((worker, left) for worker, left in zip(self.workers, places, strict=True) if left)

    def _parcels(self, tasks: Sequence[Task], places: Sequence[int], call: _Call) -> Iterator[Parcel]:
        """Yield the parcels of some tasks: one, unless a task is nested too deeply to be sent.

        Pickle recurses where CBOR nests. A task that it refuses is examined in this process.
        """
        try:
            yield Parcel([tasks[place] for place in places], places, call.take)
        except RecursionError:
            if len(places) > 1:
                for place in places:
                    yield from self._parcels(tasks, [place], call)
            else:
                call.take(places[0], examine(tasks[places[0]], self._mode, self._upstream))

    async def _look(self) -> None:
        """Look at all processes `looks` times in `hang_s` seconds, until cancelled."""
        while True:
            await asyncio.sleep(self._limits.hang_s / self._limits.looks)
            for worker in self.workers:
                worker.look()

    def _answered(self) -> None:
        """Wake what waits for room, or for a process that is ready. Called by a worker."""
        self._room.notify()

    def _failed(self, problem: str) -> None:
        """Have all calls raise WorkerError, now and later. Called when a worker gives up, and at the end."""
        self._problem = problem
        self._room.notify()
        for call in self._calls:
            call.end()

    def _raise_problem(self) -> None:
        """Raise WorkerError if messages cannot be examined any more."""
        if self._problem:
            raise WorkerError(f"messages cannot be verified: {self._problem}")


class _Call:
    """A call of `examine` that waits for the findings of `count` tasks, which come in any order."""

    def __init__(self, count: int) -> None:
        # Done when all findings are there, and when they will not come (`Examiners._failed`).
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._found: list[Finding | None] = [None] * count
        self._left = count  # how many are missing
        if not count:
            self.end()

    @property
    def findings(self) -> list[Finding]:
        """All findings, once it is done."""
        return [finding for finding in self._found if finding is not None]

    def take(self, place: int, finding: Finding) -> None:
        """Take the finding of the task at a place. Called once for each place."""
        self._found[place] = finding
        self._left -= 1
        if not self._left:
            self.end()

    def end(self) -> None:
        """Wake the caller, unless it is gone."""
        if not self.done.done():
            self.done.set_result(None)
