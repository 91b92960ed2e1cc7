"""A clock, and directories and hosts that answer as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from jetstream.identity.failures import NoKey

NOW_S = 1_800_000_000.0
Reply = bytes | Exception | Callable[[], Any]


class Clock:
    """Monotonic seconds and unix seconds that pass when something sleeps, or when a test says so."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.passed

    def now(self) -> float:
        return NOW_S + self.passed

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.passed += seconds
        await asyncio.sleep(0)


class Answers:
    """Answers by URL. An unknown one is a 404. `held` keeps every answer back until it is set."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.asked: list[str] = []
        self.timeouts: list[float] = []
        self.held = asyncio.Event()
        self.held.set()
        self.at_once = self.most_at_once = 0

    def put(self, url: str, reply: object) -> None:
        """Set an answer: bytes, a value as JSON, or an error."""
        self.replies[url] = reply if isinstance(reply, bytes | Exception) else orjson.dumps(reply)

    async def get(self, url: str, bytes_max: int, timeout_s: float) -> bytes:
        self.asked.append(url)
        self.timeouts.append(timeout_s)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.held.wait()
        finally:
            self.at_once -= 1
        reply = self.replies.get(url, NoKey("not_found", "HTTP 404", status=404))
        if isinstance(reply, Exception):
            raise reply
        assert isinstance(reply, bytes)
        return reply
