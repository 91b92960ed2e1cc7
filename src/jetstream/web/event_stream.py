"""`/events`: a subscription without a WebSocket. The events are the body of an HTTP response without an end.

    GET /events?… ──▶ checked as at `/subscribe` ──▶ 400, 406 or 503
                          │
                          ▼
                200, an `EventStreamSink` ──▶ a `Subscriber` in delivery

    Accept             what the body is made of: lines of JSON, or Server-Sent Events
    Accept-Encoding    whether it is compressed, by a compressor of each connection, up to a number of them
    HTTP/1.1           chunks, so that a client knows whether a body was complete; HTTP/1.0 has none

A client cannot say anything after its request, so there are no `options_update`s. What it sends all the same
is discarded, and the connection ends with the response.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, NoReturn

from jetstream.clock import unix_us
from jetstream.delivery.framing.chunked import BodyFraming, ChunkedFraming
from jetstream.delivery.framing.ndjson import NDJSON
from jetstream.delivery.framing.sse import SSE
from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.renderers.v1 import V1
from jetstream.delivery.subscriber import Encoding
from jetstream.errors import InvalidParameter
from jetstream.limits import WebLimits
from jetstream.metrics import Metrics
from jetstream.scheduling import Worker
from jetstream.steps import Steps
from jetstream.web.connection import Connection
from jetstream.web.content_coding import COMPRESSORS, IDENTITY, choose, qualities
from jetstream.web.dialect import SHUTDOWN, CheckedRequest, Refused, unavailable
from jetstream.web.did_lists import no_list
from jetstream.web.http import Request, Response
from jetstream.web.outbound import Outbound, Sockets
from jetstream.web.parameters import FindList, SubscribeRequest, parse_request
from jetstream.web.stream_sink import CompressedSink, Compression, EventStreamSink
from jetstream.web.websocket import wants_upgrade

# The ID of an event, which is its position, as the client gives it back.
_POSITION: Final = re.compile(r"[0-9]{1,20}", re.ASCII).fullmatch
# One object of each: readers with equal encodings share what is framed.
_CHUNKED: Final[Mapping[BodyFraming, BodyFraming]] = {each: ChunkedFraming(each) for each in (NDJSON, SSE)}
# Of every stream, beside the fields of every response. The response must not be kept, is not to be held
# back by a proxy, and depends on two fields of the request.
_FIELDS: Final = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # else nginx holds events back
    "Vary": "Accept, Accept-Encoding",
}
_USE_HEADER: Final = "is for WebSockets: send the header Accept-Encoding, with zstd or gzip"
_NO_CODING: Final = f"Accept-Encoding: accept {', '.join(COMPRESSORS)} or {IDENTITY}"


class EventStreamDialect:
    """How `/events` is subscribed to. `now_us` gives unix microseconds, from which ages count.

    `find_list` returns an uploaded list by its ID, or raises InvalidParameter.
    """

    shutdown: Final = SHUTDOWN

    def __init__(
        self,
        metrics: Metrics,
        limits: WebLimits = WebLimits(),
        now_us: Callable[[], int] = unix_us,
        find_list: FindList = no_list,
    ) -> None:
        # Where streams are counted, by content coding.
        self._metrics = metrics
        # For the number of compressors.
        self._limits = limits
        # The arguments that the docstring describes.
        self._now_us = now_us
        self._find_list = find_list
        # Compresses for all connections, in half of the event loop's time at most.
        self.worker = Worker(pause_ratio=1.0)
        # How many connections have a compressor: up to `compressed_streams_max`. Changed by `began` and
        # `ended`.
        self._compressed = 0

    def parse_request(self, request: Request) -> Steps[CheckedRequest]:
        """Read a request, in steps. Raises InvalidParameter or Refused.

        `Last-Event-ID` wins over `cursor`: an `EventSource` repeats its URL, and sends the position of its
        last event (the HTML standard, section 9.2). The subscription begins behind that event.
        """
        last_us = _last_event(request.headers)
        asked = yield from parse_request(
            request,
            self._find_list,
            now_us=self._now_us(),
            wires=tuple(RENDERERS),
            resumes=last_us is not None,
        )
        _check(request, asked)
        cursor = asked.cursor if last_us is None else last_us + 1
        body = _body(request.headers.get("accept", ""))
        # HTTP/1.0 has no chunks: the body ends with the connection.
        chunked = _CHUNKED[body] if request.minor else body
        coding = self._coding(request.headers.get("accept-encoding", ""))
        # A compressor takes bytes that are not in chunks yet.
        framing = chunked if coding == IDENTITY else body
        return CheckedRequest(
            Encoding(RENDERERS[asked.wire or V1.name], framing),
            asked.options,
            cursor,
            bounds=asked.bounds,
            heartbeat_s=asked.heartbeat_s,
            did_list=asked.did_list,
            greeting=framing.start,
            opening=_Stream(self, framing, coding, chunked is not body, _is_over(asked, last_us)),
        )

    def _coding(self, accepted: str) -> str:
        """Return the content coding for a client. Raises Refused if it accepts none that there is.

        406 is for a client that accepts neither a coding nor a body without one; 503 is for one that
        accepts only codings, when all compressors are taken.
        """
        room = self._compressed < self._limits.compressed_streams_max
        coding = choose(accepted, tuple(COMPRESSORS) if room else ())
        if coding is not None:
            return coding
        if room:
            raise Refused("coding", 406, "", _NO_CODING)
        text = f"{self._compressed} event streams are compressed, and that is the limit"
        raise unavailable("coding", f"{text}: accept identity, or try again later", self._limits)

    def began(self, coding: str) -> None:
        """Count a stream.

        Called when the socket is made.
        """
        self._compressed += coding != IDENTITY
        self._metrics.event_streams[coding].inc()

    def ended(self, coding: str) -> None:
        """Count a stream less.

        Called when the connection has gone, once for each `began`.
        """
        self._compressed -= coding != IDENTITY
        self._metrics.event_streams[coding].dec()

    def refusal(self, refused: Refused) -> Response:
        """Return a response of one sentence."""
        return refused.response()

    def parse_message(self, message: bytes) -> NoReturn:
        """Never called: the socket of a stream takes no messages."""
        raise NotImplementedError


def _check(request: Request, asked: SubscribeRequest) -> None:
    """Refuse what only a WebSocket can do. Raises InvalidParameter or Refused.

    The parameters are known here, and their values were valid.
    """
    if wants_upgrade(request):
        text = f"{request.path} is no WebSocket: connect to {request.websocket_base}/subscribe"
        raise Refused("transport", 400, "", text)
    if asked.require_hello:
        raise InvalidParameter("requireHello", "true", "needs a WebSocket, for the hello: leave it out")
    if asked.dictionary_id is not None:
        raise InvalidParameter("zstdDictionary", str(asked.dictionary_id), _USE_HEADER)
    if asked.compress:
        header = request.headers.get("socket-encoding", "")
        raise InvalidParameter("Socket-Encoding" if header else "compress", header or "true", _USE_HEADER)


def _last_event(headers: Mapping[str, str]) -> int | None:
    """Return the position of the last event that a client has, if it comes back. Raises InvalidParameter.

    The field is empty before the first event.
    """
    value = headers.get("last-event-id", "").strip()
    if value and not _POSITION(value):
        raise InvalidParameter("Last-Event-ID", value, "is not the ID of an event: it is a number")
    return int(value) if value else None


def _is_over(asked: SubscribeRequest, last_us: int | None) -> bool:
    """Tell whether a client that comes back has had all up to `until`.

    Without this, an `EventSource` would connect again and again after the last event.
    """
    return last_us is not None and asked.until is not None and last_us + 1 >= asked.until


def _body(accept: str) -> BodyFraming:
    """Return what a body is made of: lines, unless the client asks for Server-Sent Events.

    Server-Sent Events must be named by the client, and be wanted as much as lines of JSON: `*/*` does not
    name them.
    """
    wanted = qualities(accept)
    events = wanted.get(SSE.media_type, 0.0)
    return SSE if events and events >= wanted.get(NDJSON.media_type, 0.0) else NDJSON


class _Stream(NamedTuple):
    """The answer that never ends: one connection of `dialect`."""

    # Where the stream is counted, and whose worker compresses.
    dialect: EventStreamDialect
    # What delivery makes frames with: in chunks, unless the body is compressed.
    framing: BodyFraming
    # The content coding: `identity`, or a name in `COMPRESSORS`.
    coding: str
    # Whether the body has chunks, which HTTP/1.0 does not know.
    chunked: bool
    # Whether the client has had all events up to `until`, and asks for what is behind.
    over: bool

    @property
    def transport(self) -> str:
        """What the body is made of."""
        return "sse" if self.framing.media_type == SSE.media_type else "ndjson"

    def accept(self, request: Request, fields: Mapping[str, str]) -> bytes | Response:
        """Return the head of the response; to HEAD, or when the stream is over, all of it.

        A 204 tells a browser, which would come back for ever, that there is no more.
        """
        headers = {**_FIELDS, **fields}
        if self.over:
            return Response(204, b"", headers=headers, unsized=True)
        if self.chunked:
            headers["Transfer-Encoding"] = "chunked"
        if self.coding != IDENTITY:
            headers["Content-Encoding"] = self.coding
        response = Response(200, b"", self.framing.media_type, headers, closing=True, unsized=True)
        return response if request.method == "HEAD" else response.encode(time.time(), keep_alive=False)

    def open(self, connection: Connection, inbound: Sockets) -> Outbound:
        """Return the socket of the connection.

        A compressor is made here, if the body has one: 56 or 124 KiB for as long as the connection lives.
        """
        self.dialect.began(self.coding)
        common = (connection.transport, inbound, connection.peer, self.framing, self.ended)
        if self.coding == IDENTITY:
            return EventStreamSink(*common)
        compressor = COMPRESSORS[self.coding]()
        return CompressedSink(*common, Compression(compressor, self.chunked, self.dialect.worker))

    def ended(self) -> None:
        """Note that the connection has gone."""
        self.dialect.ended(self.coding)
