"""Requests for the document of one DID, and for its audit log: where to ask, and when it is their turn.

Directories are asked for a `did:plc`, its own host for a `did:web`. Hosts that somebody else has chosen can
be slow on purpose, so their requests have turns of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from jetstream.atproto.compact_did import is_plc
from jetstream.identity.addresses import web_url
from jetstream.identity.directories import Directories, Pace, Sleep
from jetstream.identity.documents import Declared, History, declared, only_key, parse_history, parse_json
from jetstream.identity.failures import NoKey
from jetstream.identity.fetch import Fetches, read_body
from jetstream.limits import KeyLimits


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

    async def history(self, did: str) -> tuple[History, str]:
        """Return the keys of an account, and why earlier ones may be missing. Raises NoKey."""
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
        return only_key(*await self.document(did)), reason

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
