"""A PLC directory, and other HTTP servers that answer as a test says, on ports of their own."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from tests.tls import certificate
from tests.unit.identity.accounts import did_of, entry, key_of, operation

from jetstream.limits import KeyLimits
from jetstream.metrics import Metrics

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def http_server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve all paths with one handler; yield the port."""
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def key_requests(metrics: Metrics) -> dict[str, float]:
    """Return how many requests for keys had each result."""
    samples = (sample for family in metrics.registry.collect() for sample in family.samples)
    return {
        sample.labels["result"]: sample.value
        for sample in samples
        if sample.name == "jetstream_key_requests_total" and sample.value
    }


def date_of(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# What a directory or host may do instead of answering


async def forever(_request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def endless(request: web.Request) -> web.StreamResponse:
    """Send 10 GB, if they are read."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(10_000):
        if request.transport is None or request.transport.is_closing():
            break
        await response.write(b'"' + b" " * 1_000_000)
        await asyncio.sleep(0)
    return response


async def big(_request: web.Request) -> web.StreamResponse:
    return web.Response(body=b" " * (KeyLimits().document_bytes_max + 1))


async def bomb(_request: web.Request) -> web.StreamResponse:
    """Send 64 MB in 64 kB."""
    return web.Response(body=gzip.compress(bytes(64 << 20)), headers={"Content-Encoding": "gzip"})


async def drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.01)


async def local(_request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("http://127.0.0.1:1/secret")


def busy_until(text: str) -> Handler:
    """Ask for a pause, with a header Retry-After of a text."""

    async def handler(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": text})

    return handler


busy = busy_until("30")


async def broken(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=500)


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"{")
    assert request.transport is not None
    request.transport.abort()
    return response


def says(body: bytes, status: int = 200) -> Callable[[web.Request], Any]:
    async def handle(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status)

    return handle


class PlcExport:
    """The `/export` of a directory with sequence numbers.

    Operation n, from 1, gives account n the key n; `first_account` is the first of them. Of the requests, the
    first `answered` are answered.
    """

    def __init__(self, operations: int, page: int) -> None:
        self.operations = operations
        self.page = page
        self.first_account = 1
        self.asked: list[str] = []
        self.replies: list[web.Response] = []  # given instead, in order
        self.answered: int | None = None
        self.waiting = asyncio.Event()  # set when a request is not answered

    async def handle(self, request: web.Request) -> web.StreamResponse:
        after = request.query.get("after", "")
        self.asked.append(after)
        if self.replies:
            return self.replies.pop(0)
        if self.answered is not None and len(self.asked) > self.answered:
            self.waiting.set()
            await asyncio.Event().wait()
        first = int(after) + 1
        numbers = range(first, min(first + self.page, self.operations + 1))
        lines = [self.line(number) for number in numbers]
        return web.Response(body=b"\n".join(lines), content_type="application/jsonlines")

    def line(self, number: int) -> bytes:
        account = self.first_account + number - 1
        made = entry(did_of(account), operation(key_of(account % 50)), date_of(1_700_000_000_000 + number))
        return orjson.dumps(made | {"seq": number, "type": "sequenced_op"})


def tls_contexts(directory: Path, host: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the TLS contexts of a server for a host, and of a client that trusts it."""
    pem = certificate(directory, host)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))
