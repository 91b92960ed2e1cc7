"""Wake waiting coroutines, and pace what happens at a rate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

_TURN_S: Final = 0.005  # what is due within it is done at once: fewer wake-ups, and no visible bursts
_AT_ONCE_MAX: Final = 500  # after the machine was suspended, catch up in several turns


class Signal:
    """Wakes every coroutine that waits, each time it is notified."""

    def __init__(self) -> None:
        self._next = asyncio.Event()  # set, and replaced, by the next `notify`

    def notify(self) -> None:
        """Wake every coroutine that waits now."""
        given, self._next = self._next, asyncio.Event()
        given.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds. It is checked at each notification."""
        while not condition():
            await self._next.wait()


async def at_rate(rate: float) -> AsyncIterator[int]:
    """Yield again and again how many items are due at `rate` items a second."""
    loop = asyncio.get_running_loop()
    start, done = loop.time(), 0
    while True:
        due = min(int((loop.time() - start) * rate) - done, _AT_ONCE_MAX)
        if due > 0:
            done += due
            yield due
        await asyncio.sleep(max(_TURN_S, start + (done + 1) / rate - loop.time()))


async def on_demand(count: int, wait_wanted: Callable[[], Awaitable[None]]) -> AsyncIterator[int]:
    """Yield `count` each time that `wait_wanted` returns."""
    while True:
        await wait_wanted()
        yield count
        await asyncio.sleep(0)
