from __future__ import annotations

import h11
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.bench import stream
from jetstream.bench.mix import EVERYTHING
from jetstream.bench.subscription import Position, Readings, Subscription, find_position
from jetstream.bench.transport import TRANSPORTS, EventStream, Transport
from jetstream.delivery.framing.chunked import BodyFraming, ChunkedFraming
from jetstream.delivery.framing.ndjson import NDJSON
from jetstream.delivery.framing.sse import SSE

STREAMS: list[tuple[str, BodyFraming]] = [("ndjson", NDJSON), ("sse", SSE)]
TIMES = range(1_000, 1_050)
MESSAGES = [orjson.dumps({"did": "did:plc:a", "time_us": n, "text": "\r\n{" * (n % 40)}) for n in TIMES]


def body(framing: BodyFraming) -> list[bytes]:
    """Return what a server sends, with something that is no event here and there."""
    chunked = ChunkedFraming(framing)
    frames = chunked.frames(MESSAGES, TIMES)
    return [chunked.start, *frames[:20], chunked.keep_alive, *frames[20:], chunked.end(1001, "bye", 7)]


def subscription(name: str, *, checked: bool = True) -> Subscription:
    return Subscription("somebody", EVERYTHING, Readings(transport=TRANSPORTS[name]), checked=checked)


@pytest.mark.parametrize(("name", "framing"), STREAMS)
@given(sizes=st.lists(st.integers(1, 400), min_size=1))
def test_a_checked_stream_is_the_same_in_any_pieces(
    name: str, framing: BodyFraming, sizes: list[int]
) -> None:
    one, data = subscription(name), b"".join(body(framing))
    for size in sizes:
        one.receive(data[:size], 0)
        data = data[size:]
    assert one.receive(data, 0) == b""
    assert (one.events, one.first_us, one.last_us) == (50, 1_000, 1_049)
    assert one.size == sum(map(len, ChunkedFraming(framing).frames(MESSAGES, TIMES)))
    assert one.close == ('{"code":1001,"reason":"bye; cursor=7"}' if name == "sse" else "the end of the body")
    assert not one.readings.findings.counts


@pytest.mark.parametrize(("name", "framing"), STREAMS)
def test_a_counted_stream_finds_its_position_in_any_piece(name: str, framing: BodyFraming) -> None:
    start, *frames = body(framing)
    one = subscription(name, checked=False)
    one.receive(start + frames[0], 0)
    assert one.first_us == 1_000
    data = b"".join(frames[1:15])
    at = one.size
    last = len(data) - len(frames[14])
    for cut in range(len(frames[1])):
        one.size = at + cut
        assert find_position(one, data[cut:]) == Position(1_014, at + last)
    one.size = at
    assert find_position(one, data[:-1]) == Position(1_013, at + last - len(frames[13]))
    assert find_position(one, data[len(data) - 5 :]) is None


@pytest.mark.parametrize(("name", "framing"), STREAMS)
def test_the_size_of_a_keep_alive_is_known(name: str, framing: BodyFraming) -> None:
    assert len(ChunkedFraming(framing).keep_alive) == TRANSPORTS[name].keep_alive_bytes


@pytest.mark.parametrize("transport", TRANSPORTS.values())
def test_another_library_accepts_our_request(transport: Transport) -> None:
    server = h11.Connection(h11.SERVER)
    server.receive_data(transport.request("localhost:6008", "/x", [("cursor", "1"), ("a", "b c")]))
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert request.target == b"/x?cursor=1&a=b+c"


@pytest.mark.parametrize(
    "data", [b"", b"5", b"5\r\n", b"zz\r\nabc", b"123456789\r\n", b"5\r\nabcd\r\n", b"\r\n"]
)
def test_what_is_no_complete_chunk_is_none(data: bytes) -> None:
    transport = TRANSPORTS["sse"]
    assert isinstance(transport, EventStream)
    assert transport.frame_at(data, 0) is None


def test_a_websocket_answers_pings_and_closes() -> None:
    transport = TRANSPORTS["websocket"]
    ping, close = stream.Frame(stream.PING, b"hi", 0), stream.Frame(stream.CLOSE, b"\x03\xe8bye", 0)
    assert transport.answer(ping) == stream.control(stream.PONG, b"hi")
    assert transport.answer(close) == stream.control(stream.CLOSE, b"\x03\xe8")
    assert transport.close(close.payload) == "1000 bye"
