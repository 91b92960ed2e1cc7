"""One child of the supervisor, and those that take its place.

    start ─▶ ready ─▶ heartbeats ─▶ … ─▶ stop
    ▲          │         │
    └──────────┴─────────┴── it ends, or is silent for too long and killed: after a pause, another one starts

A process that ends before the server has ever been ready ends the server: a setting is wrong, or the
log cannot be opened. So does one that ends again and again.

What is not decided here, `Owner` decides: the setup of a process, its connections, its figures.
`Supervisor` is the owner of all. Everything runs in the event loop's thread, but for waiting for the
end of a process.

    starting   starts the program, with two sockets to it
    channel    messages with it
    lines      what it writes to standard error
    failures   the error that it ends with
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

# Seconds for what a process has written to be read, once it has ended. Another program may hold its
# standard error open for longer.
_LAST_LINES_S: Final = 0.5

Role = Literal["ingest", "edge"]

logger = structlog.get_logger(__name__)


class Place(NamedTuple):
    """Which of the processes of a server one is: the ingest, or the edge of a number from 1 on.

    A place is filled by one process after another. Metrics, histories and log lines are of the place.
    """

    role: Role
    # The number of an edge, from 1 on; 0 for the ingest.
    number: int = 0

    def __str__(self) -> str:
        """Return its name, as the log and metrics have it."""
        return f"edge-{self.number}" if self.number else self.role


class Owner(Protocol):
    """What the supervisor does with what a process says. `Process` calls it, in the event loop's thread."""

    def began(self, process: Process, passing: socket.socket, /) -> ChannelMessage:
        """Return the setup of a process that has started. `passing` is the socket for its connections.

        It is called once for each process, before it says anything but that it lives. The socket
        belongs to the owner from now on.
        """

    def ready(self, process: Process, /) -> None:
        """Record that a process is ready.

        Its place serves from now on. It is called once for each process, after `began`.
        """

    def told(self, process: Process, message: ChannelMessage, /) -> None:
        """Take what a process tells.

        Messages of the kinds `ready`, `failed` and `alive` are not among these: `Process` takes them
        itself.
        """

    def asked(self, process: Process, message: ChannelMessage, /) -> Awaitable[ChannelMessage]:
        """Return the answer to a question of a process."""

    def ended(self, process: Process, /) -> None:
        """Record that a process has ended.

        It is called once for each process that was started, when it does not run any more and its
        messages have been taken. `is_ready` is not set then. It must not raise.
        """


class Process:
    """A child and its successors. `command` are the arguments of Python, `clock` gives monotonic seconds.

    `write` takes the lines that it logs.

    Call `run` in a task of its own. All other methods may be called at any time from the event loop's
    thread, also while no process runs.
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
        # Called for all that a process says, and for its beginning and end.
        self._owner = owner
        self._limits = limits
        # Arguments of Python, before the name of the place and the number of the socket.
        self._command = command
        self._clock = clock
        # Reads the standard error of the present process. One for all of them: the last line is cleared
        # with each.
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
        """The ID of the present process, or of the last one.

        None: no process was started yet, or it could not be.
        """
        return None if self._child is None else self._child.process.pid

    async def run(self) -> None:
        """Start the process, and others after it, until `retire` and the end of the present one.

        Raises JetstreamError if another start is no use: a process has ended before any of this place was
        ready, or `ends_max` of them within `ends_s`. If this is cancelled, the process is killed.
        """
        while not self._retired.is_set():
            await self._run_process()
            if not self._retired.is_set():
                self._note_end()
                await self._pause()
            elif not self._stopped:
                self._note_early_end()

    async def _pause(self) -> None:
        """Wait before the next start, or until `retire`.

        It doubles with each end within `ends_s`, is random below that, and at most `backoff_max_s`
        seconds.
        """
        limits = self._limits
        pause_s = backoff_s(len(self._ended_at) - 1, limits.backoff_first_s, limits.backoff_max_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._retired.wait()

    def retire(self) -> None:
        """Replace the process no more. The present one goes on until `stop`, or until it ends by itself.

        The end of one that ends by itself is logged as an error, unless its exit status is 0.
        """
        self._retired.set()

    def stop(self) -> None:
        """Tell the process to end in good order, and replace it no more.

        Returns at once; `run` returns when the process has ended. One that has not got its setup yet is
        told right after it.
        """
        self._retired.set()
        self._stopped = True
        if self.channel is not None:
            self.channel.tell("stop")

    def kill(self) -> None:
        """Kill the process; without `stop` or `retire`, another one is started.

        Its sockets end with it: `run` sees that as any other end.
        """
        if self._child is not None:
            self._child.process.kill()

    def tell(self, message: ChannelMessage) -> None:
        """Send a message to the process, if there is one.

        Without a process, the message is lost. What every process must know is sent again by the
        owner's `ready`.
        """
        if self.channel is not None:
            self.channel.tell(message.kind, message.fields, message.body)

    async def ask(self, message: ChannelMessage, within_s: float) -> ChannelMessage:
        """Ask the process, and return its answer. Raises ChannelError, also if it is not ready.

        `within_s` is in seconds. The process may end meanwhile, which is a ChannelError as well.
        """
        if self.channel is None or not self.is_ready.is_set():
            raise ChannelError("the process is not ready")
        return await self.channel.ask(message.kind, message.fields, message.body, within_s=within_s)

    def look(self) -> None:
        """Kill the process if it is silent for too long. To be called `looks` times in `hang_s`.

        Looks are counted, and not seconds since the last message. While the whole machine stands still,
        no looks are made, and so no process is killed for that.
        """
        limits = self._limits
        allowed_s = limits.hang_s if self.is_ready.is_set() else limits.start_s
        self._silent_looks += 1
        if self._silent_looks > limits.looks * allowed_s / limits.hang_s and self.channel is not None:
            self._hung = True
            self.kill()

    def _note_end(self) -> None:
        """Log that the process has ended, and raise JetstreamError if it is not to be replaced.

        What the process has said of its failure is raised as it is, if no process of this place was
        ever ready.
        """
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
        """Log that the process has ended before it was told to, unless it got a signal to stop as well.

        That is an exit status of 0: the signal went to all processes of the terminal or of the service.
        """
        if self._child is not None and self._child.process.returncode:
            event = "a process has ended before the server has stopped"
            logger.error(event, ended=str(self.place), problem=self._problem())

    def _problem(self) -> str:
        """Return why the last process has ended, in its own words if it had any.

        In this order: it was killed for its silence, the failure that it told, or its exit status and
        its last line on standard error.
        """
        if self._hung:
            return f"it was silent for {self._limits.hang_s:g} s, and was killed"
        if self._failure is not None:
            return str(self._failure)
        assert self._child is not None
        ended = how_ended(self._child.process.returncode)
        last = self._lines.last_raw
        return f"{ended}, and wrote: {last}" if last else ended

    async def _run_process(self) -> None:
        """Run one process to its end.

        A process that cannot be started has ended with a failure, too, so the next attempt comes after
        the pause. The owner is told of the end only if there was a process. It returns when the process
        does not run any more.
        """
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
            # Up to `EXIT_S` in a thread: the event loop must go on for the other processes.
            await asyncio.to_thread(wait, child.process)
            self._owner.ended(self)
        # Another program may have its standard error, too.
        await asyncio.wait([reading], timeout=_LAST_LINES_S)
        reading.cancel()

    async def _converse(self, control: socket.socket, passing: socket.socket) -> None:
        """Exchange messages with the process until it ends. Raises OSError if there can be no channel.

        The setup is the first message that the process gets. When this returns, the channel is closed:
        the process reads that, and ends.
        """
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
        """Record that the process lives.

        Every message and every question counts, whatever it says.
        """
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
    """What the channel of a process does with what comes.

    Each message counts as a sign of life first, whatever it is. The end of the channel is seen by
    `Channel.ended`.
    """

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
