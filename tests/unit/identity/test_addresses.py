"""Hosts of `did:web`, and public addresses."""

from __future__ import annotations

import pytest

from jetstream.identity.addresses import endpoint, is_public, is_resolvable, web_url
from jetstream.identity.failures import NoKey


@pytest.mark.parametrize("host", ["a.com", "discover.bsky.social", "xn--bcher-kva.ch", "A.Com", "1.2.co"])
def test_hosts(host: str) -> None:
    assert is_resolvable(f"did:web:{host}")
    assert web_url(f"did:web:{host}") == f"https://{host}/.well-known/did.json"


@pytest.mark.parametrize(
    "did",
    [
        "did:web:",
        "did:web:com",
        "did:web:localhost",
        "did:web:localhost%3A8080",
        "did:web:a.localhost",
        "did:web:a.internal",
        "did:web:a.test",
        "did:web:a.com%3A8443",
        "did:web:a.com:users:alice",
        "did:web:a.com.",
        "did:web:a..com",
        "did:web:-a.com",
        "did:web:a_b.com",
        "did:web:127.0.0.1",
        "did:web:127.1",
        "did:web:0x7f.0x1",
        "did:web:1.2.3.4",
        "did:web:a.com%2F..%2F",
        "did:web:user%40a.com",
        "did:web:" + "a." * 126 + "com",
        "did:web:a.com\n",
        "did:plc:a",
        "did:key:zQ3",
        "",
    ],
)
def test_what_is_no_host(did: str) -> None:
    assert not is_resolvable(did)
    with pytest.raises(NoKey) as caught:
        web_url(did)
    assert caught.value.reason == "method"


def test_a_did_plc() -> None:
    assert is_resolvable("did:plc:ewvi7nxzyoun6zhxrhs64oiz")


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::1"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001::1"),
        *("64:ff9b::8.8.8.8", "64:ff9b::808:808", "64:ff9b:1::10.0.0.1", "64:ff9b:1:ffff::8.8.8.8"),
        *("2002:808:808::1", "2001:0:4136:e378::1", "3fff::1", "3fff:fff::1", "4000::1", "1fff::1"),
        *("2001:db8::1", "", "localhost", "127.1", "2130706433"),
    ],
)
def test_other_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://pds.example.com", "pds.example.com"),
        ("https://PDS.Example.com/", "pds.example.com"),
        ("wss://pds.example.com:443/xrpc/com.atproto.sync.subscribeRepos", "pds.example.com"),
        ("https://pds.example.com.:8443/a?b", "pds.example.com:8443"),
        ("http://localhost:2583", "localhost:2583"),
        ("ws://127.0.0.1:80", "127.0.0.1:80"),
        ("http://a.com", "a.com:80"),
        ("https://user:secret@a.com", "a.com"),
    ],
)
def test_the_host_of_an_endpoint(url: str, host: str) -> None:
    assert endpoint(url) == host


@pytest.mark.parametrize(
    "url",
    [
        None,
        7,
        [],
        "",
        "a.com",
        "ftp://a.com",
        "https://",
        "https://:443",
        "https://a.com:x",
        "https://a.com:65536",
        "https://[::1",
        "https://b\u00fccher.ch",
        "https://a b.com",
        "https://" + "a" * 254,
        "https://a.com/" + "a" * 500,
    ],
)
def test_no_endpoint(url: object) -> None:
    assert endpoint(url) == ""
