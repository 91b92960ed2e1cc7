"""The directory of identities: DID documents of `did:plc` and `did:web` accounts, and its faults.

Source: the DID page of the AT Protocol specification; the PLC directory's `GET /<did>`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import orjson
from aiohttp import web

from jetstream.simulator.request_faults import RequestFaults

SLOW_S: Final = 5.0
_TYPE: Final = "application/did+ld+json"

FindDocument = Callable[[str], dict[str, object] | None]
Sleep = Callable[[float], Awaitable[None]]


class Directory:
    """Serves the DID documents that `find` returns."""

    def __init__(self, find: FindDocument, faults: RequestFaults, sleep: Sleep = asyncio.sleep) -> None:
        self._find = find
        self._faults = faults
        self._sleep = sleep  # for the fault `directory_slow`

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to serve."""
        return [
            web.get("/.well-known/did.json", self._serve_web),
            web.get(r"/{did:did:.+}", self._serve_any),
        ]

    async def _serve_any(self, request: web.Request) -> web.Response:
        return await self._respond(request.match_info["did"])

    async def _serve_web(self, request: web.Request) -> web.Response:
        """Serve a `did:web` as its own host would, which the Host header names."""
        return await self._respond(f"did:web:{request.host.partition(':')[0]}")

    async def _respond(self, did: str) -> web.Response:
        faults = self._faults
        if faults.occurs("directory_slow", did=did):
            await self._sleep(SLOW_S)
        if faults.occurs("directory_429", did=did):
            return web.json_response(
                {"message": "Too Many Requests"}, status=429, headers={"Retry-After": "1"}
            )
        if faults.occurs("directory_500", did=did):
            return web.json_response({"message": "Internal Server Error"}, status=500)
        document = None if faults.occurs("directory_404", did=did) else self._find(did)
        if document is None:
            return web.json_response({"message": f"DID not registered: {did}"}, status=404)
        return web.Response(body=orjson.dumps(document), content_type=_TYPE)
