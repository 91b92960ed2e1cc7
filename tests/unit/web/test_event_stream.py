from __future__ import annotations

from typing import cast

import pytest
from prometheus_client import generate_latest

from jetstream.delivery.framing.chunked import ChunkedFraming
from jetstream.delivery.framing.ndjson import NDJSON
from jetstream.delivery.framing.sse import SSE
from jetstream.delivery.renderers import RENDERERS
from jetstream.errors import InvalidParameter
from jetstream.limits import WebLimits
from jetstream.metrics import Metrics
from jetstream.steps import finish
from jetstream.web.dialect import SHUTDOWN, CheckedRequest, Refused
from jetstream.web.event_stream import EventStreamDialect
from jetstream.web.http import Request, Response

NOW_US = 1_796_054_400_000_000
EVENT_STREAM = "text/event-stream"


def request(query: str = "", *, method: str = "GET", minor: int = 1, **headers: str) -> Request:
    return Request(method, "/events", query, minor, {k.replace("_", "-"): v for k, v in headers.items()})


def dialect(metrics: Metrics | None = None, limits: WebLimits = WebLimits()) -> EventStreamDialect:
    return EventStreamDialect(metrics or Metrics(), limits, lambda: NOW_US)


def asked(query: str = "", *, minor: int = 1, **headers: str) -> CheckedRequest:
    return finish(dialect().parse_request(request(query, minor=minor, **headers)))


def answer(query: str = "", *, method: str = "GET", minor: int = 1, **headers: str) -> bytes:
    """Return the response; to GET, its head."""
    one = request(query, method=method, minor=minor, **headers)
    opening = finish(dialect().parse_request(one)).opening
    assert opening is not None
    found = opening.accept(one, {"Jetstream-Wire": "v1"})
    return found if isinstance(found, bytes) else found.encode(0.0, keep_alive=False, with_body=False)


@pytest.mark.parametrize("wire", RENDERERS)
def test_every_wire_is_served_and_v1_by_default(wire: str) -> None:
    assert asked(f"wire={wire}").encoding.renderer is RENDERERS[wire]
    assert asked().encoding.renderer is RENDERERS["v1"]
    assert asked("wire=").encoding.renderer is RENDERERS["v1"]


@pytest.mark.parametrize(
    ("accept", "body"),
    [
        ("", NDJSON),
        ("*/*", NDJSON),
        ("text/html,application/xhtml+xml,*/*;q=0.8", NDJSON),
        ("application/x-ndjson", NDJSON),
        (EVENT_STREAM, SSE),
        ("Text/Event-Stream; charset=utf-8", SSE),
        ("text/event-stream, */*;q=0.1", SSE),
        ("text/event-stream;q=0", NDJSON),
        ("text/event-stream;q=0.5, application/x-ndjson", NDJSON),
    ],
)
def test_accept_selects_what_a_body_is_made_of(accept: str, body: object) -> None:
    chunked, plain = asked(accept=accept).encoding.framing, asked(accept=accept, minor=0).encoding.framing
    assert isinstance(chunked, ChunkedFraming)
    assert chunked.media_type == cast(ChunkedFraming, body).media_type
    assert plain is body


def test_readers_of_equal_encodings_share_what_is_framed() -> None:
    assert asked().encoding == asked("wantedDids=did:plc:stk5dhwhpcjxtlwnhbknmfgx").encoding
    assert asked(accept=EVENT_STREAM).encoding == asked(accept=EVENT_STREAM).encoding
    assert asked().encoding != asked(accept=EVENT_STREAM).encoding
    # A compressor puts what it made into chunks.
    assert asked(accept_encoding="gzip").encoding.framing is NDJSON


@pytest.mark.parametrize(
    ("query", "last", "cursor"),
    [
        ("", "", None),
        ("cursor=5", "", 5),
        ("cursor=5", "7", 8),
        ("cursor=5", "3", 4),
        ("", " 7 ", 8),
        ("cursor=-1h", "7", 8),
        ("until=99", "7", 8),  # past, and what was missed before it still comes
        ("cursor=200&until=99", "7", 8),
    ],
)
def test_a_client_that_comes_back_goes_on_after_its_last_event(
    query: str, last: str, cursor: int | None
) -> None:
    assert asked(query, last_event_id=last).cursor == cursor


@pytest.mark.parametrize(
    ("query", "headers", "named"),
    [
        ("", {"last_event_id": "abc"}, "Last-Event-ID"),
        ("", {"last_event_id": "-1"}, "Last-Event-ID"),
        ("", {"last_event_id": "9" * 21}, "Last-Event-ID"),
        ("", {"last_event_id": "\xb2"}, "Last-Event-ID"),
        ("requireHello=true", {}, "requireHello"),
        ("compress=true", {}, "compress"),
        ("", {"socket_encoding": "zstd"}, "Socket-Encoding"),
        ("zstdDictionary=1", {}, "zstdDictionary"),
        ("wire=v3", {}, "wire"),
        ("cursor=x", {}, "cursor"),
        ("wantedcollections=app.bsky.feed.post", {}, "wantedcollections"),
        ("wantedCollections=x", {}, "wantedCollections"),
    ],
)
def test_a_bad_parameter_is_named(query: str, headers: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        finish(dialect().parse_request(request(query, minor=1, method="GET", **headers)))
    assert caught.value.name == named


def test_a_websocket_is_told_where_to_go() -> None:
    with pytest.raises(Refused) as caught:
        asked(host="example.org", upgrade="websocket", connection="Upgrade")
    assert caught.value.status == 400
    assert "ws://example.org/subscribe" in caught.value.text


def test_what_a_websocket_would_do_by_default_is_no_mistake() -> None:
    assert asked("requireHello=false&compress=false&maxMessageSizeBytes=100").options.message_bytes_max == 100


def test_the_head_says_what_follows() -> None:
    lines = answer(accept=EVENT_STREAM, accept_encoding="gzip").split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert lines[-2:] == [b"", b""]
    assert {
        b"Content-Type: text/event-stream",
        b"Content-Encoding: gzip",
        b"Transfer-Encoding: chunked",
        b"Connection: close",
        b"Cache-Control: no-store",
        b"X-Accel-Buffering: no",
        b"Vary: Accept, Accept-Encoding",
        b"Access-Control-Allow-Origin: *",
        b"Jetstream-Wire: v1",
    } <= set(lines)
    assert b"Content-Length" not in answer()
    assert b"Content-Encoding" not in answer()
    assert b"Content-Type: application/x-ndjson" in answer()
    assert b"Transfer-Encoding" not in answer(minor=0)


def test_head_is_answered_as_get_is_and_opens_nothing() -> None:
    def fields(head: bytes) -> set[bytes]:
        return {line for line in head.split(b"\r\n") if not line.startswith(b"Date")}

    assert fields(answer(method="HEAD")) == fields(answer())


@pytest.mark.parametrize(
    ("last", "over"), [("", False), ("97", False), ("98", True), ("99", True), ("500", True)]
)
def test_a_browser_that_has_had_all_up_to_until_is_told_not_to_come_back(last: str, over: bool) -> None:
    one = request("cursor=5&until=99", last_event_id=last)
    opening = finish(dialect().parse_request(one)).opening
    assert opening is not None
    found = opening.accept(one, {})
    assert isinstance(found, Response) == over
    if isinstance(found, Response):
        head = found.encode(0.0, keep_alive=True)
        assert head.startswith(b"HTTP/1.1 204 No Content\r\n")
        assert b"Content-Length" not in head
        assert head.endswith(b"\r\n\r\n")


def test_so_many_streams_are_compressed_and_the_others_are_not() -> None:
    metrics = Metrics()
    streams = dialect(metrics, WebLimits(compressed_streams_max=2))

    def coding(accepted: str) -> bytes:
        one = request(accept_encoding=accepted)
        opening = finish(streams.parse_request(one)).opening
        assert opening is not None
        head = opening.accept(one, {})
        assert isinstance(head, bytes)
        return head.partition(b"Content-Encoding: ")[2].partition(b"\r\n")[0]

    streams.began("gzip")
    assert coding("gzip") == b"gzip"
    streams.began("zstd")
    streams.began("identity")
    assert coding("gzip") == b""
    with pytest.raises(Refused) as caught:
        coding("gzip, identity;q=0")
    assert (caught.value.status, set(caught.value.fields or ())) == (503, {"Retry-After"})
    figures = generate_latest(metrics.registry).decode()
    for name in ("gzip", "zstd", "identity"):
        assert f'jetstream_event_streams{{coding="{name}"}} 1.0' in figures
    streams.ended("gzip")
    assert coding("gzip") == b"gzip"


def test_a_client_that_accepts_nothing_gets_a_406() -> None:
    with pytest.raises(Refused) as caught:
        asked(accept_encoding="br, identity;q=0")
    assert caught.value.status == 406
    assert "zstd, gzip or identity" in caught.value.text


def test_the_end_of_the_server_is_that_of_other_subscriptions() -> None:
    assert dialect().shutdown == SHUTDOWN
    refusal = dialect().refusal(Refused("full", 503, "", "full", {"Retry-After": "10"}))
    assert (refusal.status, refusal.body, refusal.headers) == (503, b"full\n", {"Retry-After": "10"})
