"""`/subscribe`: a WebSocket as a subscriber of the hub."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

import structlog
from aiohttp import WSMsgType, web
from aiohttp.http import WebSocketError

from jetstream.errors import InvalidParameter
from jetstream.hub.hub import Hub
from jetstream.hub.subscriber import Close, Options, Subscriber
from jetstream.hub.wires import Wire, close_frame
from jetstream.log import Log
from jetstream.metrics import Metrics
from jetstream.turns import Line
from jetstream.web.parameters import UPDATE_BYTES_MAX, NotJson, Subscription, parse_message, parse_query

HELLO_TIMEOUT_S: Final = 60.0
CLOSE_TIMEOUT_S: Final = 3.0  # for the other side to answer a close frame
RETRY_AFTER_S: Final = 10
FAREWELLS_PER_TURN: Final = 32  # of thousands whom a network loses at once: a millisecond

SHUTDOWN: Final = Close(1001, "shutdown", "the server is shutting down: connect again")
FAILED: Final = Close(1011, "error", "the server has failed and is going down: connect again later")
NO_HELLO: Final = Close(
    1008, "no_hello", f"no options_update within {HELLO_TIMEOUT_S:.0f} s, though requireHello"
)
# aiohttp ends a connection by itself for what breaks the protocol; it gives the code, the words are ours.
_PROTOCOL: Final = {
    1002: Close(1002, "protocol", "not the WebSocket protocol"),
    1007: Close(1007, "bad_json", "a text message is not UTF-8"),
    1009: Close(1009, "message_too_big", f"a message is longer than {UPDATE_BYTES_MAX} bytes"),
}

log = structlog.get_logger(__name__)


class Subscribe:
    """The handlers of all wires' routes, which share the limit of connections."""

    def __init__(
        self,
        hub: Hub,
        events: Log,
        metrics: Metrics,
        *,
        buffer_bytes: int,
        subscribers_max: int,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
    ) -> None:
        self._hub = hub
        self._log = events
        self._metrics = metrics
        self._buffer_bytes = buffer_bytes
        self._subscribers_max = subscribers_max
        self._hello_timeout_s = hello_timeout_s
        self._sinks: dict[SocketSink, None] = {}
        self._farewells = Line(FAREWELLS_PER_TURN)
        self._empty = asyncio.Event()
        self._empty.set()
        self._last_word: Close | None = None

    def __len__(self) -> int:
        """How many are connected, those who have yet to say hello among them."""
        return len(self._sinks)

    def on(self, wire: Wire) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return the handler of one wire."""
        return partial(self._handle, wire)

    async def _handle(self, wire: Wire, request: web.Request) -> web.StreamResponse:
        """Check everything, upgrade, and serve until either side ends it."""
        refusal, subscription = self._check(request)
        if refusal is not None:
            self._metrics.refusals.inc()
            return refusal
        assert subscription is not None
        socket = _Socket(self._farewells)
        try:
            await socket.prepare(request)
        except ConnectionError:
            return web.Response()  # for nobody: the client was gone before it was greeted
        if request.transport is None:
            return socket
        sink = SocketSink(request, socket, self._buffer_bytes)
        self._add(sink)
        try:
            await self._serve(wire, socket, sink, subscription)
        finally:
            sink.ended(self._metrics)
            self._remove(sink)
        return socket

    def close_all(self, close: Close) -> None:
        """End every connection, those without a hello too, and let none begin."""
        self._last_word = close
        for sink in list(self._sinks):
            sink.close(close)

    async def wait_empty(self) -> None:
        """Return once there is no connection."""
        await self._empty.wait()

    def _add(self, sink: SocketSink) -> None:
        self._sinks[sink] = None
        self._empty.clear()
        if self._last_word is not None:
            sink.close(self._last_word)

    def _remove(self, sink: SocketSink) -> None:
        del self._sinks[sink]
        if not self._sinks:
            self._empty.set()

    def _check(self, request: web.Request) -> tuple[web.Response | None, Subscription | None]:
        try:
            subscription = parse_query(request.query, request.headers)
        except InvalidParameter as error:
            return web.Response(status=400, text=f"{error}\n"), None
        if not web.WebSocketResponse().can_prepare(request):
            text = f"{request.path} is a WebSocket: connect to ws://{request.host}{request.path}\n"
            return web.Response(status=426, text=text, headers={"Upgrade": "websocket"}), None
        if len(self) >= self._subscribers_max:
            text = (
                f"{self._subscribers_max} subscribers are connected, and that is the limit: try again later\n"
            )
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            return web.Response(status=503, text=text, headers=headers), None
        return None, subscription

    async def _serve(self, wire: Wire, socket: _Socket, sink: SocketSink, subscription: Subscription) -> None:
        if not subscription.require_hello:
            await self._receive(socket, sink, self._begin(wire, sink, subscription, subscription.options))
            return
        loop = asyncio.get_running_loop()
        timeout = loop.call_later(self._hello_timeout_s, sink.close, NO_HELLO)
        try:
            options = await _next_options(socket, sink)
        finally:
            timeout.cancel()
        if options is not None:
            await self._receive(socket, sink, self._begin(wire, sink, subscription, options))

    def _begin(
        self, wire: Wire, sink: SocketSink, subscription: Subscription, options: Options
    ) -> Subscriber:
        lane, cursor = self._hub.lane(), subscription.cursor
        # A cursor beyond the tip is the tip's, not the lane's: another lane may have sent what is below it.
        position = lane.position if cursor is None else min(cursor, self._log.tip + 1)
        position = max(position, self._log.floor)
        subscriber = Subscriber(sink, wire, options, lane, position, asyncio.get_running_loop().time())
        self._hub.add(subscriber)
        return subscriber

    async def _receive(self, socket: _Socket, sink: SocketSink, subscriber: Subscriber) -> None:
        try:
            while (options := await _next_options(socket, sink)) is not None:
                await asyncio.sleep(0)  # ten thousand DIDs take one turn to read, and another to index
                self._hub.change(subscriber, options)
        finally:
            self._hub.remove(subscriber)


async def _next_options(socket: _Socket, sink: SocketSink) -> Options | None:
    """Wait for a client's next options; None when the connection is over."""
    async for message in socket:
        if message.type == WSMsgType.TEXT or message.type == WSMsgType.BINARY:
            if len(message.data) > UPDATE_BYTES_MAX:
                sink.close(_PROTOCOL[1009])
                continue
            try:
                options = parse_message(message.data)
            except NotJson as error:
                sink.close(Close(1007, "bad_json", f"a message is not JSON: {error}"))
            except InvalidParameter as error:
                sink.close(Close(1008, "bad_options", str(error)))
            else:
                if options is not None and not sink.closing:
                    return options
        elif message.type == WSMsgType.ERROR and isinstance(message.data, WebSocketError):
            sink.failed(message.data.code)
    return None


class _Socket(web.WebSocketResponse):
    """A WebSocket without aiohttp's heartbeat, which would cut slow readers, and with words to each close.

    Those whose connection is lost wait in line before aiohttp says goodbye to them, which takes it a while.
    """

    def __init__(self, farewells: Line) -> None:
        # Twice the limit: what is only somewhat too long is refused by us, with a reason.
        super().__init__(
            timeout=CLOSE_TIMEOUT_S, compress=False, max_msg_size=2 * UPDATE_BYTES_MAX, decode_text=False
        )
        self._farewells = farewells
        self.on_close: Callable[[], bool] | None = None

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        if self.closed:
            return False
        lost = self.on_close is not None and self.on_close()
        if not message and code in _PROTOCOL:
            message = _PROTOCOL[code].text.encode()
        if lost:
            await self._farewells.turn()
        return await super().close(code=code, message=message, drain=drain)


class SocketSink:
    """The transport of one WebSocket, as the hub wants it.

    `write` is the transport's own, for nothing is called as often; a close frame puts an end to it.
    """

    def __init__(self, request: web.Request, socket: _Socket, buffer_bytes: int) -> None:
        assert request.transport is not None
        self._transport = request.transport
        self._protocol = request.protocol
        self._drain = request.writer.drain
        self._socket = socket
        self._peer = request.remote
        self._began = time.monotonic()
        self._close: Close | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._buffer_bytes = buffer_bytes
        self.written = 0
        self.write: Callable[[bytes], None] = self._transport.write
        socket.on_close = self._on_close
        self.squeeze(False)

    @property
    def full(self) -> bool:
        """Whether the buffer is over its limit and has not drained yet."""
        return self._protocol.writing_paused

    @property
    def buffered(self) -> int:
        """How many bytes wait in the buffer."""
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    @property
    def closing(self) -> bool:
        """Whether a close frame is out."""
        return self._close is not None or self._socket.closed

    async def writable(self) -> None:
        """Return once the buffer has drained. Raises ConnectionError when the connection is gone."""
        await self._drain()

    def squeeze(self, squeezed: bool) -> None:
        """Lower the buffer's limit to an eighth, or set it back."""
        if not self._transport.is_closing():
            high = self._buffer_bytes // 8 if squeezed else self._buffer_bytes
            self._transport.set_write_buffer_limits(high=high, low=high // 4)

    def close(self, close: Close) -> None:
        """Send a close frame behind what waits, give the client a little time to answer, then cut."""
        if self.closing:
            return
        self._close = close
        with suppress(RuntimeError):  # uvloop's word for a transport that has closed meanwhile
            self._transport.write(close_frame(close.code, close.text))
        self.write = _nothing
        self._timeout = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    def _let_go(self) -> None:
        """Undo the cycles of references, so that a thousand ended connections are no garbage to collect."""
        self.write = _nothing
        self._socket.on_close = None
        error = self._socket.exception()
        if error is not None:
            error.__traceback__ = error.__context__ = None

    def _on_close(self) -> bool:
        """Let aiohttp send the close frame, unless ours is out: there may be only one, and none after it.

        Returns whether there is nobody any more to send it to.
        """
        lost = self._transport.is_closing()
        self.write = _nothing
        if self._close is not None:
            self._transport.close()
        return lost

    def failed(self, code: int) -> None:
        """Note that aiohttp has ended the connection for a breach of the protocol."""
        self._close = self._close or _PROTOCOL.get(code, _PROTOCOL[1002])

    def ended(self, metrics: Metrics) -> None:
        """Count and log why the connection ended."""
        if self._timeout is not None:
            self._timeout.cancel()
        if self._transport.get_write_buffer_size():
            # It closes once all is sent; whoever does not read may not hold it open until then.
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)
        self._let_go()
        if self._close is not None:
            reason = self._close.label
        else:
            # 1006 is aiohttp's code for a connection that ended without a close frame.
            reason = "client" if self._socket.close_code not in (None, 1006) else "lost"
        metrics.ended[reason].inc()
        # Those who leave by themselves may be thousands at once; those whom the server cuts are worth a line.
        if self._close not in (None, SHUTDOWN):
            seconds = round(time.monotonic() - self._began, 1)
            log.info("subscriber: cut", peer=self._peer, reason=reason, seconds=seconds, bytes=self.written)


def _nothing(_data: bytes) -> None:
    """Stand in for a write that is over."""
