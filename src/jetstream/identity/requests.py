"""Requests for the document of one DID, and for its audit log: where to ask, and when it is their turn.

Directories are asked for a `did:plc`, its own host for a `did:web`. Hosts that somebody else has chosen can
be slow on purpose, so their requests have turns of their own.

Of the requests that wait, each source of messages has one in turn. So an upstream that sends messages of many
accounts that nobody knows does not keep the accounts of another one waiting.

    document, did:plc     turn ──▶ directories, which have a pace of their own
    document, did:web     turn ──▶ pace ──▶ the host of the DID
    audit log             turn ──▶ directories; then the document, where the log does not tell the current key

The caller bounds the time of all of it, turns included (`Resolver`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from jetstream.atproto.compact_did import is_plc
from jetstream.identity.addresses import web_url
from jetstream.identity.directories import Directories, Pace, Sleep
from jetstream.identity.documents import Declared, History, declared, only_key, parse_history, parse_json
from jetstream.identity.failures import LASTING, NoKey
from jetstream.identity.fetch import Fetches, read_body
from jetstream.limits import KeyLimits

# Failures of a directory that is asked for a document in vain as well.
_DOWN: Final = frozenset({"timeout", "unreachable", "tls", "rate_limited"})


class Turns:
    """Lets `count` callers pass at a time. The sources of the others take turns, each in order of arrival.

    The number of callers that wait is bounded by `SharedRequests`, not here.
    """

    def __init__(self, count: int) -> None:
        # How many more may pass. While somebody waits, it is 0.
        self._free = count
        # Who waits, by source. The source that is next is the first. No queue is empty.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, source: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the context lasts."""
        await self._take(source)
        try:
            yield
        finally:
            self._give()

    async def _take(self, source: str) -> None:
        """Take a turn that is free, or wait for one. When cancelled, a turn that had come is passed on."""
        if self._free:
            self._free -= 1
            return
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(source, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                self._leave(source, mine)
            else:
                self._give()  # the turn had come
            raise

    def _leave(self, source: str, mine: asyncio.Future[None]) -> None:
        """Remove a caller that waits no longer from the queue of its source."""
        queue = self._waiting[source]
        queue.remove(mine)  # those that wait too long are the first ones
        if not queue:
            del self._waiting[source]

    def _give(self) -> None:
        """Pass a turn on, to the first of the next source."""
        for source in list(self._waiting):
            queue = self._waiting.pop(source)
            given = _give_one(queue)
            if queue:
                self._waiting[source] = queue  # behind the others
            if given:
                return
        self._free += 1


def _give_one(queue: deque[asyncio.Future[None]]) -> bool:
    """Wake the first that was not cancelled a moment ago, if there is one. It leaves the queue."""
    for future in queue:
        if not future.done():
            future.set_result(None)
            queue.remove(future)
            return True
    return False


class Requests:
    """Makes the requests. Used by the event loop's thread only. `clock` gives monotonic seconds.

    `directories` and `web` raise NoKey for what goes wrong, and so do the methods here. No answer is kept:
    the resolver does that.
    """

    def __init__(
        self,
        directories: Directories,
        web: Fetches,
        limits: KeyLimits,
        clock: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self._directories = directories
        self._web = web
        self._limits = limits
        # Turns for requests: to directories, and to hosts of `did:web`.
        self._turns = Turns(limits.requests_max)
        self._web_turns = Turns(limits.web_requests_max)
        # Hosts of `did:web` are asked more rarely: an account may name one that it wants to be flooded.
        self._web_pace = Pace(limits.web_rate, clock, sleep)
        # Whether audit logs cannot be had, although documents may be: the last request for one has failed,
        # for a reason that is not the account's.
        self.logs_fail = False

    async def history(self, did: str, source: str) -> tuple[History, str]:
        """Return the keys of an account, and why earlier ones may be missing. Raises NoKey.

        The document has the current key where the log does not tell it.
        """
        if not is_plc(did):
            return only_key(*await self.document(did, source)), ""
        try:
            history = await self._log(did, source)
        except NoKey as error:
            if error.reason in _DOWN:
                raise
            # A directory that does not find the log of an account that it has keeps none.
            reason = "" if error.reason == "not_found" else error.reason
            return only_key(*await self.document(did, source)), reason
        if history.is_current:
            return history, ""
        return history.with_current(*await self._current(did, source)), ""

    async def _log(self, did: str, source: str) -> History:
        """Return what the audit log of a `did:plc` says, and note whether logs can be had. Raises NoKey.

        It has half of the time, so that a document can be asked for after it.
        """
        read = partial(_read_history, did)
        size, timeout_s = self._limits.history_bytes_max, self._limits.timeout_s / 2
        try:
            async with self._turns.turn(source):
                history = await self._directories.ask(f"/{did}/log/audit", read, size, timeout_s)
        except NoKey as error:
            if error.reason != "too_big":
                self.logs_fail = error.reason not in LASTING
            raise
        self.logs_fail = False
        return history

    async def _current(self, did: str, source: str) -> Declared:
        """Return what the document says, or that there is nothing. Raises NoKey if that is not known."""
        try:
            return await self.document(did, source)
        except NoKey as error:
            if error.reason not in LASTING:
                raise
            return Declared(None, "")

    async def document(self, did: str, source: str) -> Declared:
        """Return what the document of a DID says, that a message of a source needs. Raises NoKey.

        So it does for a document without a key that can be used (`no_key`, `bad_key`).
        """
        read = partial(_read_document, did)
        if is_plc(did):
            async with self._turns.turn(source):
                return await self._directories.ask(
                    f"/{did}", read, self._limits.document_bytes_max, self._limits.timeout_s
                )
        url = web_url(did)
        async with self._web_turns.turn(source):
            await self._web_pace.wait()
            body = await self._web.get(url, self._limits.document_bytes_max, self._limits.timeout_s)
            return await read_body(read, body)


def _read_document(did: str, body: bytes) -> Declared:
    """Return what the body of a document says. Raises NoKey. May run in a thread."""
    return declared(did, parse_json(body))


def _read_history(did: str, body: bytes) -> History:
    """Return what the body of an audit log says. Raises NoKey. May run in a thread."""
    return parse_history(did, parse_json(body))
