"""Damaged frames of a client: its connection goes on or is closed with a code, and others go on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutations import damaged
from tests.fuzz.server import PATIENCE_S, Target, target

from jetstream.bench import stream

CODES = range(1000, 5000)  # RFC 6455, section 7.4
FAULT = 1011  # an error of the server, unless it is the client's own code that comes back
DID = "did:plc:stk5dhwhpcjxtlwnhbknmfgx"
OPCODES = (
    stream.CONTINUATION,
    stream.TEXT,
    stream.BINARY,
    stream.CLOSE,
    stream.PING,
    stream.PONG,
    3,
    7,
    11,
    15,
)


class Frame(NamedTuple):
    """A frame of a client. `length` is a false length of its payload, in `width` bytes."""

    fin: bool
    reserved: int
    opcode: int
    masked: bool
    payload: bytes
    length: int | None
    width: int

    def encode(self) -> bytes:
        first = self.fin << 7 | self.reserved << 4 | self.opcode
        size = len(self.payload) if self.length is None else self.length
        mask = bytes(4) if self.masked else b""
        return bytes((first,)) + self._size(size) + mask + self.payload

    def _size(self, size: int) -> bytes:
        bit = self.masked << 7
        if size < 126 and not self.width:
            return bytes((bit | size,))
        if size < 1 << 16 and self.width < 8:
            return bytes((bit | 126,)) + size.to_bytes(2, "big")
        return bytes((bit | 127,)) + size.to_bytes(8, "big")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with target(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(scope="module")
def neighbour(server: Target) -> Iterator[socket.socket]:
    with server.subscribe() as connection:
        yield connection


def updates() -> st.SearchStrategy[bytes]:
    """Draw messages that are options, or nearly."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
    names = st.sampled_from(["app.bsky.*", "app.bsky.feed.post", DID, "*", "a.b", "", "\ud800", "did:plc:x"])
    values = st.recursive(
        scalars | names, lambda one: st.lists(one, max_size=5) | st.dictionaries(names, one)
    )
    keys = st.sampled_from(["wantedCollections", "wantedDids", "maxMessageSizeBytes", "cursor"])
    payloads = st.dictionaries(keys, values) | values
    types = st.sampled_from(["options_update", "hello", 1, None])
    whole = st.builds(lambda t, p: json.dumps({"type": t, "payload": p}).encode(), types, payloads)
    deep = st.integers(1, 3_000).map(lambda depth: b"[" * depth)
    return whole | damaged(whole) | deep | st.binary(max_size=130)


def frames() -> st.SearchStrategy[bytes]:
    usual = st.builds(
        Frame,
        fin=st.booleans() | st.just(True),
        reserved=st.just(0) | st.integers(0, 7),
        opcode=st.sampled_from(OPCODES) | st.just(stream.TEXT),
        masked=st.just(True) | st.booleans(),
        payload=updates() | st.integers(0, 65_535).map(lambda code: code.to_bytes(2, "big") + b"bye"),
        length=st.none() | st.sampled_from([0, 125, 126, 65_535, 65_536, 1_000_001, 1 << 31, 1 << 63]),
        width=st.sampled_from([0, 0, 0, 2, 8]),
    )
    return usual.map(Frame.encode)


def close_codes(data: bytes) -> list[int]:
    """Return the codes of the close frames; all before them must be whole frames that a server may send."""
    found, _ = stream.frames(data)
    assert all(frame.opcode in {stream.TEXT, stream.CLOSE, stream.PING, stream.PONG} for frame in found)
    closes = [frame.payload for frame in found if frame.opcode == stream.CLOSE]
    return [int.from_bytes(payload[:2], "big") if payload else 1005 for payload in closes]


def goes_on(neighbour: socket.socket) -> bool:
    """Tell whether a reader still gets events."""
    neighbour.setblocking(False)
    with suppress(BlockingIOError):
        while neighbour.recv(1 << 20):
            pass
    neighbour.settimeout(PATIENCE_S)
    return bool(neighbour.recv(1 << 20))


def test_any_frames_are_taken_or_the_connection_is_closed(
    fuzz: Fuzz, server: Target, neighbour: socket.socket
) -> None:
    request = stream.request("a", "/subscribe", [])

    def check(some: list[bytes]) -> None:
        answer = server.send(request, *some)
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert not answer or stream.status(head) == 101
        codes = close_codes(rest)
        assert len(codes) <= 1
        assert all(code in CODES for code in codes)
        assert FAULT not in codes or FAULT.to_bytes(2, "big") in b"".join(some)
        assert goes_on(neighbour)
        server.check()

    fuzz(check, st.lists(frames(), min_size=1, max_size=8), 100)
