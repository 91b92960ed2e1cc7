"""Cooperative scheduling on one event loop, and between its thread and others.

The server does its work on one thread, and whatever holds the event loop delays everything else. So long work
is done in turns of a few milliseconds, with pauses between them:

    Worker     runs jobs in small steps, for a bounded time in each turn of the event loop
    Notifier   wakes every task that waits for a change
    TurnQueue  lets a bounded number of tasks pass in each turn, first come, first served
    whole      awaits what a cancellation must not leave in the middle
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from jetstream.steps import Steps

Result = TypeVar("Result")

# Seconds: the longest time for which anything should hold the event loop.
TURN_S: Final = 0.004
# Seconds after which a thread that waits for the GIL requests it: as the process began, and while a
# thread is waited for.
_SWITCH_S: Final = sys.getswitchinterval()
_SWITCH_SHORT_S: Final = 20e-6


class Worker:
    """Runs jobs one after another, in steps, for at most `turn_s` in one turn of the event loop.

    After each turn it pauses for `pause_ratio` times as long as the turn took. An error of a job goes
    to the event loop's exception handler, and the next job begins. `clock` gives seconds.

    A job is a generator that yields after each step; what it yields is ignored. For the event loop's
    thread. Jobs of one worker never overlap, so they may change what they share between two yields, if
    each leaves it in order.
    """

    def __init__(
        self,
        *,
        turn_s: float = TURN_S / 2,
        pause_ratio: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        # Seconds of a turn. A turn ends after the first step with which it has taken so long.
        self._turn_s = turn_s
        # Pause after a turn, as a multiple of what it took. With 1, the work takes half of the thread
        # at most; with 0, other callbacks run in between all the same.
        self._pause_ratio = pause_ratio
        self._clock = clock
        # The jobs that are not done, in order; the first one is running.
        self._jobs: deque[Steps[None]] = deque()
        # Whether the event loop is going to call `_turn`; also during the pause after the last job.
        self._scheduled = False

    def __len__(self) -> int:
        """Return the number of jobs that are not done."""
        return len(self._jobs)

    def put(self, job: Steps[None]) -> None:
        """Add a job at the end of the queue.

        It begins in a later turn of the event loop at the earliest, never in this call. Raises
        RuntimeError without a running loop.
        """
        self._jobs.append(job)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Do steps until the time of the turn is over or no job is left, and schedule the next turn.

        The time of a pause counts from the end of the turn. An error of a job ends the turn, and goes
        from here to the event loop.
        """
        if not self._jobs:  # the pause after the last one is over
            self._scheduled = False
            return
        began = self._clock()
        try:
            while self._jobs:
                self._step()
                if self._clock() - began >= self._turn_s:
                    break
        finally:
            pause_s = (self._clock() - began) * self._pause_ratio
            self._scheduled = bool(self._jobs) or pause_s > 0
            if self._scheduled:
                asyncio.get_running_loop().call_later(pause_s, self._turn)

    def _step(self) -> None:
        """Do one step of the first job, and remove the job if that was its last one or has failed."""
        try:
            next(self._jobs[0])
        except BaseException as error:
            self._jobs.popleft()
            if not isinstance(error, StopIteration):
                raise


class Notifier:
    """Wakes every task that waits for a change. The tasks check for themselves what has changed.

    Nothing is remembered: a task that waits after a change is not woken for it. So a task looks first,
    and waits without an await in between. For one event loop.
    """

    def __init__(self) -> None:
        # One for each `wait` since the last `notify`.
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Return after the next `notify`."""
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        await mine

    def notify(self) -> None:
        """Wake every task that waits now.

        They run in the next turn of the event loop, in the order in which they began to wait.
        """
        for each in self._waiting:
            if not each.done():  # else it was cancelled
                each.set_result(None)
        self._waiting.clear()


class TurnQueue:
    """Lets at most `passing` waiting tasks pass in one turn of the event loop, first come, first served.

    With it, thousands of tasks that are woken at once do their work over many turns. For one event
    loop.
    """

    def __init__(self, passing: int) -> None:
        # How many tasks pass in each turn; above 0.
        self._passing = passing
        # One for each task that waits, in order. `_pass` is scheduled while there are any.
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        """Return the number of tasks that wait."""
        return len(self._waiting)

    async def wait(self) -> None:
        """Wait in the queue; never return within the same turn of the event loop.

        A task that is cancelled leaves the queue, and takes nothing from the others in its turn.
        """
        loop = asyncio.get_running_loop()
        mine = loop.create_future()
        self._waiting.append(mine)
        if len(self._waiting) == 1:
            loop.call_soon(self._pass)
        await mine

    def _pass(self) -> None:
        """Wake the first tasks, as many as may pass in one turn, and come again for the rest."""
        left = self._passing
        while self._waiting and left:
            waiter = self._waiting.popleft()
            if not waiter.done():  # else it was cancelled
                waiter.set_result(None)
                left -= 1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._pass)


async def whole(
    working: asyncio.Future[Result], end: Callable[[], object] | None = None, patience_s: float = 1.0
) -> Result:
    """Await what must not be left in the middle: a cancellation waits for its end.

    If that takes longer than `patience_s` seconds, `end` is called, which must end it; None: nothing
    can.

    Returns the result of `working`, or raises its error. After a cancellation it raises CancelledError,
    but not before `working` has ended: its result is dropped then, and so is its error.

    For threads, which cannot be cancelled, and for statements of a database whose connection would else
    be lost.
    """
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([working], timeout=None if end is None else patience_s)
        finally:
            if end is not None and not working.done():
                end()
        await asyncio.wait([working])
        if not working.cancelled():
            working.exception()  # it is the business of nobody any more
        raise


@contextmanager
def short_switch_interval() -> Iterator[None]:
    """Let other threads have the GIL soon, while the event loop waits for what one of them does.

    A waiting thread requests the GIL after the switch interval, by default 5 ms. But its timer restarts
    whenever the GIL is released and retaken, which a busy uvloop does at every callback: four SQL
    statements took 0.3 s.

    The interval is that of the process: all threads have it while the block runs. After the block it is
    what it was when the process began. Where blocks of two tasks overlap, the end of the first one is that
    of both.
    """
    sys.setswitchinterval(_SWITCH_SHORT_S)
    try:
        yield
    finally:
        sys.setswitchinterval(_SWITCH_S)
