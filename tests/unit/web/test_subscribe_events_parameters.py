from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.web.parameter_rows import BAD, GOOD, NOW

from jetstream.delivery.subscriber import Bounds, SubscriberOptions
from jetstream.errors import InvalidParameter
from jetstream.model.content import Content
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, SYNC, UPDATE
from jetstream.model.filter import Filter
from jetstream.steps import finish
from jetstream.web.http import Request
from jetstream.web.parameter_table import SUBSCRIBE, SUBSCRIBE_EVENTS
from jetstream.web.query import PARAMETERS_MAX
from jetstream.web.subscribe_events_parameters import SubscribeEventsRequest, parse_subscribe_events

POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"
ANN, BOB = "did:plc:ann", "did:web:bob.example"
NOW_US = 1796054400000000
COMMIT = {CREATE, UPDATE, DELETE}
COLLECTIONS = [f"a.b.c{number}" for number in range(100)]
DIDS = [f"did:plc:{number}" for number in range(10_000)]


def parsed(
    query: str = "", headers: dict[str, str] | None = None, *, now_us: int = NOW_US
) -> SubscribeEventsRequest:
    """Read a query string as the server is given it."""
    return finish(parse_subscribe_events(Request("GET", "/xrpc/x", query, 1, headers or {}), now_us=now_us))


def wanting(size: int = 0, **fields: Any) -> SubscribeEventsRequest:
    return SubscribeEventsRequest(SubscriberOptions(Filter(**fields), size), None)


def having(**content: Any) -> SubscribeEventsRequest:
    """Return what asks for creates and updates whose record has this."""
    wanted = Filter(kinds=frozenset({CREATE, UPDATE}))
    return SubscribeEventsRequest(SubscriberOptions(wanted, 0, Content.parse(**content)), None)


def names(*texts: str) -> frozenset[bytes]:
    return frozenset(text.encode() for text in texts)


EVERYTHING = wanting()
LIVE = EVERYTHING

VALID = [
    ("", EVERYTHING),
    ("cursor=", LIVE),
    ("cursor=0", LIVE._replace(cursor=0)),
    ("cursor=1", LIVE._replace(cursor=1)),
    ("cursor=00000000000000000000000000000000000017", LIVE._replace(cursor=17)),
    ("cursor=1796054400000123", LIVE._replace(cursor=1796054400000123)),
    (f"cursor={2**63 - 1}", LIVE._replace(cursor=2**63 - 1)),
    ("cursor=1&cursor=abc", LIVE._replace(cursor=1)),
    ("cursor=&cursor=7", LIVE),
    ("kinds=commit", wanting(kinds=frozenset(COMMIT))),
    ("kinds=identity", wanting(kinds=frozenset({IDENTITY}))),
    ("kinds=account&kinds=sync", wanting(kinds=frozenset({ACCOUNT, SYNC}))),
    ("kinds=sync&kinds=sync&kinds=sync&kinds=sync", wanting(kinds=frozenset({SYNC}))),
    (f"dids={ANN}&dids={BOB}&dids={ANN}", wanting(dids=names(ANN, BOB))),
    ("dids=did%3Aplc%3Aann", wanting(dids=names(ANN))),
    ("&".join(f"dids={did}" for did in DIDS), wanting(dids=names(*DIDS))),
    (f"collections={POST}&collections={LIKE}", wanting(collections=names(POST, LIKE))),
    ("collections=app.bsky.*", wanting(prefixes=names("app.bsky."))),
    ("collections=app.bsky.feed.%2A", wanting(prefixes=names("app.bsky.feed."))),
    ("&".join(f"collections={name}" for name in COLLECTIONS), wanting(collections=names(*COLLECTIONS))),
    (
        f"collections={POST}&kinds=commit&kinds=sync",
        wanting(collections=names(POST), kinds=frozenset({*COMMIT, SYNC})),
    ),
    ("heartbeat=5", EVERYTHING._replace(heartbeat_s=5)),
    ("sample=5", wanting(sample=500)),
    ("lang=en&lang=de&hasMedia=true", having(lang=["en", "de"], has_media=True)),
    ("text=a,+b&subject=did:plc:ann", having(text=["a, b"], subject=[ANN])),
    ("maxMessageSizeBytes=0", EVERYTHING),
    ("maxMessageSizeBytes=4294967295", wanting(4294967295)),
    ("zstdDictionary=", EVERYTHING),
    ("zstdDictionary=20260811", EVERYTHING._replace(dictionary_id=20260811)),
    ("zstdDictionary=4294967295", EVERYTHING._replace(dictionary_id=4294967295)),
    ("zstdDictionary=5&zstdDictionary=x", EVERYTHING._replace(dictionary_id=5)),
    ("compress=false", EVERYTHING),
    ("compress=", EVERYTHING),
    ("unknown=1&Kinds=x&collection=x&wire=classic&cursors=x&&=x", EVERYTHING),
    ("unknown=%41%7e", EVERYTHING),
]  # fmt: skip


@pytest.mark.parametrize(("query", "expected"), VALID, ids=[query[:60] for query, _ in VALID])
def test_what_is_asked_for(query: str, expected: SubscribeEventsRequest) -> None:
    assert parsed(query) == expected


def test_where_it_ends() -> None:
    bounds = parsed("limit=5&until=2026-12-01T00:00:00Z").bounds
    assert bounds is not None
    assert (bounds.left, bounds.until) == (5, 1796083200000000)


INVALID = [
    ("cursor=abc", "cursor", "abc"),
    ("cursor=-5", "cursor", "-5"),
    ("cursor=%2B5", "cursor", "+5"),
    ("cursor=1.5", "cursor", "1.5"),
    ("cursor=-10m", "cursor", "-10m"),
    ("cursor=2026-11-30T16:00:00Z", "cursor", "2026-11-30T16:00:00Z"),
    ("cursor=%D9%A1", "cursor", "\u0661"),
    (f"cursor={2**63}", "cursor", str(2**63)),
    ("cursor=" + "9" * 5_000, "cursor", "9" * 5_000),
    ("cursor=%zz", "query", "%zz"),
    ("unknown=100%", "query", "%"),
    ("kinds=", "kinds", ""),
    ("kinds=handle", "kinds", "handle"),
    ("kinds=Commit", "kinds", "Commit"),
    ("kinds=commit,identity", "kinds", "commit,identity"),
    ("&".join(["kinds=commit"] * 5), "kinds", "5"),
    ("dids=", "dids", ""),
    ("dids=alice.test", "dids", "alice.test"),
    (f"dids={ANN},{BOB}", "dids", f"{ANN},{BOB}"),
    ("&".join(["dids=did:plc:a"] * 10_001), "dids", "10001"),
    ("collections=", "collections", ""),
    ("collections=*", "collections", "*"),
    ("collections=app.*", "collections", "app.*"),
    ("collections=app.bsky.fo*", "collections", "app.bsky.fo*"),
    ("collections=not_valid.*", "collections", "not_valid.*"),
    ("collections=app.bsky", "collections", "app.bsky"),
    (f"collections={POST},{LIKE}", "collections", f"{POST},{LIKE}"),
    ("&".join([f"collections={POST}"] * 101), "collections", "101"),
    (f"kinds=identity&collections={POST}", "collections", POST),
    (f"kinds=sync&kinds=account&collections={POST}", "collections", POST),
    ("maxMessageSizeBytes=", "maxMessageSizeBytes", ""),
    ("maxMessageSizeBytes=-1", "maxMessageSizeBytes", "-1"),
    ("maxMessageSizeBytes=5&maxMessageSizeBytes=6", "maxMessageSizeBytes", "5, 6"),
    ("maxMessageSizeBytes=4294967296", "maxMessageSizeBytes", "4294967296"),
    ("zstdDictionary=abc", "zstdDictionary", "abc"),
    ("zstdDictionary=0", "zstdDictionary", "0"),
    ("zstdDictionary=-1", "zstdDictionary", "-1"),
    ("zstdDictionary=4294967296", "zstdDictionary", "4294967296"),
    ("until=-1h", "until", "-1h"),
    ("limit=0", "limit", "0"),
    ("heartbeat=0", "heartbeat", "0"),
    ("heartbeat=301", "heartbeat", "301"),
    ("sample=0", "sample", "0"),
    ("lang=en,de", "lang", "en,de"),
    ("lang=en&kinds=identity", "lang", "en"),
    ("mentions=ann", "mentions", "ann"),
    ("compress=true", "compress", "true"),
    ("compress=false&compress=true", "compress", "true"),
    (f"wantedCollections={POST}", "wantedCollections", POST),
    ("wantedCollections=", "wantedCollections", ""),
    ("wantedDids=did:plc:x", "wantedDids", "did:plc:x"),
    ("requireHello=false", "requireHello", "false"),
]  # fmt: skip


@pytest.mark.parametrize(("query", "name", "value"), INVALID, ids=[query[:60] for query, _, _ in INVALID])
def test_what_is_refused(query: str, name: str, value: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parsed(query)
    assert (caught.value.name, caught.value.value) == (name, value)


@pytest.mark.parametrize("value", ["zstd", "gzip, zstd"])
def test_the_compression_of_v1_is_refused_with_the_right_name(value: str) -> None:
    with pytest.raises(InvalidParameter, match="zstdDictionary"):
        parsed("", {"socket-encoding": value})
    assert parsed("", {"socket-encoding": "gzip"}) == EVERYTHING


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("cursor=x&kinds=x&compress=true&a=%", "query"),
        ("cursor=x&kinds=x&compress=true", "compress"),
        ("cursor=x&kinds=x&zstdDictionary=x", "zstdDictionary"),
        ("cursor=x&kinds=x&wantedDids=x", "wantedDids"),
        ("cursor=x&kinds=x", "kinds"),
        ("cursor=x&maxMessageSizeBytes=x", "maxMessageSizeBytes"),
        ("cursor=x", "cursor"),
    ],
)
def test_the_order_of_the_checks(query: str, first: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parsed(query)
    assert caught.value.name == first


def test_a_query_of_too_many_parameters_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="query"):
        parsed("&" * (PARAMETERS_MAX + 1))


def test_ten_thousand_dids_are_read_in_steps() -> None:
    query = "&".join(f"dids={did}" for did in DIDS)
    assert len(list(parse_subscribe_events(Request("GET", "/xrpc/x", query, 1, {}), now_us=NOW_US))) > 20


@given(st.text(st.sampled_from("cursorkindsdidscollections=&%,*.:0123456789abc"), max_size=60))
def test_any_query_is_read_or_refused(query: str) -> None:
    with suppress(InvalidParameter):
        assert parsed(query).options.message_bytes_max >= 0


# Parameters that are the same at `/subscribe`, whose rows count here too. Lists have no commas here.
SHARED = {each.name for each in SUBSCRIBE_EVENTS} & {each.name for each in SUBSCRIBE} - {"kinds", "cursor"}
SIZES = {"maxMessageSizeBytes", "zstdDictionary"}  # these have rules of their own
ELSEWHERE = re.compile(r",|wanted|%2C|requireHello|cursor=(?!\d{1,18}(&|$))")


def shared(rows: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, Any]]:
    return [
        (name, query, expected)
        for name in sorted(SHARED - SIZES)
        for query, expected in rows[name].items()
        if not ELSEWHERE.search(query)
    ]


@pytest.mark.parametrize(
    ("name", "query", "expected"), shared({name: rows for name, (_, rows) in GOOD.items()})
)
def test_what_is_the_same_at_subscribe_is_taken(name: str, query: str, expected: object) -> None:
    part = GOOD[name][0]
    asked = parsed(query, now_us=NOW)
    if part in ("until", "limit"):
        bounds = asked.bounds or Bounds(None, None)
        seen: object = {"until": bounds.until, "limit": bounds.left}[part]
        assert seen == (sys.maxsize if expected is None else expected)
    else:
        assert attrgetter(part)(asked) == expected


@pytest.mark.parametrize(("name", "query", "problem"), shared(BAD))
def test_what_is_the_same_at_subscribe_is_refused(name: str, query: str, problem: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parsed(query, now_us=NOW)
    assert (caught.value.name, caught.value.problem) == (name, problem)


def test_every_parameter_has_rows() -> None:
    names = {each.name for each in SUBSCRIBE_EVENTS}
    good = {pair.partition("=")[0] for query, _ in VALID for pair in query.split("&")}
    assert names == (good & names) | {name for name, _, _ in shared({k: v for k, (_, v) in GOOD.items()})}
    assert names == {name for _, name, _ in INVALID} & names | {name for name, _, _ in shared(BAD)}


def test_a_problem_has_the_names_of_this_endpoint() -> None:
    for query in (f"collections={POST}&excludeCollections={LIKE}", f"dids={ANN}&excludeDids={BOB}"):
        with pytest.raises(InvalidParameter, match=r"it is not in (collections|dids)$"):
            parsed(query)
