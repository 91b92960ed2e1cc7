"""A DID to the key that its commits must be signed with.

    cached     at once: memory has it. The way of nearly every commit
    load       before: from the file into memory, for many accounts with one query
    resolve    memory, the file, then a request; never raises, and ends in time
    keys_at    after a signature that the key does not fit: a refresh, and the account's earlier keys
    pds        the host of the account's PDS, at once if memory has it
    find_pds   the same as `resolve` does it; and after a message from another host: a refresh

A key that is old, or whose account has announced a change, is used until a refresh in the background has
brought the next one. Requests for one DID are shared, and follow each other after a minute at the earliest.

`source` is the name of the upstream whose message needs the answer. Upstreams take turns in making requests
(see `requests`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import structlog

from jetstream.atproto.compact_did import is_plc
from jetstream.atproto.encoded_key import EncodedKey
from jetstream.identity.addresses import is_resolvable
from jetstream.identity.answers import JUST_ASKED, UNREADABLE, Answer, Candidates
from jetstream.identity.cache import KeyCache
from jetstream.identity.directories import Directories, Sleep
from jetstream.identity.documents import NO_HISTORY, History
from jetstream.identity.failures import LASTING, NoKey
from jetstream.identity.fetch import Fetches
from jetstream.identity.generations import Generations
from jetstream.identity.held import Held
from jetstream.identity.requests import Requests
from jetstream.identity.shared_requests import Fetch, SharedRequests
from jetstream.limits import KeyLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import KeyMetrics

logger = structlog.get_logger(__name__)


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
        self._requests = Requests(directories, web, limits, clock, sleep)
        self._metrics = metrics
        self._limits = limits
        self._clock = clock
        self._now = now
        self._logger = Throttled(logger)
        # Requests that run or wait: "key" and "history" of a DID.
        self._shared = SharedRequests(self._run, metrics, limits.waiting_max)
        self._refreshing = 0  # of these, those in the background
        # Accounts that have announced a change since their key was asked for last, and when.
        self._announced: Generations[str, float] = Generations(limits.notes_max)
        # What is not asked again for a while: DIDs without a key, and the time of each refresh.
        self._failures: Generations[str, _Failure] = Generations(limits.notes_max)
        self._refreshed: Generations[str, float] = Generations(limits.notes_max)
        # The keys of accounts that a signature did not fit.
        self._pasts: Generations[str, _Past] = Generations(limits.histories_max)

    def statistics(self) -> Statistics:
        """Return what the resolver is busy with."""
        return Statistics(len(self._cache), len(self._shared))

    async def close(self) -> None:
        """End all requests. Those that wait for them get an answer without a key."""
        await self._shared.close()

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

    async def resolve(self, did: str, source: str = "") -> Answer:
        """Return the key of a DID, within `read_s` and `timeout_s`."""
        if not is_resolvable(did):
            self._metrics.requests["method"].inc()
            return Answer(None, "method")
        if (known := self._known(did)) is None:
            await self._cache.load([did])
            known = self._known(did)
        if known is not None:
            return known
        reason = await self._shared.share("key", did, self._fetch_key, source)
        return self._answer(did, reason)

    def pds(self, did: str) -> str | None:
        """Return the host of an account's PDS that memory has: empty, if there is none. None: not known.

        If it is due, a refresh begins in the background.
        """
        self.cached(did)
        held = self._cache.get(did)
        return None if held is None else held.pds

    async def find_pds(self, did: str, source: str = "", *, refresh: bool = False) -> Answer:
        """Return the PDS and the key of a DID, within `read_s` and `timeout_s`.

        With `refresh`, its document is fetched even if it is known, unless that was done within the last
        minute; after `announced`, within the last `announced_min_s`. A message from another host than the
        known one may be the first after a move. If it cannot be fetched, what is known is returned, with the
        reason.
        """
        if not is_resolvable(did):
            return Answer(None, "method")
        await self._cache.load([did])
        held = self._cache.get(did)
        refreshed = self._refreshed.get(did)
        may_ask = refreshed is None or self._clock() - refreshed >= self._pause_s(did)
        reason = ""
        if held is None or held.pds is None or (refresh and may_ask):
            reason = self._failed_lately(did) or await self._shared.share("key", did, self._fetch_key, source)
        return self._answer(did, reason)

    def announced(self, did: str) -> None:
        """Note that an account may have changed its key (`#identity`). It is fetched when it is used."""
        if is_resolvable(did):
            self._announced.put(did, self._clock())
            self._forget_failure(did)

    def _forget_failure(self, did: str) -> None:
        """Let a request that has failed be made again, as soon as after any announcement."""
        failure, refreshed = self._failures.get(did), self._refreshed.get(did)
        if failure is not None and refreshed is not None:
            soon = refreshed + self._limits.announced_min_s
            self._failures.put(did, failure._replace(until=min(failure.until, soon)))
        else:
            self._failures.pop(did)

    async def keys_at(self, did: str, time_us: int, source: str = "") -> Candidates:
        """Return the keys that were valid at a time, for a signature that the cached key does not fit.

        The directory is asked at most once a minute for each DID. What it says is also the new cached key.
        """
        if not is_resolvable(did):
            return Candidates([], "method")
        past = self._pasts.get(did)
        if past is None or self._clock() - past.at >= self._pause_s(did):
            past = await self._new_past(did, source)
        keys = past.history.keys_at(time_us, self._limits.history_slack_us)
        return Candidates(keys, past.reason or self._doubt(did, past.history, time_us))

    def _doubt(self, did: str, history: History, time_us: int) -> str:
        """Return why a key may be missing in what the directory has said; empty: none is."""
        if did in self._announced:
            return JUST_ASKED
        return "" if history.is_whole_at(time_us, self._limits.history_slack_us) else UNREADABLE

    @property
    def logs_fail(self) -> bool:
        """Whether audit logs cannot be had, although documents may be."""
        return self._requests.logs_fail

    def known_at(self, did: str, time_us: int) -> list[EncodedKey]:
        """Return what `keys_at` has found out about a time before; nothing, if it was not asked lately."""
        past = self._pasts.get(did)
        return [] if past is None else past.history.keys_at(time_us, self._limits.history_slack_us)

    async def _new_past(self, did: str, source: str) -> _Past:
        """Fetch the keys of an account. If that fails, those of the last time are kept, with the reason."""
        asked_at = self._clock()
        reason = await self._shared.share("history", did, self._fetch_past, source)
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
        key = self.cached(did)
        held = self._cache.get(did)
        if key is not None and held is not None:
            return Answer(key, "", held.pds)
        if held is not None and not self._due(did, held):
            return Answer(None, "no_key", held.pds)  # the export says so
        reason = self._failed_lately(did)
        return Answer(None, reason) if reason else None

    def _failed_lately(self, did: str) -> str:
        """Return why the last request has failed, as long as that is remembered; empty: it has not."""
        failure = self._failures.get(did)
        return failure.reason if failure is not None and self._clock() < failure.until else ""

    def _answer(self, did: str, reason: str) -> Answer:
        """Return what is known after a request, which has failed for a `reason` if there is one."""
        held = self._cache.get(did)
        return Answer(None, reason or "no_key") if held is None else Answer(held.key, reason, held.pds)

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
        if self._refreshing >= self._limits.refreshes_max or ("key", did) in self._shared:
            return
        self._refreshing += 1
        self._metrics.refreshes[cause].inc()
        self._shared.start("key", did, self._fetch_key, "").add_done_callback(self._refresh_done)

    def _refresh_done(self, _task: object) -> None:
        self._refreshing -= 1

    async def _run(self, did: str, fetch: Fetch, source: str) -> str:
        """Make a request. Return why it failed, or nothing.

        Any account can choose what its host answers. So an error of the server itself is of this request
        only, whatever it is.
        """
        began = self._clock()
        self._refreshed.put(did, began)
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await fetch(did, source)
            reason = ""
            self._note_answer(did, began)
        except TimeoutError:
            reason = self._failed(did, NoKey("timeout"))
        except NoKey as error:
            reason = self._failed(did, error)
        except Exception:
            self._logger.exception("keys: an error of the server itself, no key is had", did=did)
            reason = self._failed(did, NoKey("internal"))
        self._metrics.requests[reason or "ok"].inc()
        self._metrics.seconds.observe(self._clock() - began)
        return reason

    def _note_answer(self, did: str, began: float) -> None:
        """Note an answer to a request that began at a time: it has what was announced before that."""
        announced = self._announced.get(did)
        if announced is not None and announced <= began:
            self._announced.pop(did)

    def _failed(self, did: str, error: NoKey) -> str:
        lasting = error.reason in LASTING
        kept_s = self._limits.negative_s if lasting else max(self._limits.failure_s, error.retry_after)
        self._failures.put(did, _Failure(error.reason, self._clock() + kept_s))
        if lasting and self._cache.get(did) is not None:
            self._cache.forget(did)
        return error.reason

    async def _fetch_key(self, did: str, source: str) -> None:
        self._took(did, *await self._requests.document(did, source))

    async def _fetch_past(self, did: str, source: str) -> None:
        """Fetch the keys of an account. Where there is no audit log, its document has the current one."""
        history, reason = await self._requests.history(did, source)
        self._pasts.put(did, _Past(history, self._clock(), reason))
        if history.current is None:
            raise NoKey("no_key", "its last operation has none")
        self._took(did, history.current, history.pds)

    def _took(self, did: str, key: EncodedKey | None, pds: str) -> None:
        self._cache.put(did, key, pds)
        self._failures.pop(did)
