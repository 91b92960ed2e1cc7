from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from jetstream.bench import stream

payloads = st.one_of(st.binary(max_size=200), st.sampled_from([125, 126, 65_535, 65_536]).map(bytes))


def serialized(payload: bytes, opcode: int = Opcode.TEXT) -> bytes:
    """Write a server's frame as another library does."""
    return Frame(Opcode(opcode), payload).serialize(mask=False)


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


def test_another_library_accepts_our_request_and_we_read_its_response() -> None:
    request = stream.request("localhost:6008", "/subscribe", [("wantedDids", "did:plc:a"), ("cursor", "1")])
    server = ServerProtocol()
    server.receive_data(request)
    (received,) = server.events_received()
    assert isinstance(received, Request)
    assert received.path == "/subscribe?wantedDids=did%3Aplc%3Aa&cursor=1"
    server.send_response(server.accept(received))
    head, rest = stream.split_head(b"".join(server.data_to_send()) + b"rest") or (b"", b"")
    assert stream.status(head) == 101
    assert rest == b"rest"


def test_a_head_is_not_split_before_its_end() -> None:
    assert stream.split_head(b"HTTP/1.1 101 OK\r\nA: b\r\n") is None


@pytest.mark.parametrize("head", [b"", b"SSH-2.0", b"HTTP/1.1", b"HTTP/1.1 abc"])
def test_what_is_no_response_has_no_status(head: bytes) -> None:
    assert stream.status(head) == 0


@given(st.binary(max_size=125), st.sampled_from([Opcode.PING, Opcode.PONG]))
def test_another_library_reads_our_control_frames(payload: bytes, opcode: Opcode) -> None:
    server = ServerProtocol(state=State.OPEN)
    server.receive_data(stream.control(opcode, payload))
    assert server.events_received() == [Frame(opcode, payload)]


@pytest.mark.parametrize(
    ("payload", "words"), [(b"\x03\xe9bye", "1001 bye"), (b"\x03\xe8", "1000"), (b"", "1005")]
)
def test_a_close_is_written_as_its_code_and_reason(payload: bytes, words: str) -> None:
    assert stream.close_words(payload) == words
