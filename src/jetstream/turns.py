"""Taking turns on one event loop: how much to do in one turn, and how to wake those who wait."""

from __future__ import annotations

import asyncio
from typing import Final

TURN_S: Final = 0.004  # nothing should hold the loop for longer
_GROWTH_MAX: Final = 1.5


class Portion:
    """How many things to do in one turn, fitted to the time that they take.

    `size` stays between `least` and `most`.
    """

    def __init__(self, size: int, least: int, most: int) -> None:
        self.size = size
        self._least = least
        self._most = most

    def fit(self, seconds: float) -> None:
        """Take note of how long a whole portion took."""
        ratio = TURN_S / max(seconds, TURN_S / _GROWTH_MAX, 1e-9)
        self.size = max(self._least, min(self._most, int(self.size * ratio) + (ratio > 1)))


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
