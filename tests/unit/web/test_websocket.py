from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame as Sent
from websockets.frames import Opcode

from jetstream.delivery.framing.websocket import BINARY, TEXT
from jetstream.limits import WebLimits
from jetstream.web.http import BadRequest, Request
from jetstream.web.websocket import (
    CLOSE,
    CONTINUATION,
    MESSAGE_BYTES_MAX,
    PING,
    PONG,
    Breach,
    Frame,
    FrameReader,
    RateLimiter,
    accept,
    unmask,
    wants_upgrade,
)

LIMITS = WebLimits()
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def sent(opcode: int, data: bytes = b"", *, final: bool = True) -> bytes:
    return Sent(Opcode(opcode), data, final).serialize(mask=True)


def head(data: bytes) -> str:
    """Name a case by its first two bytes: masks are random."""
    return data[:2].hex()


def read(data: bytes) -> list[Frame]:
    reader, frames = FrameReader(LIMITS), []
    reader.feed(data)
    while (frame := reader.next(0.0)) is not None:
        frames.append(frame)
    return frames


def breach(data: bytes) -> tuple[int, str]:
    with pytest.raises(Breach) as caught:
        read(data)
    return caught.value.close.code, caught.value.close.label


def request(**headers: str) -> Request:
    given = {"upgrade": "WebSocket", "connection": "keep-alive, Upgrade"}
    given |= {"sec-websocket-version": "13", "sec-websocket-key": KEY}
    return Request("GET", "/", "", 1, given | {k.replace("_", "-"): v for k, v in headers.items()})


def test_the_handshake_of_the_specification() -> None:
    assert wants_upgrade(request())
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in accept(request(), {})


def test_the_response_to_a_handshake_has_more_fields_where_given() -> None:
    head, _, rest = accept(request(), {"Jetstream-Wire": "v1"}).partition(b"\r\n\r\n")
    assert (head.split(b"\r\n")[0], rest) == (b"HTTP/1.1 101 Switching Protocols", b"")
    assert b"Jetstream-Wire: v1" in head.split(b"\r\n")


@pytest.mark.parametrize("headers", [{"upgrade": "h2c"}, {"connection": "close"}, {"upgrade": ""}])
def test_other_requests_want_no_websocket(headers: dict[str, str]) -> None:
    assert not wants_upgrade(request(**headers))


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        *[("sec_websocket_version", value, 426) for value in ("8", "", "99", "13, 8")],
        *[
            ("sec_websocket_key", value, 400)
            for value in ("", "x", KEY[:-4], KEY + "AAAA", "é" * 24, "=" * 24)
        ],
    ],
)
def test_a_bad_handshake_is_refused(header: str, value: str, status: int) -> None:
    with pytest.raises(BadRequest) as caught:
        accept(request(**{header: value}), {})
    assert (caught.value.status, caught.value.reason) == (status, "handshake")


def test_a_handshake_in_http_1_0_is_refused() -> None:
    good = request()
    with pytest.raises(BadRequest) as caught:
        accept(Request("GET", "/", "", 0, good.headers), {})
    assert caught.value.status == 400


@given(st.binary(max_size=1000), st.binary(min_size=4, max_size=4))
def test_unmasking_is_exclusive_or(data: bytes, mask: bytes) -> None:
    assert unmask(data, mask) == bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


MESSAGES_SENT = [
    (TEXT, b""),
    (TEXT, b"x" * 125),
    (BINARY, b"x" * 126),
    (PING, b"p" * 125),
    (TEXT, b"x" * 65_535),
    (PONG, b""),
    (TEXT, b"x" * 65_536),
    (CLOSE, b"\x03\xe8bye"),
]


@given(st.lists(st.integers(0, 140_000), max_size=9))
def test_chunking_does_not_matter(cuts: list[int]) -> None:
    data = b"".join(sent(*each) for each in MESSAGES_SENT)
    reader, seen = FrameReader(LIMITS), []
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in pairwise(places):
        reader.feed(data[start:stop])
        while (frame := reader.next(0.0)) is not None:
            seen.append(frame)
    assert seen == [Frame(*each) for each in MESSAGES_SENT]
    assert len(reader) == 0


def test_a_message_in_fragments_is_one_with_control_frames_between() -> None:
    data = sent(TEXT, b"a", final=False) + sent(PING, b"p") + sent(CONTINUATION, b"b", final=False)
    frames = read(data + sent(CONTINUATION, b"c") + sent(TEXT, b"d"))
    assert [frame for frame in frames if frame.opcode != CONTINUATION] == [
        (PING, b"p"),
        (TEXT, b"abc"),
        (TEXT, b"d"),
    ]


MASK = b"\0\0\0\0"


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\x01x",  # not masked
        b"\x89\x00",
        b"\x88\x00",
        b"\x83\x80" + MASK,
        b"\x8b\x80" + MASK,
        b"\xc1\x80" + MASK,
        b"\xa1\x80" + MASK,
        b"\x91\x80" + MASK,
        b"\x80\x80" + MASK,  # the rest of what has not begun
        sent(TEXT, b"a", final=False) + sent(TEXT, b"b"),  # one begins in the middle of another
        b"\x09\x80" + MASK,
        b"\x89\xfe\x00\x7e" + MASK + b"x" * 126,
        b"\x88\x81" + MASK + b"x",
        *[sent(CLOSE, code.to_bytes(2, "big")) for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)],
        sent(CLOSE, b"\x03\xe8\xff"),
    ],
    ids=head,
)
def test_a_breach_of_the_protocol(data: bytes) -> None:
    assert breach(data) == (1002, "protocol")


def test_the_longest_message_is_read() -> None:
    assert len(read(sent(TEXT, b"x" * MESSAGE_BYTES_MAX))[0].data) == MESSAGE_BYTES_MAX
    half = b"x" * (MESSAGE_BYTES_MAX // 2)
    assert len(read(sent(TEXT, half, final=False) + sent(CONTINUATION, half))[1].data) == MESSAGE_BYTES_MAX


@pytest.mark.parametrize(
    "data",
    [
        sent(TEXT, b"x" * (MESSAGE_BYTES_MAX + 1))[:14],
        b"\x82\xff" + b"\xff" * 8 + MASK,
        sent(TEXT, b"x", final=False) + sent(CONTINUATION, b"x" * MESSAGE_BYTES_MAX)[:14],
    ],
    ids=head,
)
def test_a_longer_one_is_refused_by_its_head(data: bytes) -> None:
    assert breach(data) == (1009, "message_too_big")


@pytest.mark.parametrize(
    "data",
    [
        sent(TEXT, b"{}") * (LIMITS.messages.burst + 1),
        sent(BINARY) * (LIMITS.messages.burst + 1),
        sent(PING) * (LIMITS.control_frames.burst + 1),
        sent(PONG, b"x" * 125) * (LIMITS.control_frames.burst + 1),
        (sent(PING) + sent(PONG)) * (LIMITS.control_frames.burst // 2 + 1),
        sent(TEXT, b"x", final=False) + sent(CONTINUATION, b"x", final=False) * LIMITS.fragments.burst,
        sent(TEXT, b"", final=False) + sent(CONTINUATION, b"", final=False) * LIMITS.fragments.burst,
        (sent(TEXT, b"x", final=False) + sent(CONTINUATION)) * (LIMITS.messages.burst + 1),
        sent(TEXT, b"x" * 999_999) * (LIMITS.message_bytes.burst // 999_999 + 1),
    ],
)
def test_more_than_a_client_may_send_at_once(data: bytes) -> None:
    assert breach(data) == (1008, "flood")


def test_what_is_promised_passes_for_minutes() -> None:
    limiter = RateLimiter(0.0, LIMITS)
    for tick in range(10 * 300):
        limiter.take_message(3_600, tick / 10)
        limiter.take_control(125, tick / 10)
        if tick % 10 == 0:
            limiter.take_message(360_000, tick / 10)


def test_what_a_client_saved_is_no_more_than_a_burst() -> None:
    limiter = RateLimiter(0.0, LIMITS)
    for _ in range(LIMITS.messages.burst):
        limiter.take_message(1, 1e6)
    with pytest.raises(Breach):
        limiter.take_message(1, 1e6)
    limiter.take_message(1, 1e6 + 1)


@given(st.binary(max_size=200))
def test_no_input_is_an_error_of_ours(data: bytes) -> None:
    with suppress(Breach):
        read(data)
