from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from jetstream.bench import stream

payloads = st.one_of(st.binary(max_size=200), st.sampled_from([125, 126, 65_535, 65_536]).map(bytes))


def serialized(payload: bytes, opcode: int = Opcode.TEXT, *, mask: bool = False) -> bytes:
    """Write a frame as another library does."""
    return Frame(Opcode(opcode), payload).serialize(mask=mask)


@given(st.lists(st.tuples(st.sampled_from([stream.TEXT, stream.BINARY]), payloads), max_size=5), st.data())
def test_frames_are_found_whole_and_only_whole(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    wire = b"".join(serialized(payload, opcode) for opcode, payload in sent)
    cut = data.draw(st.integers(0, len(wire)))
    found, used = stream.frames(wire[:cut])
    rest, used_rest = stream.frames(wire[used:])
    assert [(frame.opcode, frame.payload) for frame in found + rest] == sent
    assert used + used_rest == len(wire)


def test_each_frame_says_where_it_begins() -> None:
    wire = serialized(b"x" * 300) + serialized(b"yy") + serialized(b"z" * 70_000)
    found, _ = stream.frames(wire)
    assert [stream.frame_at(wire, frame.start) for frame in found] == found
    assert [len(f.payload) + stream.head_bytes(len(f.payload)) for f in found] == [304, 4, 70_010]


def test_the_key_is_accepted_as_the_protocol_says() -> None:
    # RFC 6455, section 1.3
    assert stream.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_another_library_accepts_our_request_and_our_answer_is_its_own() -> None:
    request = stream.request("localhost:6008", "/subscribe", [("wantedDids", "did:plc:a"), ("cursor", "1")])
    server = ServerProtocol()
    server.receive_data(request)
    (received,) = server.events_received()
    assert isinstance(received, Request)
    assert received.path == "/subscribe?wantedDids=did%3Aplc%3Aa&cursor=1"
    theirs = server.accept(received)
    ours, rest = stream.split_head(stream.response(request) + b"rest") or (b"", b"")
    assert stream.status(ours) == theirs.status_code == 101
    assert stream.header(ours, "sec-websocket-accept") == theirs.headers["Sec-WebSocket-Accept"]
    assert rest == b"rest"


def test_a_head_is_not_split_before_its_end() -> None:
    assert stream.split_head(b"HTTP/1.1 101 OK\r\nA: b\r\n") is None


@pytest.mark.parametrize("head", [b"", b"SSH-2.0", b"HTTP/1.1", b"HTTP/1.1 abc"])
def test_what_is_no_answer_has_no_status(head: bytes) -> None:
    assert stream.status(head) == 0


def test_a_missing_header_is_named() -> None:
    with pytest.raises(ValueError, match="no sec-websocket-key"):
        stream.header(b"GET / HTTP/1.1\r\nHost: x", "sec-websocket-key")


@given(st.binary(max_size=125), st.sampled_from([stream.PING, stream.CLOSE]))
def test_a_masked_frame_is_read_whatever_its_mask(payload: bytes, opcode: int) -> None:
    wire = serialized(payload, opcode, mask=True)
    assert stream.unmask(wire) == (opcode, payload)
    assert stream.unmask(wire[:-1]) is None
    assert stream.unmask(stream.control(opcode, payload, masked=True)) == (opcode, payload)
    assert stream.control(opcode, payload, masked=False) == serialized(payload, opcode)
