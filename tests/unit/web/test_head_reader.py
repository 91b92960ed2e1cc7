from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jetstream.limits import WebLimits
from jetstream.metrics import BAD_REQUEST_REASONS
from jetstream.web.head_reader import (
    EMPTY_LINES_MAX,
    FIELD_BYTES_MAX,
    FIELDS_BYTES_MAX,
    REQUEST_LINE_BYTES_MAX,
    HeadReader,
)
from jetstream.web.http import BadRequest, Request

LIMITS = WebLimits()
HEAD = b"GET /subscribe?a=1 HTTP/1.1\r\nHost: here:1\r\nUpgrade: websocket\r\nX:  a, b \r\n\r\n"


def read(data: bytes) -> Request:
    reader = HeadReader(LIMITS)
    reader.feed(data)
    request = reader.next()
    assert request is not None
    return request


def refused(data: bytes) -> tuple[int, str]:
    with pytest.raises(BadRequest) as caught:
        read(data)
    assert len(caught.value.text) < 200
    assert caught.value.text.isprintable()
    assert caught.value.reason in BAD_REQUEST_REASONS
    return caught.value.status, caught.value.reason


def with_fields(*fields: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"Host: x", *fields, b"", b""])


def test_a_request_is_read() -> None:
    request = read(HEAD)
    assert (request.method, request.path, request.query, request.minor) == ("GET", "/subscribe", "a=1", 1)
    assert (request.host, request.headers["x"], request.headers["upgrade"]) == (
        "here:1",
        "a, b",
        "websocket",
    )
    assert request.keep_alive


@given(st.lists(st.integers(0, 2 * len(HEAD)), max_size=9))
def test_chunking_does_not_matter(cuts: list[int]) -> None:
    data, reader, seen = HEAD * 2, HeadReader(), []
    places = [0, *sorted(cuts), len(data)]
    for start, stop in pairwise(places):
        reader.feed(data[start:stop])
        while (request := reader.next()) is not None:
            seen.append(request.path)
    assert seen == ["/subscribe"] * 2
    assert len(reader) == 0


def test_one_byte_at_a_time_is_a_request_too() -> None:
    reader = HeadReader()
    for byte in HEAD[:-1]:
        reader.feed(bytes((byte,)))
        assert reader.next() is None
    reader.feed(HEAD[-1:])
    assert reader.next() is not None


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://example.com/health", "/health", ""),
        (b"HTTPS://example.com:1?a=b", "/", "a=b"),
        (b"/he%61lth#there", "/health", ""),
        (b"*", "*", ""),
        (b"/%ff", "/\ufffd", ""),
    ],
)
def test_targets(target: bytes, path: str, query: str) -> None:
    request = read(with_fields(line=b"GET " + target + b" HTTP/1.1"))
    assert (request.path, request.query) == (path, query)


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [(b"1.1", b"", True), (b"1.1", b"Close", False), (b"1.0", b"", False), (b"1.0", b"x, Keep-Alive", True)],
)
def test_whether_the_connection_is_kept(version: bytes, connection: bytes, kept: bool) -> None:
    data = with_fields(b"Connection: " + connection, line=b"GET / HTTP/" + version)
    assert read(data).keep_alive == kept


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
        b"A" * 33,
        b" GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\n",
        b"GET /\r\n",
        b"GET  / HTTP/1.1\r\n",
        b"GET / HTTP/1.1 \r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\n",
        b"GET /\x00 HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: x\n",
        b"\r\n" * (EMPTY_LINES_MAX + 1),
        b"\x00",
        b"\n",
        with_fields(b" folded: field"),
        with_fields(b"no colon"),
        with_fields(b": no name"),
        with_fields(b"space : before the colon"),
        with_fields(b"Transfer-Encoding : chunked"),
        with_fields(b"na(me: no token"),
        with_fields(b"\xc3\xa9: no token"),
        with_fields(b"X: \x00"),
        with_fields(b"X: a\rb"),
        with_fields(b"X: \x01" + b"c" * 10_000),
        with_fields(b"Host: y"),
        with_fields(b"Content-Length: 1", b"Content-Length: 2"),
        with_fields(b"Content-Length: 0x1"),
        with_fields(b"Content-Length: "),
        with_fields(b"Content-Length: -1"),
        with_fields(b"Content-Length: +1"),
        with_fields(b"Content-Length: 1_0"),
        with_fields(b"Content-Length: \xb2"),
        with_fields(b"Content-Length: 1 1"),
        with_fields(b"Content-Length: 1, 11"),
        with_fields(b"Content-Length: 1,"),
        with_fields(b"Content-Length: " + b"0" * 21),
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: <script>\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: " + b"x" * 256 + b"\r\n\r\n",
    ],
)
def test_what_is_malformed_is_refused(data: bytes) -> None:
    assert refused(data) == (400, "malformed")


@pytest.mark.parametrize("line", [b"PRI * HTTP/2.0", b"GET / HTTP/1.2", b"GET / HTTP/0.9", b"GET / HTTP/3.0"])
def test_other_versions_are_refused(line: bytes) -> None:
    assert refused(line + b"\r\n\r\nSM\r\n\r\n") == (505, "version")


@pytest.mark.parametrize(
    "field", [b"Content-Length: 1", b"Content-Length: 0001", b"Transfer-Encoding: chunked"]
)
def test_a_body_is_refused(field: bytes) -> None:
    assert refused(with_fields(field)) == (413, "body")


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, chunked", b"identity", b"", b"chunked;"])
def test_other_codings_of_a_body_are_not_implemented(coding: bytes) -> None:
    assert refused(with_fields(b"Transfer-Encoding: " + coding)) == (501, "body")


def test_codings_are_not_put_together() -> None:
    assert refused(with_fields(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")) == (501, "body")


@pytest.mark.parametrize("fields", [[b"0"], [b"0", b"0"], [b"0, 0 ,\t0"], [b"00"]])
def test_a_body_of_nothing_is_none(fields: list[bytes]) -> None:
    assert read(with_fields(*[b"Content-Length: " + value for value in fields])).path == "/"


def test_the_longest_request_is_read() -> None:
    start, end = b"GET /?", b" HTTP/1.1"
    line = start + b"x" * (REQUEST_LINE_BYTES_MAX - len(start + end) - 1) + end
    fields = [b"X: " + b"y" * (FIELD_BYTES_MAX - 10)] * 3
    assert len(read(with_fields(*fields, line=line)).query) > 1_000_000


def test_a_longer_line_is_refused_before_its_end() -> None:
    assert refused(b"GET /" + b"x" * REQUEST_LINE_BYTES_MAX) == (414, "too_long")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nX: " + b"a" * FIELD_BYTES_MAX,
        with_fields(b"X: " + b"a" * FIELD_BYTES_MAX),
        with_fields(*[b"X: " + b"a" * 10_000] * (FIELDS_BYTES_MAX // 10_000 + 1)),
        with_fields(*[b"x:y"] * LIMITS.header_fields_max),
        b"GET / HTTP/1.1\r\n" + b"x:y\r\n" * (LIMITS.header_fields_max + 1),
    ],
)
def test_too_much_in_the_fields_is_refused(data: bytes) -> None:
    assert refused(data) == (431, "too_long")


# A second opinion: h11, which is strict and known.

NAMES = [b"Host", b"host", b"Content-Length", b"CONTENT-LENGTH", b"Transfer-Encoding", b"X", b"X ", b" X"]
VALUES = [b"x", b"", b"0", b"1", b"0, 0", b"0,1", b"00", b"chunked", b"Chunked ", b"gzip, chunked", b"a\x0bb"]
TARGETS = [b"/", b"*", b"/a?b=c", b"http://x/y", b"/\x7f", b"/\xff", b"x:443", b""]
spaces = st.sampled_from([b"", b" ", b"\t ", b"\r", b"\x0c"])
fields = st.builds(
    lambda name, before, value, after: name + b":" + before + value + after,
    st.sampled_from(NAMES) | st.binary(max_size=3),
    spaces,
    st.sampled_from(VALUES) | st.binary(max_size=6),
    spaces,
)
heads = st.builds(
    lambda line, some, end: end.join([b" ".join(line), *some, b"", b""]),
    st.tuples(
        st.sampled_from([b"GET", b"POST", b"OPTIONS", b"get", b"G(T", b""]),
        st.sampled_from(TARGETS),
        st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.1 ", b"http/1.1", b"HTTP/2.0"]),
    ),
    st.lists(fields, max_size=4),
    st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"]),
)


@given(heads)
@example(with_fields(b"Content-Length: 0", b"Content-Length: 00", line=b"POST / HTTP/1.1"))
@example(with_fields(b"a: 1", b"A:\t2\t", b"a:"))
def test_nothing_is_accepted_that_h11_refuses(data: bytes) -> None:
    """And what is accepted says the same to both."""
    try:
        request = read(data)
    except (AssertionError, BadRequest):  # refused, or not complete
        return
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(data)
    other = parser.next_event()
    assert isinstance(other, h11.Request)
    assert (request.method.encode(), b"1.%d" % request.minor) == (other.method, other.http_version)
    values: dict[str, list[str]] = {}
    for field, value in other.headers:
        values.setdefault(field.decode(), []).append(value.decode("latin-1"))
    assert request.headers.keys() == values.keys()
    for name in values.keys() - {"content-length", "transfer-encoding"}:
        assert request.headers[name] == ", ".join(values[name])
    assert request.headers.get("content-length") == values.get("content-length", [None])[0]


@given(st.binary(max_size=300))
def test_no_input_is_an_error_of_ours(data: bytes) -> None:
    reader = HeadReader()
    reader.feed(data)
    with suppress(BadRequest):
        while reader.next() is not None:
            pass


BODIES = {"/filters": 10}


def posted(fields: bytes, rest: bytes = b"", path: bytes = b"/filters") -> HeadReader:
    reader = HeadReader(LIMITS, BODIES)
    reader.feed(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n" + rest)
    return reader


@pytest.mark.parametrize("path", [b"/filters", b"/filters/", b"/filters?a=b", b"/%66ilters"])
def test_a_post_to_a_path_that_takes_a_body_has_one(path: bytes) -> None:
    request = posted(b"Content-Length: 4\r\n", b"abcd", path).next()
    assert request is not None
    assert (request.method, request.body) == ("POST", b"abcd")


def test_what_follows_a_body_is_the_next_request() -> None:
    reader = posted(b"Content-Length: 4\r\n", b"GET " + HEAD)
    first, second = reader.next(), reader.next()
    assert first is not None
    assert second is not None
    assert (first.body, second.method, second.path) == (b"GET ", "GET", "/subscribe")


@given(st.integers(0, 10))
def test_a_body_may_come_in_pieces(cut: int) -> None:
    reader = posted(b"Content-Length: 10\r\n", b"0123456789"[:cut])
    if cut < 10:
        assert reader.next() is None
        assert reader.in_request
        reader.feed(b"0123456789"[cut:])
    request = reader.next()
    assert request is not None
    assert request.body == b"0123456789"
    assert not reader.in_request


def test_a_body_that_looks_like_a_request_is_none() -> None:
    """Its first part has come; where the next request begins is counted from the end of the body."""
    body = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n, and more"
    reader = HeadReader(LIMITS, {"/filters": len(body)})
    head = with_fields(b"Content-Length: %d" % len(body), line=b"POST /filters HTTP/1.1")
    reader.feed(head + body[:-4])
    assert reader.next() is None
    reader.feed(body[-4:] + HEAD)
    request, following = reader.next(), reader.next()
    assert request is not None
    assert request.body == body
    assert following is not None
    assert (following.path, following.query) == ("/subscribe", "a=1")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"", 411),
        (b"Transfer-Encoding: chunked\r\n", 411),
        (b"Content-Length: 11\r\n", 413),
        (b"Content-Length: 99999999999999999999\r\n", 413),
        (b"Content-Length: -1\r\n", 400),
        (b"Content-Length: 4\r\nContent-Length: 5\r\n", 400),
    ],
)
def test_a_body_must_have_a_length_that_is_allowed(fields: bytes, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        posted(fields, b"abcd").next()
    assert caught.value.status == status


def test_an_empty_body() -> None:
    request = posted(b"Content-Length: 0\r\n").next()
    assert request is not None
    assert request.body == b""


@pytest.mark.parametrize(("rest", "waits"), [(b"", True), (b"a", False)])
def test_a_client_may_wait_to_be_told_to_send_its_body(rest: bytes, waits: bool) -> None:
    reader = posted(b"Content-Length: 4\r\nExpect: 100-continue\r\n", rest)
    assert reader.next() is None
    assert reader.continues == waits


def test_other_methods_have_no_body_there() -> None:
    reader = HeadReader(LIMITS, BODIES)
    reader.feed(with_fields(b"Content-Length: 4", line=b"GET /filters HTTP/1.1"))
    with pytest.raises(BadRequest):
        reader.next()
