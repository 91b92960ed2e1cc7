from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.delivery.framing.chunked import COMPLETE, BodyFraming, ChunkedFraming, chunk
from jetstream.delivery.framing.ndjson import NDJSON
from jetstream.delivery.framing.sse import SSE

BODIES = [NDJSON, SSE]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(body: bytes) -> tuple[bytes, bool]:
    """Return what h11 reads, and whether the body was complete."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(HEAD + body)
    data = b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            return data, False
        if isinstance(event, h11.Data):
            data += bytes(event.data)
    return data, True


@given(st.lists(st.binary(max_size=300)))
def test_chunks_hold_what_they_were_made_of(parts: list[bytes]) -> None:
    assert read(b"".join(map(chunk, parts))) == (b"".join(parts), False)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    ("code", "complete"), [*((code, True) for code in COMPLETE), (1008, False), (1011, False)]
)
def test_a_body_in_chunks_is_the_same_body(body: BodyFraming, code: int, complete: bool) -> None:
    def whole(framing: BodyFraming) -> bytes:
        frames = framing.frames([b"{}", b"", b"[1]"], [1, 2, 3])
        return framing.start + b"".join(frames) + framing.keep_alive + framing.end(code, "bye", 4)

    assert read(whole(ChunkedFraming(body))) == (whole(body), complete)


@pytest.mark.parametrize("body", BODIES)
def test_the_chunk_of_a_declined_event_is_not_the_last_chunk(body: BodyFraming) -> None:
    assert ChunkedFraming(body).frames([b""], [1]) == [b""]
