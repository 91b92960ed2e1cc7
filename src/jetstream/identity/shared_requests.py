"""Requests that run or wait for their turn, each shared by all that need its answer.

A request leaves its answer in the cache of its maker (`resolver`). What is passed on here is only whether it
failed. So all that share it look into the cache afterwards.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from jetstream.metrics import KeyMetrics

# Makes a request for a DID that a message of a source needs.
Fetch = Callable[[str, str], Awaitable[None]]
# Does so and deals with what comes of it. Returns why it failed, or nothing.
Run = Callable[[str, Fetch, str], Coroutine[Any, Any, str]]


class SharedRequests:
    """At most `waiting_max` requests, which `run` makes. Used by the event loop's thread only.

    The key of a request is what it asks for, `key` or `history`, and the DID.
    """

    def __init__(self, run: Run, metrics: KeyMetrics, waiting_max: int) -> None:
        self._run = run
        self._metrics = metrics
        self._waiting_max = waiting_max
        # Requests that run or wait, by what they ask for and the DID.
        self._running: dict[tuple[str, str], asyncio.Task[str]] = {}
        self._of_source: Counter[str] = Counter()  # of these, those of each source. None is 0

    def __len__(self) -> int:
        """Return how many requests run, or wait for their turn."""
        return len(self._running)

    def __contains__(self, key: tuple[str, str]) -> bool:
        """Return whether there is a request, by what it asks for and the DID."""
        return key in self._running

    async def close(self) -> None:
        """End all requests. Those that wait for them get an answer without a key."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def share(self, kind: str, did: str, fetch: Fetch, source: str) -> str:
        """Wait for a request, the one that runs already or a new one. Return why it failed, or nothing.

        `overload`: there is no room for another one of this source. `unreachable`: it was ended by `close`.
        """
        task = self._running.get((kind, did))
        if task is None:
            # A source has at most as many requests as are free, so others always find some.
            if self._of_source[source] >= self._waiting_max - len(self._running):
                self._metrics.requests["overload"].inc()
                return "overload"
            task = self.start(kind, did, fetch, source)
        await asyncio.wait([task])  # a caller that is cancelled does not end it for the others
        return "unreachable" if task.cancelled() else task.result()

    def start(self, kind: str, did: str, fetch: Fetch, source: str) -> asyncio.Task[str]:
        """Begin a request; there is none of this kind for the DID.

        It is begun even if there are `waiting_max`: callers other than `share` have bounds of their own.
        """
        task = asyncio.create_task(self._run(did, fetch, source))
        self._running[kind, did] = task
        self._of_source[source] += 1
        task.add_done_callback(lambda _: self._done(kind, did, source))
        return task

    def _done(self, kind: str, did: str, source: str) -> None:
        """Count one request of a source less, when it has ended in any way."""
        self._running.pop((kind, did), None)
        self._of_source[source] -= 1
        if not self._of_source[source]:
            del self._of_source[source]
