"""Damaged requests: each is answered or closed in time, and none is an error of the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutations import damaged
from tests.fuzz.server import Target, target

from jetstream.bench import stream

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
EVENTS = (
    b"GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream;q=0.5, */*\r\n"
    b"Accept-Encoding: gzip;q=0.1, zstd, *;q=0\r\nLast-Event-ID: 1725516666833633\r\n\r\n"
)
WHOLE = (
    HEALTH,
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n" + HEALTH,
    b"HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    (
        b"GET /subscribers.json?after=0&limit=3&access_token=a HTTP/1.1\r\nHost: localhost\r\n"
        b"Authorization: Bearer a\r\n\r\n"
    ),
    (
        b"POST /subscribers/kick HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n"
        b'{"ids":[1,2],"addresses":["::1"],"reason":"later"}'
    ),
    b"POST /subscribe HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    stream.request("a", "/subscribe", [("cursor", "1"), ("wantedCollections", "app.bsky.*")]),
    stream.request("a", "/subscribe", [("compress", "true"), ("requireHello", "true")]),
    EVENTS,
    EVENTS.replace(b"/events", b"/events?limit=3&cursor=0&wire=v2").replace(b"1.1", b"1.0") + HEALTH,
    stream.request("a", "/v1/subscribe", [("wantedDids", "did:plc:stk5dhwhpcjxtlwnhbknmfgx")]),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with target(tmp_path_factory.mktemp("server")) as found:
        yield found


def heads() -> st.SearchStrategy[bytes]:
    """Draw requests made of parts, each of which may be wrong."""
    lines = st.sampled_from(
        [
            b"GET / HTTP/1.1",
            b"GET /subscribe HTTP/1.1",
            b"GET /events HTTP/1.1",
            b"get / http/9",
            b"\x16\x03\x01",
            b"",
        ]
    )
    names = st.sampled_from(
        [
            b"Accept",
            b"Accept-Encoding",
            b"Last-Event-ID",
            b"Host",
            b"Upgrade",
            b"Connection",
            b"Content-Length",
            b"Transfer-Encoding",
            b"X\0",
        ]
    )
    more = st.sampled_from(
        [b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"Socket-Encoding", b"Cookie", b""]
    )
    values = st.sampled_from(
        [b"a", b"websocket", b"Upgrade", b"chunked", b"-1", b"9" * 30, b"\xff", b"zstd", b"gzip;q=0", b"8"]
    )
    field = st.tuples(names | more, values | st.binary(max_size=20)).map(b": ".join)
    long = st.integers(1, 90_000).map(lambda size: b"X: " + b"a" * size)
    fields = st.lists(field | long, max_size=8)
    ends = st.sampled_from([b"\r\n\r\n", b"\n\n", b"", b"\r\n"])
    return st.builds(lambda line, some, end: b"\r\n".join([line, *some]) + end, lines, fields, ends)


def test_any_request_is_answered_or_cut(fuzz: Fuzz, server: Target) -> None:
    def check(data: bytes) -> None:
        answer = server.send(data)
        assert answer[:5] in {b"", b"HTTP/"}
        assert not answer.startswith(b"HTTP/1.1 500")
        assert server.send(HEALTH).startswith(b"HTTP/1.1 200")
        server.check()

    fuzz(check, damaged(st.sampled_from(WHOLE)) | heads() | st.binary(max_size=200), 300)
