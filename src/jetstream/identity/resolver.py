"""A DID to the key that its commits must be signed with.

    cached     at once: memory has it. The way of nearly every commit
    load       before: from the file into memory, for many accounts with one query
    resolve    memory, the file, then a request; never raises, and ends in time
    keys_at    after a signature that the key does not fit: a refresh, and the account's earlier keys

A key that is old, or whose account has announced a change, is used until a refresh in the background has
brought the next one. Requests for one DID are shared, and follow each other after a minute at the earliest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import NamedTuple

from jetstream.atproto.compact_did import is_plc
from jetstream.atproto.encoded_key import EncodedKey
from jetstream.identity.addresses import is_resolvable, web_url
from jetstream.identity.cache import KeyCache
from jetstream.identity.directories import Directories, Pace, Sleep
from jetstream.identity.documents import (
    NO_HISTORY,
    History,
    document_key,
    only_key,
    parse_history,
    parse_json,
)
from jetstream.identity.failures import LASTING, NoKey
from jetstream.identity.fetch import Fetches, read_body
from jetstream.identity.generations import Generations
from jetstream.identity.held import Held
from jetstream.limits import KeyLimits
from jetstream.metrics import KeyMetrics


class Answer(NamedTuple):
    """The key of a DID, or why there is none."""

    key: EncodedKey | None
    reason: str  # of `KEY_FAILURES`; empty: there is a key


class Candidates(NamedTuple):
    """The keys that were valid at a time, the newest first."""

    keys: list[EncodedKey]
    # Of `KEY_FAILURES`; empty: these are all. Else a key may be missing, so a signature that fits none of
    # them may still be genuine.
    reason: str


class _Failure(NamedTuple):
    """A request that has failed, and until when that is remembered, in seconds of the resolver's clock."""

    reason: str
    until: float


class _Past(NamedTuple):
    """The keys of an account, when they were asked for, and why they may be incomplete."""

    history: History
    at: float
    reason: str


class Statistics(NamedTuple):
    """What the resolver is busy with."""

    in_memory: int  # accounts
    waiting: int  # requests that run, or wait for their turn


class Resolver:
    """Used by the event loop's thread only. `clock` gives monotonic seconds, `now` unix seconds."""

    def __init__(
        self,
        cache: KeyCache,
        directories: Directories,
        web: Fetches,
        metrics: KeyMetrics,
        limits: KeyLimits = KeyLimits(),
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._cache = cache
        self._directories = directories
        self._web = web
        self._metrics = metrics
        self._limits = limits
        self._clock = clock
        self._now = now
        # Turns for requests: to directories, and to hosts of `did:web`.
        self._turns = asyncio.Semaphore(limits.requests_max)
        self._web_turns = asyncio.Semaphore(limits.web_requests_max)
        self._web_pace = Pace(limits.web_rate, clock, sleep)
        # Requests that run or wait, by what they ask for and the DID.
        self._running: dict[tuple[str, str], asyncio.Task[str]] = {}
        self._refreshing = 0  # of these, those in the background
        # Accounts that have announced a change since their key was fetched.
        self._announced: Generations[str, bool] = Generations(limits.notes_max)
        # What is not asked again for a while: DIDs without a key, and the time of each refresh.
        self._failures: Generations[str, _Failure] = Generations(limits.notes_max)
        self._refreshed: Generations[str, float] = Generations(limits.notes_max)
        # The keys of accounts that a signature did not fit.
        self._pasts: Generations[str, _Past] = Generations(limits.histories_max)

    def statistics(self) -> Statistics:
        """Return what the resolver is busy with."""
        return Statistics(len(self._cache), len(self._running))

    async def close(self) -> None:
        """End all requests. Those that wait for them get an answer without a key."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def cached(self, did: str) -> EncodedKey | None:
        """Return the key that memory has. If it is due, a refresh begins in the background."""
        held = self._cache.get(did)
        if held is None or held.key is None:
            return None
        if cause := self._due(did, held):
            self._refresh(did, cause)
        return held.key

    async def load(self, dids: Iterable[str]) -> None:
        """Read from the file what it has of accounts, so that `cached` has it."""
        await self._cache.load(dids)

    async def resolve(self, did: str) -> Answer:
        """Return the key of a DID, within `read_s` and `timeout_s`."""
        if not is_resolvable(did):
            self._metrics.requests["method"].inc()
            return Answer(None, "method")
        if (known := self._known(did)) is None:
            await self._cache.load([did])
            known = self._known(did)
        if known is not None:
            return known
        reason = await self._share("key", did, self._fetch_key)
        held = None if reason else self._cache.get(did)
        return Answer(None, reason or "no_key") if held is None else Answer(held.key, reason)

    def announced(self, did: str) -> None:
        """Note that an account may have changed its key (`#identity`). It is fetched when it is used."""
        if is_resolvable(did):
            self._announced.put(did, True)
            self._failures.pop(did)

    async def keys_at(self, did: str, time_us: int) -> Candidates:
        """Return the keys that were valid at a time, for a signature that the cached key does not fit.

        The directory is asked at most once a minute for each DID. What it says is also the new cached key.
        """
        if not is_resolvable(did):
            return Candidates([], "method")
        past = self._pasts.get(did)
        if past is None or self._clock() - past.at >= self._pause_s(did):
            past = await self._new_past(did)
        keys = past.history.keys_at(time_us, self._limits.history_slack_us)
        return Candidates(keys, past.reason or ("rate_limited" if did in self._announced else ""))

    async def _new_past(self, did: str) -> _Past:
        """Fetch the keys of an account. If that fails, those of the last time are kept, with the reason."""
        asked_at = self._clock()
        reason = await self._share("history", did, self._fetch_past)
        past = self._pasts.get(did)
        if past is None or past.at < asked_at:
            past = _Past(NO_HISTORY if past is None else past.history, asked_at, reason)
            self._pasts.put(did, past)
        return past

    def _pause_s(self, did: str) -> float:
        """Return how long the last request for a DID must be over."""
        limits = self._limits
        return limits.announced_min_s if did in self._announced else limits.refresh_min_s

    # --- what is known ---

    def _known(self, did: str) -> Answer | None:
        """Return the answer that needs no request."""
        if (key := self.cached(did)) is not None:
            return Answer(key, "")
        held = self._cache.get(did)
        if held is not None and not self._due(did, held):
            return Answer(None, "no_key")  # the export says so
        failure = self._failures.get(did)
        return Answer(None, failure.reason) if failure is not None and self._clock() < failure.until else None

    def _due(self, did: str, held: Held) -> str:
        """Return why a key must be refreshed; empty: it need not be, or was a moment ago."""
        cause = "announced" if did in self._announced else "age" if self._is_old(did, held) else ""
        refreshed = self._refreshed.get(did) if cause else None
        if refreshed is not None and self._clock() - refreshed < self._pause_s(did):
            return ""
        return cause

    def _is_old(self, did: str, held: Held) -> bool:
        oldest = self._now() - self._limits.lifetime_s
        # The export has every operation of a `did:plc` until `complete_s`.
        return held.at_s < oldest and not (is_plc(did) and self._cache.progress.complete_s >= oldest)

    # --- requests ---

    def _refresh(self, did: str, cause: str) -> None:
        """Begin to refresh a key in the background, unless enough are being refreshed already."""
        if self._refreshing >= self._limits.refreshes_max or ("key", did) in self._running:
            return
        self._refreshing += 1
        self._metrics.refreshes[cause].inc()
        self._start("key", did, self._fetch_key).add_done_callback(self._refresh_done)

    def _refresh_done(self, _task: object) -> None:
        self._refreshing -= 1

    async def _share(self, kind: str, did: str, fetch: Callable[[str], Awaitable[None]]) -> str:
        """Wait for a request, the one that runs already or a new one. Return why it failed, or nothing."""
        task = self._running.get((kind, did))
        if task is None:
            if len(self._running) >= self._limits.waiting_max:
                self._metrics.requests["overload"].inc()
                return "overload"
            task = self._start(kind, did, fetch)
        await asyncio.wait([task])  # a caller that is cancelled does not end it for the others
        return "unreachable" if task.cancelled() else task.result()

    def _start(self, kind: str, did: str, fetch: Callable[[str], Awaitable[None]]) -> asyncio.Task[str]:
        task = asyncio.create_task(self._run(did, fetch))
        self._running[kind, did] = task
        task.add_done_callback(lambda _: self._running.pop((kind, did), None))
        return task

    async def _run(self, did: str, fetch: Callable[[str], Awaitable[None]]) -> str:
        """Make a request. Return why it failed, or nothing."""
        began = self._clock()
        self._refreshed.put(did, began)
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await fetch(did)
            reason = ""
        except TimeoutError:
            reason = self._failed(did, NoKey("timeout"))
        except NoKey as error:
            reason = self._failed(did, error)
        self._metrics.requests[reason or "ok"].inc()
        self._metrics.seconds.observe(self._clock() - began)
        return reason

    def _failed(self, did: str, error: NoKey) -> str:
        lasting = error.reason in LASTING
        kept_s = self._limits.negative_s if lasting else max(self._limits.failure_s, error.retry_after)
        self._failures.put(did, _Failure(error.reason, self._clock() + kept_s))
        if lasting and self._cache.get(did) is not None:
            self._cache.forget(did)
        return error.reason

    async def _fetch_key(self, did: str) -> None:
        self._took(did, await self._document(did))

    async def _fetch_past(self, did: str) -> None:
        """Fetch the keys of an account. Where there is no audit log, its document has the current one."""
        history, reason = await self._history(did)
        self._pasts.put(did, _Past(history, self._clock(), reason))
        if history.current is None:
            raise NoKey("no_key", "its last operation has none")
        self._took(did, history.current)

    def _took(self, did: str, key: EncodedKey) -> None:
        self._cache.put(did, key)
        self._announced.pop(did)
        self._failures.pop(did)

    async def _history(self, did: str) -> tuple[History, str]:
        """Return the keys of an account, and why earlier ones may be missing."""
        reason = ""
        if is_plc(did):
            try:
                async with self._turns:
                    read = partial(_read_history, did)
                    size, timeout_s = self._limits.history_bytes_max, self._limits.timeout_s / 2
                    return await self._directories.ask(f"/{did}/log/audit", read, size, timeout_s), ""
            except NoKey as error:
                if error.reason not in {"not_found", "status", "too_big"}:
                    raise
                if error.reason != "not_found":  # else this directory has no audit logs
                    reason = error.reason
        return only_key(await self._document(did)), reason

    async def _document(self, did: str) -> EncodedKey:
        read = partial(_read_document, did)
        if is_plc(did):
            async with self._turns:
                return await self._directories.ask(
                    f"/{did}", read, self._limits.document_bytes_max, self._limits.timeout_s
                )
        url = web_url(did)
        async with self._web_turns:
            await self._web_pace.wait()
            body = await self._web.get(url, self._limits.document_bytes_max, self._limits.timeout_s)
            return await read_body(read, body)


def _read_document(did: str, body: bytes) -> EncodedKey:
    return document_key(did, parse_json(body))


def _read_history(did: str, body: bytes) -> History:
    return parse_history(did, parse_json(body))
