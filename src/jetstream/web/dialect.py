"""Dialects: what differs between the endpoints to subscribe, whose connections are otherwise alike.

A dialect reads a request, and a client's messages. It knows how its endpoint refuses a request and how the
server says goodbye there. `subscribe` does the rest: the limit of subscribers, the upgrade, the client.

    `/subscribe`, `/v1/subscribe`    `SubscribeDialect`, here
    `/xrpc/…subscribeEvents`         `xrpc.SubscribeEventsDialect`
    `/events`                        `event_stream.EventStreamDialect`

    Dialect.parse_request ──▶ CheckedRequest ──▶ Opening.accept ──▶ the head of the response
                          │                      Opening.open   ──▶ `Outbound`, the socket
                          └─▶ Refused ──▶ Dialect.refusal ──▶ the response

`Opening` is the part of a dialect that belongs to one request: only `/events` has one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from orjson import JSONDecodeError

from jetstream.clock import unix_us
from jetstream.delivery.framing import Framing
from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.subscriber import Bounds, Close, Encoding, SubscriberOptions
from jetstream.errors import InvalidParameter
from jetstream.limits import WebLimits
from jetstream.steps import Steps
from jetstream.web.address_limits import OverLimit
from jetstream.web.connection import Connection
from jetstream.web.content_coding import IDENTITY
from jetstream.web.did_lists import DidList, no_list
from jetstream.web.http import Request, Response
from jetstream.web.outbound import Outbound
from jetstream.web.parameters import (
    WIRE_RULE,
    FindList,
    OptionsUpdate,
    SubscribeRequest,
    parse_message,
    parse_request,
)
from jetstream.web.sink import Inbound
from jetstream.web.websocket import Breach, wants_upgrade

# What connections are closed with when the server stops: `going away` (RFC 6455, section 7.4.1).
SHUTDOWN: Final = Close(1001, "shutdown", "the server is shutting down: connect again")


class Opening(Protocol):
    """How a request becomes the connection of a subscriber."""

    @property
    def coding(self) -> str:
        """The content coding of the body, or `identity`.

        It is a label of the metrics, too.
        """

    @property
    def transport(self) -> str:
        """How events are sent, for operators.

        One of `websocket`, `ndjson` and `sse`.
        """

    def accept(self, request: Request, fields: Mapping[str, str]) -> bytes | Response:
        """Return the head of the response, with more header fields. Raises Refused or BadRequest.

        Or a whole response, if there is nothing to open.

        Nothing has been taken of any limit yet, so there is nothing to give back if it fails.
        """

    def open(self, connection: Connection, inbound: Inbound) -> Outbound:
        """Return the socket that takes a connection over.

        Called once, when the request was accepted. The caller makes a `Client` of it, and writes the head
        of the response.
        """


class CheckedRequest(NamedTuple):
    """What a request asks for, checked: all that its connection needs to know.

    `Client` replaces its options with empty ones when others come into force: a large filter takes much
    memory.
    """

    # The wire and the framing. They stay for as long as the connection does.
    encoding: Encoding
    options: SubscriberOptions  # until the first message that changes them
    cursor: int | None = None  # the position to start at; None: live
    require_hello: bool = False  # whether nothing is sent before the client's first message
    bounds: Bounds | None = None  # where it ends by itself
    heartbeat_s: int | None = None  # seconds without an event until there is a heartbeat; None: the wire's
    did_list: DidList | None = None  # the uploaded list whose DIDs are part of the options
    greeting: bytes = b""  # frames that go before all events
    fields: Mapping[str, str] = MappingProxyType({})  # more header fields of the response
    opening: Opening | None = None  # how the connection begins; None: with an upgrade to a WebSocket

    @property
    def compression(self) -> str:
        """How the events are compressed: one of `metrics.COMPRESSIONS`."""
        if self.encoding.framing.costly:  # messages compressed against a dictionary
            return "zstd"
        coding = self.opening.coding if self.opening else IDENTITY
        return "none" if coding == IDENTITY else coding


class Refused(Exception):
    """A request cannot become a subscription. The client gets a response with one sentence, `text`.

    `reason` is one of `metrics.REFUSAL_REASONS`. `name` is what the lexicon of an XRPC method calls the
    error; empty where it has no name.
    """

    def __init__(
        self, reason: str, status: int, name: str, text: str, fields: Mapping[str, str] | None = None
    ) -> None:
        # The label in the metrics.
        self.reason = reason
        # The status of the response. A dialect may change it.
        self.status = status
        # The name of the error in XRPC, such as `CursorTooOld`.
        self.name = name
        # A sentence that says what was wrong and what to do.
        self.text = text
        # More header fields of the response.
        self.fields = fields
        super().__init__(text)

    def response(self) -> Response:
        """Return the response of an endpoint that names no errors."""
        return Response.sentence(self.status, self.text, self.fields)


def unavailable(reason: str, text: str, limits: WebLimits) -> Refused:
    """Return the refusal that asks a client to try again.

    `reason` is the label in the metrics. It is a 503 with `Retry-After`.
    """
    return Refused(reason, 503, "ServiceUnavailable", text, {"Retry-After": str(limits.retry_after_s)})


def over_limit(over: OverLimit) -> Refused:
    """Return the refusal of a subscription whose address is over a limit. Each dialect has its own status.

    The status is 429 with `Retry-After`. XRPC makes it a 503, as its clients are finished after a 429.
    """
    later = {"Retry-After": str(over.retry_after_s)}
    return Refused(over.reason, 429, "ServiceUnavailable", over.text, later)


def require_upgrade(request: Request, more: str = "") -> None:
    """Raise Refused for a request that asks for no WebSocket. `more` is added to the sentence.

    The status is 426 (RFC 9110, section 15.5.22), and the sentence has the URLs to use instead.
    """
    if not wants_upgrade(request):
        path, events = request.path, f"{request.base}/events"
        text = f"{path} is a WebSocket: connect to {request.websocket_base}{path}, or read {events}{more}"
        raise Refused("transport", 426, "", text, {"Upgrade": "websocket"})


class Dialect(Protocol):
    """How one endpoint is subscribed to.

    There is one object for each path, made in `endpoints`. It keeps nothing of a request, except for
    counts.
    """

    @property
    def shutdown(self) -> Close:
        """What connections are closed with when the server stops.

        Its code tells clients to connect again, in the way that the libraries of this endpoint understand.
        """

    def parse_request(self, request: Request) -> Steps[CheckedRequest]:
        """Read a request, in steps. Raises InvalidParameter or Refused.

        It is read in steps, as a query may have thousands of values.
        """

    def refusal(self, refused: Refused) -> Response:
        """Return the response to a request that is refused."""

    def parse_message(self, message: bytes) -> Steps[OptionsUpdate | None]:
        """Read a client's message, in steps: its new options, or None if it changes nothing.

        Raises Breach.

        The message is the payload of a text or a binary frame, of up to `MESSAGE_BYTES_MAX` bytes.
        """


class SubscribeDialect:
    """The dialect of `/subscribe` and `/v1/subscribe`. `wire` is the wire of requests that select none.

    `compressed` returns the framing of compressed messages, for the ID of a dictionary and for whether the
    request has `compress`; None while the dictionary is missing. `find_list` returns an uploaded list by its
    ID. Both raise InvalidParameter.
    """

    shutdown: Final = SHUTDOWN

    def __init__(
        self,
        wire: str,
        compressed: Callable[[int | None, bool], Framing | None],
        limits: WebLimits = WebLimits(),
        now_us: Callable[[], int] = unix_us,
        find_list: FindList = no_list,
    ) -> None:
        # The arguments that the docstring describes; `_now_us` gives unix microseconds.
        self._wire = wire
        self._compressed = compressed
        self._find_list = find_list
        self._limits = limits
        self._now_us = now_us

    def parse_request(self, request: Request) -> Steps[CheckedRequest]:
        """Read a request, in steps. Raises InvalidParameter or Refused."""
        asked = yield from parse_request(request, self._find_list, now_us=self._now_us())
        # Before the dictionary, which is fetched when it is first asked for.
        require_upgrade(request, f"; it sends the {self._wire} wire, but {WIRE_RULE}")
        wire = asked.wire or self._wire
        return CheckedRequest(
            Encoding(RENDERERS[wire], self._framing(asked)),
            asked.options,
            asked.cursor,
            asked.require_hello,
            bounds=asked.bounds,
            heartbeat_s=asked.heartbeat_s,
            did_list=asked.did_list,
        )

    def _framing(self, asked: SubscribeRequest) -> Framing:
        """Return the framing that a request selects. Raises InvalidParameter or Refused.

        A plain one where nothing is asked for. A dictionary that is missing is a 503: it is being fetched.
        """
        if not asked.compress and asked.dictionary_id is None:
            return WEBSOCKET
        framing = self._compressed(asked.dictionary_id, asked.compress)
        if framing is None:
            text = "compression is not available yet: try again later, or leave it out"
            raise unavailable("no_dictionary", text, self._limits)
        return framing

    def refusal(self, refused: Refused) -> Response:
        """Return a response of one sentence."""
        return refused.response()

    def parse_message(self, message: bytes) -> Steps[OptionsUpdate | None]:
        """Read a client's message, in steps. Raises Breach, which tells a bad one why it is closed."""
        try:
            return (yield from parse_message(message, self._find_list))
        except JSONDecodeError as error:
            text = f"a message is not JSON: {error}: send an options_update"
            raise Breach(Close(1007, "bad_json", text)) from error
        except InvalidParameter as error:
            raise Breach(Close(1008, "bad_options", str(error))) from error
