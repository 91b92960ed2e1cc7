"""Which accounts a source speaks for. The whole: `test_admission.py`."""

from __future__ import annotations

import pytest
from tests.unit.admission.fakes import FakeKeys

from jetstream.admission.hosting import Hosting
from jetstream.admission.rules import Rules
from jetstream.identity.addresses import endpoint
from jetstream.steps import finish

DID = "did:plc:a"
URLS = {"one": "wss://PDS.one.test", "two": "ws://localhost:2583/xrpc/x", "same": "wss://pds.one.test:443"}


def hosting(pds: str | None, urls: dict[str, str] = URLS) -> Hosting:
    """Return what knows the PDS of one account. None: it is not known."""
    keys = FakeKeys()
    if pds is not None:
        keys.hosts[DID] = pds
    found = Hosting(Rules("off", chained=True, pass_unverified=True), keys)
    finish(found.use((), urls, 100))
    return found


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
    host = endpoint(URLS[source]) if source in URLS else None
    assert hosting(pds).speaks_for(host, DID) is speaks


def test_a_url_that_is_none_speaks_for_nobody() -> None:
    nowhere = hosting("", {"x": "nowhere"})
    assert nowhere.speaks_for(endpoint("nowhere"), DID) is False
    assert nowhere.source_of(DID) is None


@pytest.mark.parametrize(
    ("pds", "source"),
    [("pds.one.test", "one"), ("localhost:2583", "two"), ("elsewhere.test", None), (None, None)],
)
def test_the_source_that_is_a_pds(pds: str | None, source: str | None) -> None:
    assert hosting(pds).source_of(DID) == source


def test_thousands_of_sources_are_set_in_steps_and_used_after_the_last() -> None:
    found = hosting("h999.test")
    urls = {f"{number}": f"wss://h{number}.test" for number in range(1_000)}
    steps = found.use(("relay",), urls, 100)
    for _ in range(10):
        next(steps)
        assert (found.source_of(DID), found.speakers(DID)) == (None, ())
    finish(steps)
    assert (found.source_of(DID), found.speakers(DID)) == ("999", ("999", "relay"))
