"""Which accounts a source speaks for."""

from __future__ import annotations

import pytest

from jetstream.admission.pds import Hosts

HOSTS = Hosts(
    {"one": "wss://PDS.one.test", "two": "ws://localhost:2583/xrpc/x", "same": "wss://pds.one.test:443"}
)


@pytest.mark.parametrize(
    ("source", "pds", "speaks"),
    [
        ("relay", "elsewhere.test", True),
        ("relay", None, True),
        ("one", "pds.one.test", True),
        ("two", "localhost:2583", True),
        ("one", "localhost:2583", False),
        ("two", "localhost", False),
        ("one", "", False),
        ("one", None, None),
    ],
)
def test_a_pds_speaks_for_its_own_accounts(source: str, pds: str | None, speaks: bool | None) -> None:
    assert HOSTS.speaks_for(source, pds) is speaks


def test_a_url_that_is_none_speaks_for_nobody() -> None:
    hosts = Hosts({"x": "nowhere"})
    assert hosts.speaks_for("x", "") is False
    assert hosts.source_of("") is None


def test_the_source_that_is_a_pds() -> None:
    assert HOSTS.source_of("pds.one.test") == "one"
    assert HOSTS.source_of("localhost:2583") == "two"
    assert HOSTS.source_of("elsewhere.test") is None
    assert HOSTS.source_of(None) is None
