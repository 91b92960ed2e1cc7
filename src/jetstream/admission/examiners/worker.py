"""One process that examines messages, as the server sees it, and those that take its place.

start ─▶ ready ─▶ answers ─▶ … ─▶ close
▲        │         │
└────────┴─────────┴── it ends, or is silent for too long and killed: the next one is started, and
sent all that was not answered (`in_flight`)
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from signal import SIGKILL, SIGPROF
from typing import Final

import structlog
from prometheus_client import Counter

from jetstream.admission.examiners.in_flight import HEAD, Outstanding, Parcel, Setup, packed, unpacked
from jetstream.limits import WorkerLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import Children
from jetstream.retry import backoff_s
from jetstream.runtime import how_ended

# `-P` keeps Python from importing what lies in the working directory.
COMMAND: Final = ("-P", "-m", "jetstream.admission.examiners.worker_main")

logger = structlog.get_logger(__name__)


class Worker:
    """One process, and its successors. Used by the event loop's thread only.

    `answered` is called when it is ready and after each answer, `failed` with the problem once no process
    can be started. `restarts` counts processes that were replaced, by cause: `died`, `hung` or
    `not_started`. `command` are the arguments of Python.
    """

    def __init__(
        self,
        setup: Setup,
        restarts: Children[Counter],
        answered: Callable[[], None],
        failed: Callable[[str], None],
        limits: WorkerLimits = WorkerLimits(),
        command: Sequence[str] = COMMAND,
    ) -> None:
        # Whether the process takes tasks: from its first message until its end was noted.
        self.ready = False
        # What it was sent, or will be when it is ready, and has not answered. Outlives the process.
        self.outstanding = Outstanding(limits.deaths_max, limits.kills_max)
        # The present one, or the last one; None before the first.
        self.process: subprocess.Popen[bytes] | None = None
        # The first thing that each process is sent.
        self._setup = packed(setup)
        self._restarts = restarts
        self._answered = answered
        self._failed = failed
        self._limits = limits
        self._command = command
        # The connection to the present process; None while there is none.
        self._transport: asyncio.Transport | None = None
        # The task that starts processes, from `start` to `close`.
        self._running: asyncio.Task[None] | None = None
        # How many looks in a row have found it silent while something was expected of it.
        self._silent_looks = 0
        # Whether the present process was killed for that, or has taken too much CPU time
        # (`Setup.cpu_s`).
        self._hung = False
        self._logger = Throttled(logger)

    def start(self) -> None:
        """Start the process, and others after it, until `close`. Returns before it is ready."""
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Kill the process, which has nothing of its own to lose. What it has not answered stays so."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    def send(self, parcel: Parcel) -> None:
        """Send a parcel, now or as soon as there is a process that is ready."""
        self.outstanding.add(parcel)
        self._write(parcel)

    def look(self) -> None:
        """Kill the process if it is silent for too long. To be called `looks` times in `hang_s`."""
        limits, ready = self._limits, self.ready
        self._silent_looks = self._silent_looks + 1 if self.outstanding or not ready else 0
        allowed_s = limits.hang_s if ready else limits.start_s
        if self._silent_looks > limits.looks * allowed_s / limits.hang_s and self.process is not None:
            self._hung = True
            self.process.kill()

    async def _run(self) -> None:
        """Run one process after another, until cancelled, or until too many starts have failed in a row.

        A process that was ready is replaced at once. One that was not is followed by a pause that
        grows, and after `starts_failed_max` of them `failed` is called.
        """
        starts_failed, problem = 0, ""
        while starts_failed < self._limits.starts_failed_max:
            if starts_failed:
                await asyncio.sleep(backoff_s(starts_failed))
            problem = await self._run_process()
            if self.ready:
                starts_failed = 0
                self._replace("hung" if self._hung else "died", problem)
            else:
                starts_failed += 1
                self._count("not_started", problem)
        self._failed(f"no process can be started ({problem}); `--verify-workers 0` needs none")

    def _replace(self, cause: str, problem: str) -> None:
        """Count the end of a process that was ready, and keep what it has not answered for the next one."""
        self.ready = False
        self._count(cause, problem)
        assert self.process is not None
        self.outstanding.process_ended(killed=self.process.returncode == -SIGKILL)
        self._answered()

    def _count(self, cause: str, problem: str) -> None:
        """Count a process that is replaced, and log why."""
        self._restarts[cause].inc()
        self._logger.warning(
            "a process that verifies is replaced", cause=cause, problem=problem, parcels=len(self.outstanding)
        )

    async def _run_process(self) -> str:
        """Run one process to its end; return how it has ended, for people.

        It is killed when the connection to it is lost, and when this is cancelled. A thread waits for its
        end, so that the event loop does not.
        """
        try:
            process, ours = self._open()
        except (OSError, TypeError) as error:  # too many processes or files; no known path of Python
            return str(error)
        self.process, self._silent_looks, self._hung = process, 0, False
        try:
            await self._converse(ours)
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)
        # SIGPROF is its own timer: one list of tasks has taken `cpu_s` (`worker_main`).
        self._hung = self._hung or process.returncode == -SIGPROF
        return how_ended(process.returncode)

    def _open(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start a process; return it, and the socket to it.

        `Popen` does so with `vfork`: `fork` copies the page tables of a large process, and takes up to 50 ms.
        In a session of its own, the process does not get the signals of a terminal.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(  # noqa: S603 - our own command
                    [sys.executable, *self._command],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return process, ours

    async def _converse(self, ours: socket.socket) -> None:
        """Send and receive until the connection to the process ends.

        The process keeps its end of the socket open as long as it lives, so the end of one is the end of
        the other.
        """
        lost = asyncio.Event()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(
            partial(_Connection, self._receive, lost.set), sock=ours
        )
        self._transport = transport
        try:
            transport.write(self._setup)
            await lost.wait()
        finally:
            self._transport = None
            transport.abort()

    def _write(self, parcel: Parcel) -> None:
        """Send a parcel if the process is ready; else `_receive` sends it when it is."""
        transport = self._transport
        # uvloop's transport raises an error between its end and `connection_lost`.
        if transport is not None and self.ready and not transport.is_closing():
            transport.write(parcel.data)

    def _receive(self, data: memoryview) -> None:
        """Take a message of the process: the first says that it is ready, each other is an answer."""
        self._silent_looks = 0
        value = unpacked(data)
        if self.ready:
            self.outstanding.answered(value)
            self._answered()
        else:
            self.ready = True
            self._answered()
            for parcel in self.outstanding:
                self._write(parcel)


class _Connection(asyncio.Protocol):
    """The connection to a process: cuts what comes in into messages, and hands each to `receive`.

    `lost` is called at its end. A message is given as a view of the buffer, and must be read before
    `receive` returns.
    """

    def __init__(self, receive: Callable[[memoryview], None], lost: Callable[[], None]) -> None:
        self._receive = receive
        self._lost = lost
        self._incoming = bytearray()  # the beginning of a message that is not complete

    def data_received(self, data: bytes) -> None:
        """Hand over the messages that are complete; keep what has come of the next one."""
        incoming = self._incoming
        incoming += data
        start = 0
        with memoryview(incoming) as view:
            while (message := _next_message(view, start)) is not None:
                start = message.stop
                with view[message.start : message.stop] as part:
                    self._receive(part)
        del incoming[:start]

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell the worker that the connection has ended."""
        self._lost()


def _next_message(view: memoryview, start: int) -> slice | None:
    """Return where the message after `start` is, without its length; None if it is not complete."""
    first = start + HEAD.size
    if first > len(view):
        return None
    stop = first + HEAD.unpack_from(view, start)[0]
    return slice(first, stop) if stop <= len(view) else None
