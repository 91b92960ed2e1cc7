"""Heads of the PROXY protocol: whole, in pieces, with what follows, and what is none."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.web.proxy_head import V1_BYTES_MAX, V2_BYTES_MAX, BadHead, ProxyHead

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PORTS = b"\xdc\x04\x01\xbb"
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def v2(address: str, command: int = 0x21, more: bytes = b"") -> bytes:
    packed = ip_address(address).packed
    body = packed + packed + PORTS + more
    return (
        SIGNATURE + bytes([command, 0x11 if len(packed) == 4 else 0x21]) + len(body).to_bytes(2, "big") + body
    )


def v2_of(kind: int, body: bytes = b"", command: int = 0x21) -> bytes:
    return SIGNATURE + bytes([command, kind]) + len(body).to_bytes(2, "big") + body


def v1(address: str) -> bytes:
    family = "TCP6" if ":" in address else "TCP4"
    server = "::1" if ":" in address else "192.0.2.1"
    return f"PROXY {family} {address} {server} 56324 443\r\n".encode()


def read(data: bytes, size: int) -> tuple[str | None, bytes]:
    """Take a head from pieces of a size. Returns the address, and what was not taken."""
    head, at = ProxyHead(), 0
    while not head.complete:
        piece = data[at : at + size]
        assert piece, "the head is not complete"
        taken = head.take(piece)
        assert 0 < taken <= len(piece)
        at += taken
    return head.address, data[at:]


HEADS = {
    v1("203.0.113.9"): "203.0.113.9",
    v1("2001:db8::1"): "2001:db8::1",
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n": None,
    v2("203.0.113.9"): "203.0.113.9",
    v2("2001:db8::1"): "2001:db8::1",
    v2("203.0.113.9", more=b"\x04\x00\x03abc"): "203.0.113.9",
    v2("203.0.113.9", command=0x20): None,  # LOCAL
    v2_of(0x00): None,  # unspecified
    v2_of(0x00, b"x" * 100): None,
    v2_of(0x00, command=0x20): None,
    v2_of(0x31, bytes(216)): None,  # Unix
    v2_of(0x12, bytes(12)): None,  # UDP
}


@pytest.mark.parametrize("size", [1, 2, 7, 16, 17, 1_000])
@pytest.mark.parametrize("data", HEADS)
def test_a_head_in_pieces_of_any_size(data: bytes, size: int) -> None:
    assert read(data + REQUEST, size) == (HEADS[data], REQUEST)


@given(st.ip_addresses(), st.integers(1, 200), st.booleans(), st.binary(max_size=50))
def test_an_address_comes_as_it_was_sent(
    address: IPv4Address | IPv6Address, size: int, binary: bool, rest: bytes
) -> None:
    head = v2(str(address)) if binary else v1(str(address))
    assert read(head + rest, size) == (str(address), rest)


@pytest.mark.parametrize("data", HEADS)
def test_a_part_of_a_head_is_not_complete(data: bytes) -> None:
    for size in range(1, len(data)):
        head = ProxyHead()
        assert head.take(data[:size]) == size
        assert not head.complete


@pytest.mark.parametrize(
    "data",
    [
        REQUEST,
        b"\x16\x03\x01",
        b"PROXX",
        b"\r\n\r\nG",
        b"PROXY TCP4 203.0.113.9 192.0.2.1 56324\r\n",
        b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443 1\r\n",
        b"PROXY  TCP4 203.0.113.9 192.0.2.1 56324 443\r\n",
        b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
        b"PROXY TCP6 203.0.113.9 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 203.0.113.9 ::1 1 2\r\n",
        b"PROXY TCP4 203.0.113.256 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 203.0.113.9 192.0.2.1 1 65536\r\n",
        b"PROXY TCP4 203.0.113.9 192.0.2.1 +1 2\r\n",
        b"PROXY UDP4 203.0.113.9 192.0.2.1 1 2\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
        b"PROXY TCP4\n" + b" " * 100,
        v2("203.0.113.9", command=0x22),
        v2("203.0.113.9", command=0x11),
        v2_of(0x11, bytes(11)),
        v2_of(0x21, bytes(35)),
        v2_of(0x41, bytes(36)),
        v2_of(0x13, bytes(36)),
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_what_is_no_head(data: bytes) -> None:
    with pytest.raises(BadHead):
        read(data, 1_000)
    with pytest.raises(BadHead):
        read(data, 1)


@given(st.binary(min_size=1, max_size=300), st.integers(1, 50))
def test_any_bytes_are_a_head_or_none_and_never_more_than_may_be(data: bytes, size: int) -> None:
    for start in (b"", b"PROXY ", SIGNATURE):
        head, taken = ProxyHead(), 0
        try:
            for at in range(0, len(start + data), size):
                piece = (start + data)[at : at + size]
                taken += (count := head.take(piece))
                assert 0 < count <= len(piece)
                if head.complete:
                    break
        except BadHead:
            pass
        assert taken <= (V1_BYTES_MAX if start == b"PROXY " else V2_BYTES_MAX)
