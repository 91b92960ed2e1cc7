"""The PLC directories: one after another until one answers, at a limited rate.

The first directory of the list is asked. The next one is asked when it fails, or does not know the DID. A
directory is left alone for as long as it asks for (`Retry-After`), and, after several failures in a row, for
a time that grows with each of them.

What counts as an answer of a directory: a document, an audit log, and that a DID is not known or has no key
(`LASTING`). Everything else is a failure of the directory, except for an answer that is too big.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, TypeVar

import structlog

from jetstream.identity.failures import LASTING, NoKey
from jetstream.identity.fetch import Fetches, read_body
from jetstream.limits import KeyLimits
from jetstream.logging_setup import Throttled
from jetstream.retry import backoff_s
from jetstream.token_bucket import Rate, TokenBucket
from jetstream.urls import shown

_LEAST_S: Final = 0.001  # for a request whose time is over; 0 would mean no limit

logger = structlog.get_logger(__name__)
Answer = TypeVar("Answer")
Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class Outage(NamedTuple):
    """No directory answers."""

    lasted_s: float  # from the first failure without an answer since to the last one
    failed_at: float  # when that was, in seconds of the clock
    problem: str  # of that failure, with the name of the directory


class Pace:
    """Lets callers pass at a rate, first come, first served. `clock` gives seconds that never fall."""

    def __init__(self, rate: Rate, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep) -> None:
        self._bucket = TokenBucket(rate.per_s, rate.burst, clock())
        self._step_s = 1.0 / rate.per_s  # until the next one may pass
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()  # held by the caller that is next; the others wait for it in order

    async def wait(self) -> None:
        """Return when the caller may pass."""
        async with self._turn:
            while not self._bucket.spend(self._clock()):
                await self._sleep(self._step_s)


class Directory:
    """One directory, and how it is: asked as usual, failing, or paused."""

    def __init__(self, url: str, limits: KeyLimits, clock: Clock) -> None:
        # Paths of requests are appended to it.
        self.url = url.rstrip("/")
        # The URL without what may be secret, for logs.
        self.name = shown(self.url)
        # Until when it is not asked, on `clock`, and the failure that was the reason.
        self.paused_until = clock()
        self.problem = NoKey("unreachable")
        # When it failed last, and first since its last answer; None: it has answered, or was never asked.
        self.failed_at = clock()
        self.failing_since: float | None = None
        self._limits = limits
        self._clock = clock
        self._failures = 0  # in a row
        self._down = False  # whether it was paused, and has not answered since
        self._logger = Throttled(logger, clock=clock)

    def note(self, error: NoKey | None) -> None:
        """Note the outcome of a request; None: it has answered. `_failed` tells when it is paused."""
        if error is None or error.reason in LASTING:
            self._answered()
        elif error.reason != "too_big":  # an account may have an audit log that is: not the directory's fault
            self._failed(error)

    def _answered(self) -> None:
        """Note an answer: failures are counted from 0 again. A pause that has begun meanwhile goes on."""
        self._failures = 0
        self.failing_since = None
        if self._down:
            self._down = False
            self._logger.info("a PLC directory answers again", directory=self.name)

    def _failed(self, error: NoKey) -> None:
        """Note a failure, and pause the directory after `directory_failures` in a row.

        A directory that limits the rate is paused at once, for as long as it asks for and at least a second.
        Pauses begin with a second and are doubled with each failure, up to 30 s. The first pause since the
        last answer is logged.
        """
        self._failures += 1
        self.problem = error
        self.failed_at = self._clock()
        if self.failing_since is None:
            self.failing_since = self.failed_at
        beyond = self._failures - self._limits.directory_failures
        if error.reason == "rate_limited":
            beyond = max(beyond, 0)
        pause_s = max(error.retry_after, backoff_s(beyond, jitter=max) if beyond >= 0 else 0.0)
        self.paused_until = max(self.paused_until, self._clock() + pause_s)
        if pause_s and not self._down:
            self._down = True
            self._logger.warning(
                "a PLC directory is left alone for a while", directory=self.name, problem=str(error)
            )


class Directories:
    """All directories. `urls` are their base URLs, such as `https://plc.directory`.

    Used by the event loop's thread only. The rate of requests (`plc_rate`) is that of all together.
    """

    def __init__(
        self,
        urls: Sequence[str],
        fetcher: Fetches,
        limits: KeyLimits = KeyLimits(),
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        # In the order in which they are asked; it never changes.
        self.directories = [Directory(url, limits, clock) for url in urls]
        self._fetcher = fetcher
        self._limits = limits
        self._pace = Pace(limits.plc_rate, clock, sleep)
        self._clock = clock
        self._sleep = sleep

    def outage(self) -> Outage | None:
        """Return how long no directory has answered; None if one of them has, or was not asked since.

        An outage begins when the last directory begins to fail.
        """
        first = max(
            (float("inf") if each.failing_since is None else each.failing_since for each in self.directories),
            default=float("inf"),
        )
        if first == float("inf"):
            return None
        last = max(self.directories, key=lambda directory: directory.failed_at)
        return Outage(last.failed_at - first, last.failed_at, f"{last.name}: {last.problem}")

    async def ask(
        self, path: str, read: Callable[[bytes], Answer], bytes_max: int, timeout_s: float
    ) -> Answer:
        """Return what `read` makes of a path's body, of the first directory that has it.

        `read` raises NoKey for a body that it cannot use. All requests together take at most `timeout_s`, of
        which each has an equal share. After an error that may be over at once, all are asked once more.
        Raises NoKey: that the DID does not exist or has no key, if a directory says so; else why the last
        directory failed.
        """
        deadline = self._clock() + timeout_s
        try:
            return await self._ask_each(path, read, bytes_max, deadline)
        except NoKey as error:
            if error.retry_after or (error.reason != "unreachable" and error.status < 500):
                raise
        await self._sleep(self._limits.retry_s)
        return await self._ask_each(path, read, bytes_max, deadline)

    async def _ask_each(
        self, path: str, read: Callable[[bytes], Answer], bytes_max: int, deadline: float
    ) -> Answer:
        """Ask the directories that are not paused, one after another. Raises NoKey as `ask` does.

        That an account has no key, or one that cannot be read, ends it: the others are not asked. That a DID
        is not known is raised when all were asked, also if some of them have failed.
        """
        usable = await self._usable(deadline)
        failure: NoKey | None = None
        for tried, directory in enumerate(usable):
            await self._pace.wait()
            # What a directory leaves of its share is divided among those after it.
            share_s = (deadline - self._clock()) / (len(usable) - tried)
            try:
                return await self._ask_one(directory, path, read, bytes_max, max(share_s, _LEAST_S))
            except NoKey as error:
                if error.reason in LASTING and error.reason != "not_found":
                    raise
                if failure is None or failure.reason not in LASTING:
                    failure = error
        assert failure is not None
        raise failure

    async def _ask_one(
        self,
        directory: Directory,
        path: str,
        read: Callable[[bytes], Answer],
        bytes_max: int,
        timeout_s: float,
    ) -> Answer:
        """Ask one directory, and note how it was: a body that `read` cannot use is a failure of it, too."""
        try:
            body = await self._fetcher.get(directory.url + path, bytes_max, timeout_s)
            answer = await read_body(read, body)
        except NoKey as error:
            directory.note(error)
            raise
        directory.note(None)
        return answer

    async def _usable(self, deadline: float) -> list[Directory]:
        """Return the directories that are not paused, after the end of the first pause if all of them are.

        Raises NoKey at once if that is after the deadline.
        """
        if usable := self._awake():
            return usable
        if not self.directories:
            raise NoKey("unreachable", "no directory is set")
        first = min(self.directories, key=lambda directory: directory.paused_until)
        if first.paused_until >= deadline:
            pause_s = first.paused_until - self._clock()
            problem = first.problem
            detail = f"{first.name} is asked again in {pause_s:.0f} s: {problem.detail}"
            raise NoKey(problem.reason, detail, retry_after=pause_s)
        while first.paused_until > self._clock():
            await self._sleep(first.paused_until - self._clock())
        return self._awake()

    def _awake(self) -> list[Directory]:
        """Return the directories that are not paused now, in their order."""
        now = self._clock()
        return [directory for directory in self.directories if directory.paused_until <= now]
