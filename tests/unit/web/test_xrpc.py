from __future__ import annotations

from typing import cast

import orjson
import pytest

from jetstream.delivery.framing import Framing
from jetstream.delivery.framing.websocket import BINARY, WEBSOCKET, WebSocketFraming
from jetstream.delivery.renderers.v2 import V2
from jetstream.delivery.subscriber import Encoding
from jetstream.errors import InvalidParameter
from jetstream.steps import finish
from jetstream.web.connection import Connection
from jetstream.web.dialect import CheckedRequest, Refused
from jetstream.web.http import Request, Response
from jetstream.web.methods import GET_ZSTD_DICTIONARY, PREFIX, SUBSCRIBE_EVENTS
from jetstream.web.websocket import Breach
from jetstream.web.xrpc import SubscribeEventsDialect, Xrpc

OLDEST_US = 1796054400000123
COMPRESSED = WebSocketFraming(BINARY)
NSID = "network.bsky.jetstream."
FORGETS_NONE = {"Jetstream-Forget": "none"}


def framing_of(dictionary_id: int) -> Framing | None:
    if dictionary_id == 3:
        raise InvalidParameter("zstdDictionary", "3", "is unknown: the ID is 1")
    return {1: COMPRESSED}.get(dictionary_id)


def asked(query: str = "", oldest_us: int | None = OLDEST_US, **headers: str) -> CheckedRequest:
    upgrade = {"upgrade": "websocket", "connection": "Upgrade"}
    fields = upgrade | {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request("GET", PREFIX + SUBSCRIBE_EVENTS, query, 1, fields)
    return finish(SubscribeEventsDialect(lambda: oldest_us, framing_of).parse_request(request))


def refused(query: str, oldest_us: int | None = OLDEST_US) -> Refused:
    with pytest.raises(Refused) as caught:
        asked(query, oldest_us)
    return caught.value


def test_a_subscription_is_in_the_v2_wire() -> None:
    assert asked() == CheckedRequest(Encoding(V2, WEBSOCKET), asked().options, fields=FORGETS_NONE)


@pytest.mark.parametrize(
    ("offered", "accepted"),
    [
        ("xrpc.v1.json", True),
        ("foo, xrpc.v1.json", True),
        ("xrpc.v1.json,foo", True),
        ("XRPC.V1.JSON", False),
        ("xrpc.v1.json2", False),
        ("foo", False),
        ("", False),
    ],
)
def test_the_subprotocol_is_accepted_only_when_it_is_offered(offered: str, accepted: bool) -> None:
    fields = asked(sec_websocket_protocol=offered).fields
    more = {"Sec-WebSocket-Protocol": "xrpc.v1.json"} if accepted else {}
    assert fields == more | FORGETS_NONE


def test_a_mirror_is_told_which_accounts_are_erased() -> None:
    request = Request(
        "GET", PREFIX + SUBSCRIBE_EVENTS, "", 1, {"upgrade": "websocket", "connection": "Upgrade"}
    )
    dialect = SubscribeEventsDialect(lambda: None, framing_of, erases=lambda: {"takendown", "deleted"})
    assert finish(dialect.parse_request(request)).fields == {"Jetstream-Forget": "deleted,takendown"}


def test_compression_is_that_of_a_dictionary_by_its_id() -> None:
    assert asked("zstdDictionary=1").encoding == Encoding(V2, COMPRESSED)
    unknown, missing = refused("zstdDictionary=3"), refused("zstdDictionary=2")
    assert (unknown.status, unknown.name) == (400, "UnknownZstdDictionary")
    assert "the ID is 1" in unknown.text
    assert (missing.status, missing.name) == (503, "ServiceUnavailable")
    assert set(missing.fields or ()) == {"Retry-After"}


@pytest.mark.parametrize("cursor", [0, OLDEST_US, OLDEST_US + 1, 2**63 - 1])
def test_a_cursor_that_is_kept_needs_no_word(cursor: int) -> None:
    subscription = asked(f"cursor={cursor}")
    assert (subscription.cursor, subscription.greeting) == (cursor, b"")


@pytest.mark.parametrize("cursor", [10**15, OLDEST_US - 1])
@pytest.mark.parametrize(("query", "framing"), [("", WEBSOCKET), ("&zstdDictionary=1", COMPRESSED)])
def test_a_client_is_told_of_a_cursor_below_what_is_kept(cursor: int, query: str, framing: Framing) -> None:
    subscription = asked(f"cursor={cursor}{query}")
    frame = subscription.greeting
    payload = orjson.loads(frame[frame.index(b"{") :])["payload"]
    assert subscription.cursor == cursor
    assert frame == framing.frames([frame[frame.index(b"{") :]])[0]
    assert payload["name"] == "OutdatedCursor"
    assert str(OLDEST_US) in payload["message"]


@pytest.mark.parametrize("cursor", [1, 8669, 10**15 - 1])
def test_a_seq_of_another_server_is_refused_with_what_is_kept(cursor: int) -> None:
    error = refused(f"cursor={cursor}")
    assert (error.status, error.name) == (400, "CursorTooOld")
    assert str(cursor) in error.text
    assert str(OLDEST_US) in error.text
    assert refused(f"cursor={cursor}", None).name == "CursorTooOld"


def test_an_empty_log_has_nothing_to_be_older_than() -> None:
    assert asked(f"cursor={10**15}", None).greeting == b""


def test_a_client_may_say_nothing() -> None:
    with pytest.raises(Breach) as caught:
        SubscribeEventsDialect(lambda: None, framing_of).parse_message(b"{}")
    assert caught.value.close[:2] == (1008, "unexpected_data")


def test_the_end_of_the_server_is_no_end_for_clients() -> None:
    assert SubscribeEventsDialect(lambda: None, framing_of).shutdown.code == 1012


# Routes


def answered(method: str, nsid: str) -> Response:
    connection = cast(Connection, None)  # pages do not look at it
    methods = Xrpc({}, {GET_ZSTD_DICTIONARY: lambda _request: Response(200, b"dictionary")})
    response = finish(methods.answer(Request(method, PREFIX + nsid, "", 1, {}), connection))
    assert isinstance(response, Response)
    return response


def error_of(response: Response) -> tuple[int, str]:
    body = orjson.loads(response.body or b"")
    assert response.content_type == "application/json"
    assert list(body) == ["error", "message"]
    assert body["message"]
    return response.status, body["error"]


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("GET", "listSegments"),
        ("POST", "planSnapshot"),
        ("GET", "getSegment"),
        ("HEAD", "getSegment"),
        ("GET", "getBlock"),
        ("POST", "importTimestamps"),
        ("GET", "getImportStatus"),
    ],
)
def test_the_archive_is_not_implemented(method: str, name: str) -> None:
    response = answered(method, NSID + name)
    assert error_of(response) == (501, "MethodNotImplemented")
    assert b"subscribeEvents" in (response.body or b"")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS"])
@pytest.mark.parametrize("nsid", [f"{NSID}nope", "com.atproto.sync.getRepo", "x", "a/b", "x" * 1_000, 'a"\n'])
def test_an_unknown_method_is_not_implemented(method: str, nsid: str) -> None:
    response = answered(method, nsid)
    assert error_of(response) == (501, "MethodNotImplemented")
    assert len(response.body or b"") < 300


@pytest.mark.parametrize(
    ("method", "nsid", "allowed"),
    [
        ("GET", f"{NSID}planSnapshot", "POST, OPTIONS"),
        ("DELETE", f"{NSID}planSnapshot", "POST, OPTIONS"),
        ("POST", f"{NSID}getSegment", "GET, HEAD, OPTIONS"),
        ("POST", GET_ZSTD_DICTIONARY, "GET, HEAD, OPTIONS"),
        ("POST", SUBSCRIBE_EVENTS, "GET, HEAD, OPTIONS"),
    ],
)
def test_another_verb_is_not_allowed(method: str, nsid: str, allowed: str) -> None:
    response = answered(method, nsid)
    assert error_of(response) == (405, "MethodNotAllowed")
    assert (response.headers or {})["Allow"] == allowed
    preflight = answered("OPTIONS", nsid)
    assert (preflight.status, (preflight.headers or {})["Allow"]) == (200, allowed)


@pytest.mark.parametrize("nsid", [f"{NSID}planSnapshot", f"{NSID}nope", GET_ZSTD_DICTIONARY])
@pytest.mark.parametrize(
    ("method", "closing"), [("GET", False), ("OPTIONS", False), ("POST", True), ("PUT", True)]
)
def test_what_may_have_a_body_ends_the_connection(method: str, closing: bool, nsid: str) -> None:
    assert answered(method, nsid).closing == closing


def test_a_page_is_answered() -> None:
    assert answered("GET", GET_ZSTD_DICTIONARY).body == b"dictionary"
    assert answered("GET", f"{GET_ZSTD_DICTIONARY}/").body == b"dictionary"
