"""`/explain` refuses what `/subscribe` refuses, in the same words. What it answers: tests/integration."""

from __future__ import annotations

from typing import Any, cast

import pytest
from tests.unit.web.parameter_rows import BAD, NOW

from jetstream.delivery.delivery import Positions
from jetstream.dictionary.choice import Dictionaries
from jetstream.dictionary.own import OWN
from jetstream.errors import InvalidParameter
from jetstream.eventlog import LogReader
from jetstream.limits import DeliveryLimits, WebLimits
from jetstream.steps import finish
from jetstream.web.dialect import SubscribeDialect
from jetstream.web.explain import Explain
from jetstream.web.http import Request, Response

WEBSOCKET = {
    "connection": "upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}
NONE: dict[str, str] = {}
ZSTD = {"socket-encoding": "zstd"}
DICTIONARIES = Dictionaries(None)
# What is refused although each parameter is well-formed, and mistaken names: queries with header fields.
MORE: list[tuple[str, dict[str, str]]] = [
    ("zstdDictionary=7", {}),
    ("zstdDictionary=0", {}),
    ("compress=true", {}),
    ("", ZSTD),
    (f"zstdDictionary={OWN.dictionary_id}&compress=true", {}),
    (f"zstdDictionary={OWN.dictionary_id}", ZSTD),
    ("collections=app.bsky.feed.like", {}),
    ("wanteddids=did:plc:a", {}),
    ("&" * 24_001, {}),
]
# Each wire is known here, as at `/events`.
WIRES = {"wire=v2"}
ROWS = [*((query, NONE) for rows in BAD.values() for query in rows if query not in WIRES), *MORE]


def subscribed(query: str, headers: dict[str, str]) -> str:
    """Return the sentence with which `/subscribe` refuses a request."""
    dialect = SubscribeDialect("classic", DICTIONARIES.framing, now_us=lambda: NOW)
    with pytest.raises(InvalidParameter) as caught:
        finish(dialect.parse_request(Request("GET", "/subscribe", query, 1, WEBSOCKET | headers)))
    return str(caught.value)


def explain() -> Explain:
    return Explain(
        cast(LogReader, None),  # not read for a refusal
        "classic",
        lambda cursor: Positions(0, None, None),
        DICTIONARIES,
        now_us=lambda: NOW,
        clock=lambda: 0.0,
    )


def asked(query: str, headers: dict[str, str], route: Explain) -> Any:
    """Return what `/explain` responds with."""
    return finish(route.handle(Request("GET", "/explain", query, 1, headers), None))


@pytest.mark.parametrize(("query", "headers"), ROWS, ids=[f"{q[:40]}-{len(h)}" for q, h in ROWS])
def test_what_subscribe_refuses_is_refused_in_the_same_words(query: str, headers: dict[str, str]) -> None:
    refused = asked(query, headers, explain())
    assert isinstance(refused, Response)
    expected = subscribed(query, headers)
    if query.startswith("wire=") and "&" not in query:
        expected = expected.replace("classic and v1", "classic, v1 and v2")
    assert (refused.status, refused.body.decode()) == (400, f"{expected}\n")


def test_no_more_is_parsed_and_searched_in_a_turn_than_in_delivery() -> None:
    assert WebLimits().explained_bytes_per_turn <= DeliveryLimits().parsed_bytes
    assert WebLimits().explained_search_cost <= DeliveryLimits().searched_cost
