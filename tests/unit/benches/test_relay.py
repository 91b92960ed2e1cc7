from __future__ import annotations

import pytest
from benches.relay import unmask, upgrade_response
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri


def test_another_library_accepts_its_response() -> None:
    client = ClientProtocol(parse_uri("ws://localhost"))
    client.send_request(client.connect())
    client.receive_data(upgrade_response(b"".join(client.data_to_send())))
    assert client.state is State.OPEN


def test_a_request_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="no Sec-WebSocket-Key"):
        upgrade_response(b"GET / HTTP/1.1\r\nHost: x")


@given(st.binary(max_size=125), st.sampled_from([Opcode.PING, Opcode.CLOSE]))
def test_a_masked_frame_is_read_whatever_its_mask(payload: bytes, opcode: Opcode) -> None:
    wire = Frame(opcode, payload).serialize(mask=True)
    assert unmask(wire) == (opcode, payload)
    assert unmask(wire[:-1]) is None
