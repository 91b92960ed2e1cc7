"""One child of the supervisor, and those that take its place.

    start ─▶ ready ─▶ heartbeats ─▶ … ─▶ stop
    ▲          │         │
    └──────────┴─────────┴── it ends, or is silent for too long and killed: after a pause, another one starts

A process that ends before the server has ever been ready ends the server: a setting is wrong, or the log
cannot be opened. So does one that ends again and again.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Final, Literal, NamedTuple, Protocol

import structlog

from jetstream.errors import JetstreamError
from jetstream.limits import SupervisorLimits
from jetstream.retry import backoff_s
from jetstream.runtime import how_ended
from jetstream.supervisor.channel import Channel, ChannelError, ChannelMessage
from jetstream.supervisor.failures import ProcessFailed, failure_of
from jetstream.supervisor.lines import Lines, to_standard_error
from jetstream.supervisor.starting import COMMAND, Child, start, wait

_LAST_LINES_S: Final = 0.5  # for what a process has written to be read

Role = Literal["ingest", "edge"]

logger = structlog.get_logger(__name__)


class Place(NamedTuple):
    """Which of the processes of a server one is: the ingest, or the edge of a number from 1 on."""

    role: Role
    number: int = 0

    def __str__(self) -> str:
        """Return its name, as the log and metrics have it."""
        return f"edge-{self.number}" if self.number else self.role


class Owner(Protocol):
    """What the supervisor does with what a process says. `Process` calls it, in the event loop's thread."""

    def began(self, process: Process, passing: socket.socket, /) -> ChannelMessage:
        """Return the setup of a process that has started. `passing` is the socket for its connections."""

    def ready(self, process: Process, /) -> None:
        """Note that a process is ready."""

    def told(self, process: Process, message: ChannelMessage, /) -> None:
        """Take what a process tells."""

    def asked(self, process: Process, message: ChannelMessage, /) -> Awaitable[ChannelMessage]:
        """Return the answer to a question of a process."""

    def ended(self, process: Process, /) -> None:
        """Note that a process has ended."""


class Process:
    """A child and its successors. `command` are the arguments of Python, `clock` gives monotonic seconds.

    `write` takes the lines that it logs.
    """

    def __init__(
        self,
        place: Place,
        owner: Owner,
        limits: SupervisorLimits = SupervisorLimits(),
        *,
        command: Sequence[str] = COMMAND,
        write: Callable[[bytes], object] = to_standard_error,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.place = place
        # Set while the present process is ready.
        self.is_ready = asyncio.Event()
        # Whether any process of this place was ready.
        self.was_ready = False
        # The channel to the present process; None while there is none.
        self.channel: Channel | None = None
        # How often a process has ended, by cause: `died`, or `hung` and killed.
        self.ends: dict[str, int] = {"died": 0, "hung": 0}
        self._owner = owner
        self._limits = limits
        self._command = command
        self._clock = clock
        self._lines = Lines(write, limits.line_bytes_max)
        # The present process, or the last one.
        self._child: Child | None = None
        # When processes have ended, within `ends_s`.
        self._ended_at: deque[float] = deque(maxlen=limits.ends_max)
        # Set once no other process takes the place of the present one; whether that was told to stop.
        self._retired = asyncio.Event()
        self._stopped = False
        # How many looks in a row have found the present process silent, and whether it was killed for that.
        self._silent_looks = 0
        self._hung = False
        # Why the present process ends, if it has said so.
        self._failure: JetstreamError | None = None

    @property
    def pid(self) -> int | None:
        """The ID of the present process, or of the last one."""
        return None if self._child is None else self._child.process.pid

    async def run(self) -> None:
        """Start the process, and others after it, until `retire`. Raises JetstreamError if that is no use."""
        while not self._retired.is_set():
            await self._run_process()
            if not self._retired.is_set():
                self._note_end()
                await self._pause()
            elif not self._stopped:
                self._note_early_end()

    async def _pause(self) -> None:
        """Wait before the next start, or until `retire`."""
        limits = self._limits
        pause_s = backoff_s(len(self._ended_at) - 1, limits.backoff_first_s, limits.backoff_max_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._retired.wait()

    def retire(self) -> None:
        """Replace the process no more. The present one goes on until `stop`, or until it ends by itself."""
        self._retired.set()

    def stop(self) -> None:
        """Tell the process to end in good order, and replace it no more."""
        self._retired.set()
        self._stopped = True
        if self.channel is not None:
            self.channel.tell("stop")

    def kill(self) -> None:
        """Kill the process; without `stop` or `retire`, another one is started."""
        if self._child is not None:
            self._child.process.kill()

    def tell(self, message: ChannelMessage) -> None:
        """Send a message to the process, if there is one."""
        if self.channel is not None:
            self.channel.tell(message.kind, message.fields, message.body)

    async def ask(self, message: ChannelMessage, within_s: float) -> ChannelMessage:
        """Ask the process, and return its answer. Raises ChannelError, also if it is not ready."""
        if self.channel is None or not self.is_ready.is_set():
            raise ChannelError("the process is not ready")
        return await self.channel.ask(message.kind, message.fields, message.body, within_s=within_s)

    def look(self) -> None:
        """Kill the process if it is silent for too long. To be called `looks` times in `hang_s`."""
        limits = self._limits
        allowed_s = limits.hang_s if self.is_ready.is_set() else limits.start_s
        self._silent_looks += 1
        if self._silent_looks > limits.looks * allowed_s / limits.hang_s and self.channel is not None:
            self._hung = True
            self.kill()

    def _note_end(self) -> None:
        """Log that the process has ended, and raise JetstreamError if it is not to be replaced."""
        problem = self._problem()
        self.ends["hung" if self._hung else "died"] += 1
        if not self.was_ready:
            raise self._failure or ProcessFailed(f"{self.place}: {problem}")
        now, limits = self._clock(), self._limits
        self._ended_at.append(now)
        while self._ended_at[0] < now - limits.ends_s:
            self._ended_at.popleft()
        if len(self._ended_at) >= limits.ends_max:
            raise ProcessFailed(
                f"{self.place} has ended {limits.ends_max} times within {limits.ends_s:g} s; the last time:"
                f" {problem}"
            )
        logger.error("a process has ended, and is replaced", ended=str(self.place), problem=problem)

    def _note_early_end(self) -> None:
        """Log that the process has ended before it was told to, unless it got a signal to stop as well."""
        if self._child is not None and self._child.process.returncode:
            event = "a process has ended before the server has stopped"
            logger.error(event, ended=str(self.place), problem=self._problem())

    def _problem(self) -> str:
        """Return why the last process has ended, in its own words if it had any."""
        if self._hung:
            return f"it was silent for {self._limits.hang_s:g} s, and was killed"
        if self._failure is not None:
            return str(self._failure)
        assert self._child is not None
        ended = how_ended(self._child.process.returncode)
        last = self._lines.last_raw
        return f"{ended}, and wrote: {last}" if last else ended

    async def _run_process(self) -> None:
        """Run one process to its end."""
        self._silent_looks, self._hung, self._failure = 0, False, None
        self._lines.last_raw = ""
        try:
            child = start(str(self.place), self._command)
        except OSError as error:  # too many processes, or files
            self._failure = ProcessFailed(f"{self.place} cannot be started: {error}")
            return
        self._child = child
        reading = asyncio.create_task(self._lines.read(child.process))
        try:
            await self._converse(child.control, child.passing)
        except OSError as error:  # the system has no room for the channel
            self._failure = ProcessFailed(f"{self.place} cannot be started: {error}")
            child.process.kill()
        except BaseException:
            child.process.kill()
            raise
        finally:
            await asyncio.to_thread(wait, child.process)
            self._owner.ended(self)
        # Another program may have its standard error, too.
        await asyncio.wait([reading], timeout=_LAST_LINES_S)
        reading.cancel()

    async def _converse(self, control: socket.socket, passing: socket.socket) -> None:
        """Exchange messages with the process until it ends. Raises OSError if there can be no channel."""
        channel, loop = Channel(_Peer(self, self._owner), self._limits), asyncio.get_running_loop()
        with ExitStack() as sockets:
            for sock in (control, passing):
                sockets.enter_context(sock)
            await loop.create_unix_connection(lambda: channel, sock=control)
            sockets.pop_all()  # they belong to the channel and to the owner now
        self.channel = channel
        try:
            setup = self._owner.began(self, passing)
            channel.tell(setup.kind, setup.fields, setup.body)
            if self._stopped:  # before there was a channel
                channel.tell("stop")
            await channel.ended.wait()
        finally:
            self.channel = None
            self.is_ready.clear()
            channel.abort()

    # --- what the process says: called by `_Peer` ---

    def hear(self) -> None:
        """Note that the process lives."""
        self._silent_looks = 0

    def take(self, message: ChannelMessage) -> None:
        """Take what the process tells of itself, or give it to the owner."""
        if message.kind == "ready":
            self.was_ready = True
            self.is_ready.set()
            self._owner.ready(self)
        elif message.kind == "failed":
            self._failure = failure_of(message.fields)
        elif message.kind != "alive":
            self._owner.told(self, message)


class _Peer:
    """What the channel of a process does with what comes."""

    def __init__(self, process: Process, owner: Owner) -> None:
        self._process = process
        self._owner = owner

    def told(self, message: ChannelMessage) -> None:
        self._process.hear()
        self._process.take(message)

    def asked(self, message: ChannelMessage) -> Awaitable[ChannelMessage]:
        self._process.hear()
        return self._owner.asked(self._process, message)

    def lost(self) -> None:
        pass
