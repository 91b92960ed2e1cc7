"""The HTTP server of a simulated network: firehose, repositories and directory on one port.

`build` makes an application of independent parts; `serving` runs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import WSCloseCode, web

from jetstream.errors import JetstreamError
from jetstream.simulator import xrpc
from jetstream.simulator.firehose import Firehose
from jetstream.simulator.flow_control import FlowControl
from jetstream.simulator.xrpc import XrpcError

SUBSCRIBE: Final = "/xrpc/com.atproto.sync.subscribeRepos"
HOST: Final = "127.0.0.1"
PORT: Final = 7777
_CURSOR_DIGITS_MAX: Final = 16  # 2^53 has no more
_SHUTDOWN_S: Final = 2.0
_CLOSE_S: Final = 1.0  # for a subscriber to answer a close frame
_SOCKETS: Final[web.AppKey[set[web.WebSocketResponse]]] = web.AppKey("sockets")


def build(firehose: Firehose, routes: Iterable[web.RouteDef]) -> web.Application:
    """Return an application that serves the firehose and the other routes."""
    app = web.Application(middlewares=[xrpc.xrpc_errors])
    app[_SOCKETS] = set()
    app.on_shutdown.append(_close_sockets)

    async def subscribe(request: web.Request) -> web.WebSocketResponse:
        return await _subscribe(firehose, request)

    app.add_routes([web.get(SUBSCRIBE, subscribe), *routes])
    return app


@asynccontextmanager
async def serving(app: web.Application, host: str = HOST, port: int = 0) -> AsyncIterator[int]:
    """Serve an application while the block runs, and yield the port; 0 takes a free one.

    Raises JetstreamError if it cannot listen on the port.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        await _listen(runner, host, port)
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        problem = error.strerror or str(error)
        raise JetstreamError(f"cannot listen on {host}:{port}: {problem}") from error


async def _subscribe(firehose: Firehose, request: web.Request) -> web.WebSocketResponse:
    cursor = _cursor(request)
    if firehose.out:
        raise XrpcError(503, "UpstreamFailure", "this relay is out, as the simulator was told")
    ws = web.WebSocketResponse(compress=False, timeout=_CLOSE_S)
    sockets = request.app[_SOCKETS]
    try:
        await ws.prepare(request)
        sockets.add(ws)
        await _exchange(firehose, FlowControl(request), ws, cursor)
    except ConnectionResetError:
        pass  # the subscriber has disconnected
    finally:
        sockets.discard(ws)
    return ws


async def _exchange(
    firehose: Firehose, flow: FlowControl, ws: web.WebSocketResponse, cursor: int | None
) -> None:
    """Feed a subscriber until either side ends the connection. Its messages are read and ignored."""
    feeding = asyncio.create_task(firehose.feed(flow, ws, cursor))
    reading = asyncio.create_task(_read(ws))
    try:
        await asyncio.wait((feeding, reading), return_when=asyncio.FIRST_COMPLETED)
    finally:
        both = feeding, reading
        for task in both:
            task.cancel()
        outcomes = await asyncio.gather(*both, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def _read(ws: web.WebSocketResponse) -> None:
    """Read everything, so that pings and close frames are answered."""
    async for _ in ws:
        pass


async def _close_sockets(app: web.Application) -> None:
    closing = [
        ws.close(code=WSCloseCode.GOING_AWAY, message=b"the simulator is stopping") for ws in app[_SOCKETS]
    ]
    await asyncio.gather(*closing)


def _cursor(request: web.Request) -> int | None:
    text = request.query.get("cursor", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _CURSOR_DIGITS_MAX):
        raise XrpcError(400, "InvalidRequest", f"cursor: {text[:100]!r} is not a sequence number")
    return int(text)
