"""Whom the `X-Forwarded-*` fields are believed, and what is read from them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.settings import parse_networks
from jetstream.web.http import Request
from jetstream.web.proxies import client_of, unmapped

TRUSTED = parse_networks("127.0.0.1, ::1, 10.0.0.0/8")
ADDRESSES = st.ip_addresses().map(str)


def request(**fields: str) -> Request:
    headers = {"host": "localhost:6008"} | {f"x-forwarded-{name}": value for name, value in fields.items()}
    return Request("GET", "/", "", 1, headers)


def forwarded(value: str, **fields: str) -> Request:
    return Request("GET", "/", "", 1, {"host": "localhost:6008", "forwarded": value, **fields})


FORWARDED = request(**{"for": "203.0.113.9", "proto": "https", "host": "jetstream.example"})


@pytest.mark.parametrize("peer", ["192.0.2.1", "::2", "", "unix", "11.0.0.1"])
def test_others_are_not_believed(peer: str) -> None:
    assert client_of(FORWARDED, peer, TRUSTED) == (peer, FORWARDED)


def test_nobody_is_believed_by_default() -> None:
    assert client_of(FORWARDED, "127.0.0.1", ()) == ("127.0.0.1", FORWARDED)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:0:1", "::ffff:0:1"),
        ("", ""),
    ],
)
def test_an_ipv4_address_is_shown_as_one(address: str, text: str) -> None:
    assert unmapped(address) == text


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "10.255.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"])
def test_a_trusted_proxy_is_believed(peer: str) -> None:
    address, seen = client_of(FORWARDED, peer, TRUSTED)
    assert (address, seen.scheme, seen.host) == ("203.0.113.9", "https", "jetstream.example")
    assert seen.websocket_base == "wss://jetstream.example"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("203.0.113.9,10.0.0.2 ,127.0.0.1", "203.0.113.9"),
        # What the client itself has sent stands before the address that the proxy has seen.
        ("198.51.100.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("unknown", "127.0.0.1"),
        ("203.0.113.9, unknown, 10.0.0.2", "10.0.0.2"),
        ("", "127.0.0.1"),
        (",", "127.0.0.1"),
        ("203.0.113.9\x00", "127.0.0.1"),
    ],
)
def test_the_client_is_the_last_address_that_is_not_a_proxy(text: str, address: str) -> None:
    assert client_of(request(**{"for": text}), "127.0.0.1", TRUSTED).address == address


@pytest.mark.parametrize(
    ("proto", "scheme"), [("https", "https"), ("HTTPS", "https"), ("https, http", "https"), ("wss", "http")]
)
def test_the_scheme(proto: str, scheme: str) -> None:
    assert client_of(request(proto=proto), "::1", TRUSTED).request.scheme == scheme


@pytest.mark.parametrize(
    ("host", "shown"),
    [("a.example:8443", "a.example:8443"), ("a.example, b", "a.example"), ("<b>", "localhost:6008")],
)
def test_the_host(host: str, shown: str) -> None:
    assert client_of(request(host=host), "::1", TRUSTED).request.host == shown


@given(st.lists(ADDRESSES | st.text(), max_size=6), ADDRESSES)
def test_a_client_cannot_choose_its_address(claimed: list[str], real: str) -> None:
    """Whatever a client sends, the proxy appends what it has seen, and that is found."""
    chain = ", ".join([*claimed, real])
    found = client_of(request(**{"for": chain}), "127.0.0.1", TRUSTED).address
    address = ip_address(real)
    trusted = any(address in network for network in TRUSTED)
    assert trusted or ip_address(found) in (address, getattr(address, "ipv4_mapped", None))


# RFC 7239


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("for=203.0.113.9", "203.0.113.9"),
        ("For=203.0.113.9;proto=https;by=10.0.0.1", "203.0.113.9"),
        ("for=198.51.100.1, for=203.0.113.9;proto=https, for=10.0.0.2", "203.0.113.9"),
        ('for="[2001:db8::1]:4711"', "2001:db8::1"),
        ('for="203.0.113.9:80" ; proto=http', "203.0.113.9"),
        ("for=unknown", "127.0.0.1"),
        ("for=_hidden, for=10.0.0.2", "10.0.0.2"),
        ("proto=https", "127.0.0.1"),
        ("for=198.51.100.1, proto=https", "127.0.0.1"),
        ("", "127.0.0.1"),
        # What the client itself has sent does not hide what the proxy has appended.
        ('for="198.51.100.1, for=203.0.113.9', "203.0.113.9"),
        ('for="198.51.100.1, for="203.0.113.9"', "203.0.113.9"),
        ('for="198.51.100.1\\, for="203.0.113.9"', "203.0.113.9"),
    ],
)
def test_the_address_in_forwarded(value: str, address: str) -> None:
    assert client_of(forwarded(value), "127.0.0.1", TRUSTED).address == address


def test_the_scheme_and_host_in_forwarded_are_those_of_the_outermost_proxy() -> None:
    seen = client_of(
        forwarded('for=203.0.113.9;proto=HTTPS;host="jetstream.example:443", for=10.0.0.2;proto=http'),
        "127.0.0.1",
        TRUSTED,
    ).request
    assert (seen.scheme, seen.host) == ("https", "jetstream.example:443")


def test_a_scheme_that_forwarded_lacks_is_in_the_older_field() -> None:
    both = forwarded("for=203.0.113.9", **{"x-forwarded-proto": "https"})
    assert client_of(both, "127.0.0.1", TRUSTED).request.scheme == "https"


def test_forwarded_does_not_count_beside_the_older_field() -> None:
    both = forwarded("for=198.51.100.1", **{"x-forwarded-for": "203.0.113.9"})
    assert client_of(both, "127.0.0.1", TRUSTED).address == "203.0.113.9"


def test_others_are_not_believed_what_is_forwarded() -> None:
    assert client_of(forwarded("for=203.0.113.9"), "192.0.2.1", TRUSTED).address == "192.0.2.1"


@given(st.text(alphabet='for=";,\\ 1.:[]', max_size=60))
def test_any_text_is_an_address_or_none(text: str) -> None:
    ip_address(client_of(forwarded(text), "127.0.0.1", TRUSTED).address)  # ValueError for what is none
