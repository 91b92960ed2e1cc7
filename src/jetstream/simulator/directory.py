"""The directory of identities: DID documents for `did:plc` and `did:web`, with its bad days.

Source: the DID page of the ATProto specification; the PLC directory's `GET /<did>`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import orjson
from aiohttp import web

from jetstream.simulator.mishaps import Mishaps

SLOW_S: Final = 5.0
_TYPE: Final = "application/did+ld+json"

FindDocument = Callable[[str], dict[str, object] | None]


class Directory:
    """Answers who a DID is."""

    def __init__(self, find: FindDocument, mishaps: Mishaps) -> None:
        self._find = find
        self._mishaps = mishaps

    def routes(self) -> list[web.RouteDef]:
        """List what to serve, and where."""
        return [
            web.get("/.well-known/did.json", self._serve_web),
            web.get(r"/{did:did:.+}", self._serve_any),
        ]

    _wait = staticmethod(asyncio.sleep)

    async def _serve_any(self, request: web.Request) -> web.Response:
        return await self._answer(request.match_info["did"])

    async def _serve_web(self, request: web.Request) -> web.Response:
        """Serve a `did:web` as its own host would, told by the Host header."""
        return await self._answer(f"did:web:{request.host.partition(':')[0]}")

    async def _answer(self, did: str) -> web.Response:
        mishaps = self._mishaps
        if mishaps.happens("directory_slow", did=did):
            await self._wait(SLOW_S)
        if mishaps.happens("directory_429", did=did):
            return web.json_response(
                {"message": "Too Many Requests"}, status=429, headers={"Retry-After": "1"}
            )
        if mishaps.happens("directory_500", did=did):
            return web.json_response({"message": "Internal Server Error"}, status=500)
        document = None if mishaps.happens("directory_404", did=did) else self._find(did)
        if document is None:
            return web.json_response({"message": f"DID not registered: {did}"}, status=404)
        return web.Response(body=orjson.dumps(document), content_type=_TYPE)
