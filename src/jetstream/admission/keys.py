"""The signing keys of accounts, as a server that verifies asks for them.

    load           before a batch: from the file into memory, for all its accounts with one query
    cached         at once, from memory: nearly every message
    wait           a message that has no key waits for it, ten seconds at most
    after_failure  a signature that does not fit: the keys that were valid at that time
    announced      the account has sent `#identity`: its key may be another one now
    pds, find_pds  the host of an account's PDS, for messages of a PDS (`hosting`)

`Keys` opens all that this needs (`identity`), and closes it:

    file ◀──▶ KeyCache ◀── Resolver ◀── Directories (did:plc), PublicFetcher (did:web)
                 ▲
                 └──────── ExportFollower ◀── the export of the first directory, with --follow-plc

What directories and hosts do wrong is counted (`Metrics.keys`). While no directory answers, the condition
`keys_unavailable` holds, and while its export cannot be read, `keys_not_followed`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Final, NamedTuple, Self

import structlog

from jetstream.atproto.encoded_key import EncodedKey
from jetstream.atproto.tid import tid_us
from jetstream.clock import iso, unix_us
from jetstream.conditions import Conditions
from jetstream.errors import KeyCacheError
from jetstream.identity.answers import Answer, Candidates
from jetstream.identity.cache import KeyCache
from jetstream.identity.directories import Directories, Outage
from jetstream.identity.export import Progress
from jetstream.identity.failures import KEY_FAILURES
from jetstream.identity.fetch import Fetcher, Fetches
from jetstream.identity.follower import ExportFollower
from jetstream.identity.public import PublicFetcher
from jetstream.identity.resolver import Resolver
from jetstream.identity.store import KeyStore, export_lock
from jetstream.limits import ExportLimits, KeyLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.token_bucket import Rate

# Names of conditions, as `/health` and the metric show them.
CONDITION: Final = "keys_unavailable"
NOT_FOLLOWED: Final = "keys_not_followed"

logger = structlog.get_logger(__name__)


class KeySettings(NamedTuple):
    """Where keys come from, as the operator has set it."""

    # The directory of the file of keys, which several processes may share.
    data_dir: Path
    plc_urls: Sequence[str]  # base URLs of PLC directories, which are asked in this order
    plc_rate: float = 100.0  # requests a second to all of them together
    follow: bool = False  # whether the export of the first one is read, and kept up with


class Following:
    """Tells the operator how far the export is that a server follows.

    Until its end is reached, one line a minute; there, one line; then none, until it fails. `clock` gives
    monotonic seconds, `now_us` unix microseconds.
    """

    def __init__(
        self,
        conditions: Conditions,
        limits: ExportLimits,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = unix_us,
    ) -> None:
        self._conditions = conditions
        self._limits = limits
        self._clock = clock
        self._now_us = now_us
        # After the last page; None: there was none.
        self._progress: Progress | None = None
        # When reading began, or a line was written, on `clock`.
        self._said_at = clock()
        # Whether the end was reached, and nothing has failed since.
        self._at_end = False
        self._failures = 0  # in a row

    def note(self, progress: Progress) -> None:
        """Take the progress after a page of the export; log it every `follow_progress_s`, up to the end."""
        self._progress = progress
        if not self._at_end and self._clock() - self._said_at >= self._limits.follow_progress_s:
            self._said_at = self._clock()
            behind_s = max(self._now_us() - progress.newest_us, 0) // 1_000_000
            logger.info(
                "reading the directory's export",
                operations=progress.operations,
                up_to=iso(progress.newest_us),
                behind_s=behind_s,
            )

    def ended(self, problem: str) -> None:
        """Begin or end the condition, since the end was reached or, with a problem, was not.

        The condition begins after `follow_failures` failures in a row, and ends with the first success.
        """
        self._failures = self._failures + 1 if problem else 0
        if self._failures >= self._limits.follow_failures:
            reason = (
                f"the directory's export could not be read {self._failures} times in a row ({problem}): keys"
                " are fetched as they are needed. If the directory has none, set another --plc-url, or leave"
                " out --follow-plc"
            )
            self._conditions.begin(NOT_FOLLOWED, reason)
        elif not problem:
            self._conditions.end(NOT_FOLLOWED)
        if not problem and not self._at_end and (progress := self._progress) is not None:
            logger.info(
                "the directory's export is read to its end: all keys of did:plc accounts are known",
                operations=progress.operations,
                unreadable=progress.unreadable,
                up_to=iso(progress.newest_us),
            )
        self._at_end = not problem
        self._said_at = self._clock()


class Keys:
    """The keys of one server: an async context manager. Used by the event loop's thread only.

    `web` makes the requests to hosts of `did:web`. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        settings: KeySettings,
        metrics: Metrics,
        conditions: Conditions,
        limits: KeyLimits = KeyLimits(),
        export: ExportLimits = ExportLimits(),
        web: Fetches | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Where keys come from.
        self._settings = settings
        self._metrics = metrics
        self._conditions = conditions
        # The operator sets the rate of requests; a second of it may be used at once.
        rate = Rate(settings.plc_rate, ceil(settings.plc_rate))
        self._limits = replace(limits, plc_rate=rate)
        # How the export is read, and what makes requests to hosts of `did:web`.
        self._export = export
        self._web = web or PublicFetcher(limits.web_requests_max)
        self._clock = clock
        # What is to be closed, the last one first. Filled by `__aenter__`, and only if all could be
        # opened.
        self._closing = AsyncExitStack()
        self._logger = Throttled(logger)

    async def __aenter__(self) -> Self:
        """Open the file, and begin to follow the export. Raises KeyCacheError for a file without use."""
        async with AsyncExitStack() as stack:
            limits, settings = self._limits, self._settings
            cache = await stack.enter_async_context(
                KeyCache(KeyStore(settings.data_dir, limits=limits), limits)
            )
            fetcher = _opened(stack, Fetcher(limits.requests_max))
            self._directories = Directories(settings.plc_urls, fetcher, limits, self._clock)
            counted = self._metrics.keys(KEY_FAILURES)
            self._resolver = Resolver(cache, self._directories, self._web, counted, limits, self._clock)
            stack.push_async_callback(self._resolver.close)
            self._metrics.watch_keys(cache.__len__, lambda: self._resolver.statistics().waiting)
            _run(stack, self._watch())
            following = Following(self._conditions, self._export, self._clock)
            follower = None
            if settings.follow:
                fetch = _opened(stack, Fetcher(1))
                follower = ExportFollower(settings.plc_urls[0], fetch, cache, self._export, following.note)
            _run(stack, self._follow(cache, follower, following))
            self._closing = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all requests and tasks, write what is not in the file yet, and close it."""
        await self._closing.aclose()

    def cached(self, did: str) -> EncodedKey | None:
        """Return the key that memory has; None: `load` it, or `wait` for it.

        If it is old or was announced to change, a refresh begins in the background, and this key is
        returned meanwhile.
        """
        return self._resolver.cached(did)

    async def load(self, dids: Iterable[str]) -> None:
        """Read from the file what it has of accounts, so that `cached` has it. Takes `read_s` at most."""
        await self._resolver.load(dids)

    async def wait(self, did: str, source: str = "") -> Answer:
        """Return the key of an account, or why there is none, within `wait_s`.

        The reason is one of `identity.failures.KEY_FAILURES`; `timeout` if it took too long. Equal
        requests are made once. `source` is the upstream whose message needs it: each has a share of those
        that wait.
        """
        try:
            async with asyncio.timeout(self._limits.wait_s):
                return await self._resolver.resolve(did, source)
        except TimeoutError:
            return Answer(None, "timeout")

    async def after_failure(self, did: str, rev: str, source: str = "") -> Candidates:
        """Return the keys that were valid at a rev, for a signature that `cached` does not fit.

        The directory is asked for them once a minute for each account at most. If the candidates have a
        reason, a key may be missing: a signature that fits none of them may still be genuine. Takes `wait_s`
        at most.
        """
        try:
            async with asyncio.timeout(self._limits.wait_s):
                return await self._resolver.keys_at(did, tid_us(rev), source)
        except TimeoutError:
            return Candidates([], "timeout")

    @property
    def is_out(self) -> bool:
        """Whether directories have failed, and none has answered since, or given an audit log."""
        return self._directories.outage() is not None or self._resolver.logs_fail

    def known_at(self, did: str, rev: str) -> list[EncodedKey]:
        """Return the keys that memory has of a rev, since `after_failure` was asked for the account."""
        return self._resolver.known_at(did, tid_us(rev))

    def pds(self, did: str) -> str | None:
        """Return the host of an account's PDS that memory has: empty, if there is none. None: not known."""
        return self._resolver.pds(did)

    async def find_pds(self, did: str, source: str = "") -> None:
        """Fetch the document of an account, so that `pds` has what it says, within `wait_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.wait_s):
                await self._resolver.find_pds(did, source, refresh=True)

    def announced(self, did: str) -> None:
        """Note that an account may have changed its key (`#identity`). It is fetched when it is used."""
        self._resolver.announced(did)

    def check(self) -> None:
        """Begin or end the condition."""
        self._conditions.set(CONDITION, self._outage_reason(self._directories.outage()))

    def _outage_reason(self, outage: Outage | None) -> str | None:
        """Return the reason for the condition; None: it does not hold.

        It holds after `outage_s` of failures. It ends with an answer, and `outage_over_s` after the last
        failure if nothing was asked since: an outage that nobody notices is over.
        """
        limits = self._limits
        if outage is None or outage.lasted_s < limits.outage_s:
            return None
        if self._clock() - outage.failed_at > limits.outage_over_s:
            return None
        return (
            f"no PLC directory has answered for {outage.lasted_s:.0f} s ({outage.problem}): accounts whose"
            " key is not known cannot be verified. Look at the network, or set another --plc-url"
        )

    async def _watch(self) -> None:
        """Look at the directories every `look_s` seconds, until cancelled."""
        while True:
            await asyncio.sleep(self._limits.look_s)
            self.check()

    async def _follow(self, cache: KeyCache, follower: ExportFollower | None, following: Following) -> None:
        """Follow the export until cancelled. If another process does, look now and then how far it has read.

        A lock lets one process at a time read the export into a directory. What it has read is of use to
        all of them.
        """
        while True:
            try:
                if follower is not None:
                    with export_lock(self._settings.data_dir):
                        await follower.run(following.ended)
            except KeyCacheError as error:
                self._logger.warning(
                    "the export is followed by another process, if at all", problem=str(error)
                )
            await asyncio.sleep(self._export.poll_s)
            with suppress(KeyCacheError):  # what is wrong with the file is said where it is needed
                await cache.load_progress()


def _opened(stack: AsyncExitStack, fetcher: Fetcher) -> Fetcher:
    """Have a fetcher closed with the stack; return it."""
    stack.push_async_callback(fetcher.close)
    return fetcher


def _run(stack: AsyncExitStack, work: Coroutine[object, object, None]) -> None:
    """Run something until the stack is closed."""
    task = asyncio.create_task(work)

    async def end() -> None:
        """Cancel the task, and wait until it has ended."""
        task.cancel()
        await asyncio.wait([task])

    stack.push_async_callback(end)
