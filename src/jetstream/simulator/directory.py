"""The directory of identities: documents of `did:plc` and `did:web` accounts, the log, and their faults.

Source: the DID page of the AT Protocol specification; the server of the PLC directory for `GET /<did>`,
`GET /<did>/log/audit` and `GET /export`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import orjson
from aiohttp import web

from jetstream.simulator.identities import Entry, OperationLog, parse_time_us
from jetstream.simulator.request_faults import RequestFaults

SLOW_S: Final = 5.0
EXPORT_MAX: Final = 1000  # operations in one response, also where more are asked for
_TYPE: Final = "application/did+ld+json"
_DIGITS_MAX: Final = 16

FindDocument = Callable[[str], dict[str, object] | None]
Sleep = Callable[[float], Awaitable[None]]


class Directory:
    """Serves the DID documents that `find` returns, and a log of operations if there is one."""

    def __init__(
        self,
        find: FindDocument,
        faults: RequestFaults,
        sleep: Sleep = asyncio.sleep,
        *,
        log: OperationLog | None = None,
    ) -> None:
        self._find = find
        self._faults = faults
        self._sleep = sleep  # for the fault `directory_slow`
        self._log = log

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to serve."""
        log = [web.get("/export", self._export), web.get(r"/{did:did:[^/]+}/log/audit", self._audit)]
        documents = [
            web.get("/.well-known/did.json", self._serve_web),
            web.get(r"/{did:did:.+}", self._serve_any),
        ]
        return documents if self._log is None else [*log, *documents]

    async def _serve_any(self, request: web.Request) -> web.Response:
        return await self._respond(request.match_info["did"])

    async def _serve_web(self, request: web.Request) -> web.Response:
        """Serve a `did:web` as its own host would, which the Host header names."""
        return await self._respond(f"did:web:{request.host.partition(':')[0]}")

    async def _respond(self, did: str) -> web.Response:
        failed = await self._failure(did=did)
        if failed is not None:
            return failed
        document = None if self._faults.occurs("directory_404", did=did) else self._find(did)
        if document is None:
            return _not_registered(did)
        return web.Response(body=orjson.dumps(document), content_type=_TYPE)

    async def _audit(self, request: web.Request) -> web.Response:
        assert self._log is not None, "only a directory with a log has this route"
        did = request.match_info["did"]
        failed = await self._failure(did=did)
        if failed is not None:
            return failed
        missing = self._faults.occurs("directory_404", did=did)
        operations = [] if missing else self._log.audit(did)
        return web.json_response(operations) if operations else _not_registered(did)

    async def _export(self, request: web.Request) -> web.Response:
        """Send a page of the log, the oldest first: after a time; or after a number, with numbers."""
        assert self._log is not None, "only a directory with a log has this route"
        failed = await self._failure(path="/export")
        if failed is not None:
            return failed
        try:
            count = _count(request.query.get("count", ""))
            after = request.query.get("after", "")
            numbered = after.isascii() and after.isdigit()
            entries = _after(self._log, after, count)
        except ValueError as error:
            return web.json_response({"message": str(error)}, status=400)
        lines = [orjson.dumps(entry.numbered() if numbered else entry.json) for entry in entries]
        return web.Response(body=b"\n".join(lines), content_type="application/jsonlines")

    async def _failure(self, **details: object) -> web.Response | None:
        """Return the response of a fault that any request can have, after the pause of `directory_slow`."""
        faults = self._faults
        if faults.occurs("directory_slow", **details):
            await self._sleep(SLOW_S)
        if faults.occurs("directory_429", **details):
            return web.json_response(
                {"message": "Too Many Requests"}, status=429, headers={"Retry-After": "1"}
            )
        if faults.occurs("directory_500", **details):
            return web.json_response({"message": "Internal Server Error"}, status=500)
        return None


def _after(log: OperationLog, after: str, count: int) -> list[Entry]:
    """Return the operations after a number or a time. Raises ValueError for any other text."""
    if after.isascii() and after.isdigit() and len(after) <= _DIGITS_MAX:
        return log.after_seq(int(after), count)
    if not after:
        return log.after_seq(0, count)
    try:
        return log.after_time(parse_time_us(after), count)
    except ValueError:
        raise ValueError("Invalid after parameter") from None


def _count(text: str) -> int:
    """Return the number of operations that `count=` asks for. Raises ValueError."""
    if not text:
        return EXPORT_MAX
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX and int(text)):
        raise ValueError("Invalid count parameter")
    return min(int(text), EXPORT_MAX)


def _not_registered(did: str) -> web.Response:
    return web.json_response({"message": f"DID not registered: {did}"}, status=404)
