"""Taking turns on one event loop, and with threads: when to rest, who goes on, who wakes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from jetstream.steps import Steps

TURN_S: Final = 0.004  # nothing should hold the loop for longer
TIMER_S: Final = 0.001  # uvloop has no finer one
_SWITCH_S: Final = sys.getswitchinterval()
_SWITCH_SHORT_S: Final = 20e-6


class Worker:
    """Does jobs one after another, step by step, for at most `turn_s` in one turn of the loop.

    After each turn it leaves the loop to others for `rest_ratio` times as long as the turn took.
    """

    def __init__(self, *, turn_s: float = TURN_S / 2, rest_ratio: float = 0.0) -> None:
        self._turn_s = turn_s
        self._rest_ratio = rest_ratio
        self._jobs: deque[Steps[None]] = deque()  # the first one is being done
        self._scheduled = False  # whether `_turn` is going to be called

    def __len__(self) -> int:
        """How many jobs are not done."""
        return len(self._jobs)

    def put(self, job: Steps[None]) -> None:
        """Add a job at the end of the line."""
        self._jobs.append(job)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        began = time.perf_counter()
        try:
            while self._jobs:
                self._step()
                if time.perf_counter() - began >= self._turn_s:
                    break
        finally:
            rest_s = (time.perf_counter() - began) * self._rest_ratio
            self._scheduled = bool(self._jobs) or rest_s > 0
            if self._scheduled:
                asyncio.get_running_loop().call_later(rest_s, self._turn)

    def _step(self) -> None:
        try:
            next(self._jobs[0])
        except BaseException as error:
            self._jobs.popleft()
            if not isinstance(error, StopIteration):
                raise


class Pulse:
    """Wakes all who wait for something to have changed; they look for themselves what it is."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Return after the next `send`."""
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        await mine

    def send(self) -> None:
        """Wake all who wait now."""
        for each in self._waiting:
            if not each.done():  # else it was cancelled
                each.set_result(None)
        self._waiting.clear()


class Line:
    """Lets those who wait pass one after another, at most so many in one turn of the loop."""

    def __init__(self, passing: int) -> None:
        self._passing = passing
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    async def turn(self) -> None:
        """Wait in line."""
        loop = asyncio.get_running_loop()
        mine = loop.create_future()
        self._waiting.append(mine)
        if len(self._waiting) == 1:
            loop.call_soon(self._pass)
        await mine

    def _pass(self) -> None:
        left = self._passing
        while self._waiting and left:
            waiter = self._waiting.popleft()
            if not waiter.done():  # else it was cancelled
                waiter.set_result(None)
                left -= 1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._pass)


class Rest:
    """Leaves the loop to others for what is owed to them, exact on the whole although timers are coarse."""

    def __init__(self) -> None:
        self._owed_s = 0.0

    def owe(self, seconds: float) -> None:
        """Rest for so much longer."""
        self._owed_s += seconds

    async def take(self) -> None:
        """Rest, if what is owed is long enough for a timer; give the loop a turn in any case."""
        if self._owed_s < TIMER_S:
            await asyncio.sleep(0)
            return
        began = time.perf_counter()
        await asyncio.sleep(self._owed_s)
        self._owed_s = max(self._owed_s + began - time.perf_counter(), -TIMER_S)


@contextmanager
def short_switch_interval() -> Iterator[None]:
    """Let threads have the interpreter at once, while the event loop needs what one of them does.

    A thread asks for the interpreter when it has waited for 5 ms, but counts anew each time that it was let
    go of and taken back, and a busy uvloop does so at every callback: four statements of SQL took 0.3 s.
    """
    sys.setswitchinterval(_SWITCH_SHORT_S)
    try:
        yield
    finally:
        sys.setswitchinterval(_SWITCH_S)
