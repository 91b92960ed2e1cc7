"""Tell waiting coroutines that something has changed, and pace what happens at a rate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

_TURN_S: Final = 0.005  # what is due within it is done at once: fewer wake-ups, no visible bursts
_AT_ONCE_MAX: Final = 500  # after a pause of the machine, catch up in turns


class Signal:
    """Wakes everybody who waits, each time it is given."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def give(self) -> None:
        """Wake those who wait now."""
        given, self._next = self._next, asyncio.Event()
        given.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, which can only change when the signal is given."""
        while not condition():
            await self._next.wait()


async def beats(rate: float) -> AsyncIterator[int]:
    """Say again and again how many things are due, so that `rate` a second are done."""
    loop = asyncio.get_running_loop()
    start, done = loop.time(), 0
    while True:
        due = min(int((loop.time() - start) * rate) - done, _AT_ONCE_MAX)
        if due > 0:
            done += due
            yield due
        await asyncio.sleep(max(_TURN_S, start + (done + 1) / rate - loop.time()))


async def turns(count: int, wait_wanted: Callable[[], Awaitable[None]]) -> AsyncIterator[int]:
    """Say again and again that so many things are due, each time that more is wanted."""
    while True:
        await wait_wanted()
        yield count
        await asyncio.sleep(0)
