"""Requests for the document of one DID, and for its audit log: where to ask, and when it is their turn.

Directories are asked for a `did:plc`, its own host for a `did:web`. Hosts that somebody else has chosen can
be slow on purpose, so their requests have turns of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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


class Requests:
    """Used by the event loop's thread only. `clock` gives monotonic seconds."""

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
        self._turns = asyncio.Semaphore(limits.requests_max)
        self._web_turns = asyncio.Semaphore(limits.web_requests_max)
        self._web_pace = Pace(limits.web_rate, clock, sleep)
        # Whether audit logs cannot be had, although documents may be: the last request for one has failed,
        # for a reason that is not the account's.
        self.logs_fail = False

    async def history(self, did: str) -> tuple[History, str]:
        """Return the keys of an account, and why earlier ones may be missing. Raises NoKey.

        The document has the current key where the log does not tell it.
        """
        if not is_plc(did):
            return only_key(*await self.document(did)), ""
        try:
            history = await self._log(did)
        except NoKey as error:
            if error.reason in _DOWN:
                raise
            # A directory that does not find the log of an account that it has keeps none.
            reason = "" if error.reason == "not_found" else error.reason
            return only_key(*await self.document(did)), reason
        return history if history.is_current else history.with_current(*await self._current(did)), ""

    async def _log(self, did: str) -> History:
        read = partial(_read_history, did)
        size, timeout_s = self._limits.history_bytes_max, self._limits.timeout_s / 2
        try:
            async with self._turns:
                history = await self._directories.ask(f"/{did}/log/audit", read, size, timeout_s)
        except NoKey as error:
            if error.reason != "too_big":
                self.logs_fail = error.reason not in LASTING
            raise
        self.logs_fail = False
        return history

    async def _current(self, did: str) -> Declared:
        """Return what the document says, or that there is nothing. Raises NoKey if that is not known."""
        try:
            return await self.document(did)
        except NoKey as error:
            if error.reason not in LASTING:
                raise
            return Declared(None, "")

    async def document(self, did: str) -> Declared:
        """Return what the document of a DID says. Raises NoKey."""
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


def _read_document(did: str, body: bytes) -> Declared:
    return declared(did, parse_json(body))


def _read_history(did: str, body: bytes) -> History:
    return parse_history(did, parse_json(body))
