"""The methods below `/xrpc/`: `network.bsky.jetstream.subscribeEvents`, and what belongs to it.

    subscribeEvents       a subscription in the v2 wire: `SubscribeEventsDialect`
    getZstdDictionary     a page
    listSegments, …       methods of an archive, which this server does not have: 501

Clients read a refusal as JSON, `{"error":…,"message":…}`, and decide by the name and the status whether they
come back. Some are finished after a 429, and after a close with 1000 or 1001. So there is no 429 for a
subscription, the server stops with 1012, and only `until` and `limit` end with 1000.

A subscription takes no messages: its options cannot change. The names of its refusals are
`InvalidRequest`, `UnknownZstdDictionary`, `CursorTooOld` and `ServiceUnavailable`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Final, NoReturn

import orjson

from jetstream.clock import unix_us
from jetstream.delivery.framing import Framing
from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.renderers.v2 import V2, info
from jetstream.delivery.subscriber import Close, Encoding
from jetstream.errors import InvalidParameter
from jetstream.limits import WebLimits
from jetstream.model.timestamp import to_date
from jetstream.steps import Steps
from jetstream.web.connection import Answer, Connection, Handler
from jetstream.web.dialect import SHUTDOWN, CheckedRequest, Refused, require_upgrade, unavailable
from jetstream.web.did_lists import no_list
from jetstream.web.http import Request, Response
from jetstream.web.methods import ARCHIVE, METHODS, PREFIX
from jetstream.web.pages import Page
from jetstream.web.parameters import FindList
from jetstream.web.subscribe_events_parameters import parse_subscribe_events
from jetstream.web.websocket import Breach

_NO_ARCHIVE: Final = (
    "this server keeps no archive: use subscribeEvents, where cursor=0 begins with what is kept"
)
# Of a method that does not exist, in the refusal.
_NSID_CHARS_SHOWN: Final = 100

# The only subprotocol. Clients that offer others do not expect to see them again.
SUBPROTOCOL: Final = "xrpc.v1.json"
# A lower cursor is a `seq` of another server: our positions have been higher since 2001.
POSITION_MIN: Final = 10**15

# The server stops with 1012 (`service restart`), after which these clients connect again.
_SHUTDOWN: Final = SHUTDOWN._replace(code=1012)
_DATA: Final = Close(1008, "unexpected_data", "this stream takes no messages: change the URL instead")


class SubscribeEventsDialect:
    """The dialect of `subscribeEvents`.

    `oldest_us` returns the position of the oldest event, None while there is none. `framing` returns the
    framing of messages that are compressed with the dictionary of an ID, or None while that is missing; it
    raises InvalidParameter for the ID of no dictionary of ours. `erases` returns the statuses of accounts
    whose records are erased, which a mirror of this server erases as well.
    """

    shutdown: Final = _SHUTDOWN

    def __init__(
        self,
        oldest_us: Callable[[], int | None],
        framing: Callable[[int], Framing | None],
        limits: WebLimits = WebLimits(),
        now_us: Callable[[], int] = unix_us,
        find_list: FindList = no_list,
        erases: Callable[[], Collection[str]] = tuple,
    ) -> None:
        # The arguments that the docstring describes; `_now_us` gives unix microseconds.
        self._oldest_us = oldest_us
        self._framing_of = framing
        self._find_list = find_list
        self._limits = limits
        self._now_us = now_us
        self._erases = erases

    def parse_request(self, request: Request) -> Steps[CheckedRequest]:
        """Read a request, in steps. Raises InvalidParameter or Refused.

        The order of the checks is that of the lexicon; the handshake comes behind the parameters.
        """
        asked = yield from parse_subscribe_events(request, self._find_list, now_us=self._now_us())
        require_upgrade(request)
        framing = self._framing(asked.dictionary_id)
        greeting = self._greeting(asked.cursor)
        return CheckedRequest(
            Encoding(V2, framing),
            asked.options,
            asked.cursor,
            bounds=asked.bounds,
            heartbeat_s=asked.heartbeat_s,
            did_list=asked.did_list,
            greeting=b"".join(framing.frames([greeting])),
            fields=_subprotocol(request) | self._forget(),
        )

    def _forget(self) -> dict[str, str]:
        """Return the header field that says which accounts' records are erased. Only our servers have it.

        A mirror reads it: see `upstream.mirror.offer`. It is the same for all subscribers.
        """
        return {"Jetstream-Forget": ",".join(sorted(self._erases())) or "none"}

    def _framing(self, dictionary_id: int | None) -> Framing:
        """Return the framing of a dictionary, or that of plain text without an ID. Raises Refused."""
        if dictionary_id is None:
            return WEBSOCKET
        try:
            framing = self._framing_of(dictionary_id)
        except InvalidParameter as error:
            raise Refused("unknown_dictionary", 400, "UnknownZstdDictionary", str(error)) from error
        if framing is None:
            text = "compression is not available yet: leave zstdDictionary out"
            raise unavailable("no_dictionary", text, self._limits)
        return framing

    def _greeting(self, cursor: int | None) -> bytes:
        """Return what a client is told of a cursor below the oldest event; empty if there is nothing to tell.

        A cursor of 0 asks for the oldest event. Raises Refused for a cursor of another server.

        The message is an `info` of the lexicon, and goes before all events.
        """
        oldest_us = self._oldest_us()
        if not cursor or (cursor >= POSITION_MIN and cursor >= (oldest_us or 0)):
            return b""
        kept = (
            "no event is kept yet"
            if oldest_us is None
            else f"the oldest event is {oldest_us}, {to_date(oldest_us)}"
        )
        if cursor < POSITION_MIN:
            text = f"cursor: {cursor} is a seq of another server: use 0, a seq of this one, or a time; {kept}"
            raise Refused("cursor_too_old", 400, "CursorTooOld", text)
        return info("OutdatedCursor", f"cursor {cursor} is older than what is kept; {kept}")

    def refusal(self, refused: Refused) -> Response:
        """Return a response in JSON, or a sentence where the error has no name.

        Status 429 becomes 503, because of what clients do then.
        """
        if not refused.name:
            return refused.response()
        status = 503 if refused.status == HTTPStatus.TOO_MANY_REQUESTS else refused.status
        return error_response(status, refused.name, refused.text, refused.fields)

    def parse_message(self, message: bytes) -> NoReturn:  # noqa: ARG002 - whatever it says
        """Refuse a client's message. Raises Breach.

        The connection is closed with 1008.
        """
        raise Breach(_DATA)


def _subprotocol(request: Request) -> dict[str, str]:
    """Return the header field that accepts the subprotocol, if it was offered. Its case matters."""
    offered = {each.strip() for each in request.headers.get("sec-websocket-protocol", "").split(",")}
    return {"Sec-WebSocket-Protocol": SUBPROTOCOL} if SUBPROTOCOL in offered else {}


class Xrpc:
    """Answers all requests below `/xrpc/`. `upgrades` and `pages` are its methods, by NSID."""

    def __init__(self, upgrades: Mapping[str, Handler], pages: Mapping[str, Page]) -> None:
        # By NSID: the methods that may take their connection over.
        self._upgrades = upgrades
        # By NSID: the methods that are answered at once.
        self._pages = pages

    def answer(self, request: Request, connection: Connection) -> Steps[Answer]:
        """Answer a request. Returns None when its connection has become a WebSocket.

        The body of a request is not read, whatever its method. So the connection ends with the response: the
        body must not be taken for the next request.

        An OPTIONS is answered here, too, with the methods of the path.
        """
        nsid = request.path.removeprefix(PREFIX).rstrip("/")
        if nsid in self._upgrades and request.method in ("GET", "HEAD"):
            return (yield from self._upgrades[nsid](request, connection))
        closing = request.method not in ("GET", "HEAD", "OPTIONS")
        return self._response(nsid, request)._replace(closing=closing)

    def _response(self, nsid: str, request: Request) -> Response:
        """Return the response to what is no subscription: a page, or an error in JSON.

        501 is for methods that this server does not have, whether it knows their names or not.
        """
        if nsid not in METHODS:
            there = " and ".join([*self._upgrades, *self._pages])
            text = f"method not implemented: {nsid[:_NSID_CHARS_SHOWN]}: there are {there}"
            return error_response(501, "MethodNotImplemented", text)
        methods = ("POST",) if ARCHIVE.get(nsid) == "POST" else ("GET", "HEAD")
        if request.method == "OPTIONS":
            return Response.preflight(methods)
        if request.method not in methods:
            text = f"{nsid} is not for {request.method}: use {methods[0]}"
            return error_response(405, "MethodNotAllowed", text, {"Allow": ", ".join((*methods, "OPTIONS"))})
        if nsid in self._pages:
            return self._pages[nsid](request)
        return error_response(501, "MethodNotImplemented", f"{nsid}: {_NO_ARCHIVE}")


def error_response(status: int, name: str, text: str, fields: Mapping[str, str] | None = None) -> Response:
    """Return an error of XRPC.

    `name` is the error as clients compare it, `text` is for people.
    """
    return Response(status, orjson.dumps({"error": name, "message": text}), "application/json", fields)
