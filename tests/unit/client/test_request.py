from __future__ import annotations

import json
from typing import Any

import pytest
from yarl import URL

from jetstream.client.request import (
    DEFAULT_URL,
    URL_CHARS_MAX,
    Options,
    Request,
    parse_position,
    parse_url,
    shown,
    start_of,
)
from jetstream.errors import InvalidParameter

ALICE = "did:plc:alicealicealicealicealic"
BOB = "did:web:bob.example"
POST = "app.bsky.feed.post"


def request(url: str, **options: Any) -> Request:
    return Request.parse(url, Options(**options))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (DEFAULT_URL, DEFAULT_URL),
        ("localhost", "ws://localhost/subscribe"),
        ("localhost:6008", "ws://localhost:6008/subscribe"),
        ("jetstream.localhost", "ws://jetstream.localhost/subscribe"),
        ("127.0.0.1", "ws://127.0.0.1/subscribe"),
        ("[::1]:6008", "ws://[::1]:6008/subscribe"),
        ("jetstream:6008", "ws://jetstream:6008/subscribe"),
        ("jetstream.example", "wss://jetstream.example/subscribe"),
        ("jetstream.example:443", "wss://jetstream.example/subscribe"),
        ("jetstream.example/v1/subscribe", "wss://jetstream.example/v1/subscribe"),
        ("http://jetstream.example", "ws://jetstream.example/subscribe"),
        ("https://jetstream.example/", "wss://jetstream.example/subscribe"),
        ("ws://jetstream.example", "ws://jetstream.example/subscribe"),
        ("wss://jetstream.example/v1/subscribe", "wss://jetstream.example/v1/subscribe"),
        ("wss://jetstream.example/?maxMessageSizeBytes=9", "wss://jetstream.example/subscribe?maxMessageSizeBytes=9"),
        ("wss://jetstream.example/subscribe#here", "wss://jetstream.example/subscribe"),
    ],
)  # fmt: skip
def test_a_url_may_be_abbreviated(text: str, url: str) -> None:
    assert str(parse_url(text)) == url


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not a host or URL such as ws://localhost:6008/subscribe"),
        ("ftp://jetstream.example", "is not a host or URL"),
        ("ws://", "is not a"),
        ("local host", "is not a"),
        ("http://[::1", "is not a URL"),
        ("localhost:port", "is not a URL"),
        ("localhost:99999", "is not a URL"),
        ("localhost?compress=true", "has compress, but give compress=True instead"),
        ("localhost?zstdDictionary=1", "has zstdDictionary, but give compress=True instead"),
        ("localhost?heartbeat=5", "has heartbeat, but give it as an argument instead"),
        ("localhost?until=5", "has until, but give it as an argument instead"),
        ("localhost?limit=5", "has limit, but give it as an argument instead"),
        ("localhost?requireHello=true", "has requireHello, but this client sets it"),
        ("localhost?cursor=yesterday", "has a cursor that is not one time in unix microseconds"),
        ("localhost?cursor=-1", "has a cursor that is not one"),
        ("localhost?cursor=1&cursor=2", "has a cursor that is not one"),
    ],
)
def test_a_value_that_is_not_a_url_is_named(text: str, problem: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        request(text)
    assert raised.value.value == text
    assert raised.value.problem.startswith(problem)


def test_a_filter_goes_into_the_url_beside_what_is_there() -> None:
    asked = request(
        "localhost?x=1", collections=["app.bsky.feed.post", "app.bsky.graph.*"], dids=[ALICE, BOB]
    )
    assert list(asked.at(None).query.items()) == [
        ("x", "1"),
        ("wantedCollections", "app.bsky.feed.post"),
        ("wantedCollections", "app.bsky.graph.*"),
        ("wantedDids", ALICE),
        ("wantedDids", BOB),
    ]
    assert asked.hello == ""


def test_a_filter_too_long_for_a_url_is_sent_once_connected() -> None:
    dids = [f"did:plc:{n:024}" for n in range(10_000)]
    asked = request("localhost", collections=["app.bsky.feed.*"], dids=dids)
    assert str(asked.at(5)) == "ws://localhost/subscribe?requireHello=true&wire=classic&cursor=5"
    assert json.loads(asked.hello) == {
        "type": "options_update",
        "payload": {"wantedCollections": ["app.bsky.feed.*"], "wantedDids": dids},
    }


@pytest.mark.parametrize("name", ["maxMessageSizeBytes", "maxSize"])
def test_options_in_the_url_are_sent_with_a_long_filter(name: str) -> None:
    """An update replaces all options, so those that stayed in the URL would be reset."""
    dids = [f"did:plc:{n:024}" for n in range(10_000)]
    url = f"localhost?{name}=500&wantedCollections=app.bsky.*,chat.*&wantedDids={ALICE}&x=1"
    asked = request(url, collections=["app.bsky.feed.*"], dids=dids)
    assert str(asked.url) == "ws://localhost/subscribe?x=1&requireHello=true&wire=v1"
    assert json.loads(asked.hello)["payload"] == {
        "wantedCollections": ["app.bsky.*", "chat.*", "app.bsky.feed.*"],
        "wantedDids": [ALICE, *dids],
        "maxMessageSizeBytes": 500,
    }


@pytest.mark.parametrize(
    ("url", "wire"),
    [
        ("localhost", "classic"),
        ("localhost/subscribe?wire=v1", "v1"),
        ("localhost/subscribe?maxSize=9&wire=classic", "classic"),
        ("localhost/subscribe?maxSize=9", "v1"),
        ("localhost/subscribe/?wire=", "classic"),
        ("localhost/proxied/subscribe", "classic"),
        ("localhost/v1/subscribe", None),
        ("localhost/v1/subscribe/", None),
        ("localhost/other", None),
    ],
)
def test_a_long_filter_does_not_change_the_wire(url: str, wire: str | None) -> None:
    asked = request(url, dids=["did:web:" + "x" * 1000] * 10)
    assert asked.hello
    assert asked.url.query.get("wire") == wire


def test_a_size_that_is_no_number_is_left_to_the_server_to_refuse() -> None:
    asked = request("localhost?maxMessageSizeBytes=x", dids=["did:web:" + "x" * 1000] * 10)
    assert asked.url.query["maxMessageSizeBytes"] == "x"
    assert "maxMessageSizeBytes" not in json.loads(asked.hello)["payload"]


@pytest.mark.parametrize(("over", "by_url"), [(0, True), (1, False)])
def test_a_url_is_used_up_to_its_limit(over: int, by_url: bool) -> None:
    shortest = len(str(request("localhost", dids=["did:web:x"]).url)) - 1
    room = URL_CHARS_MAX - shortest
    did = "did:web:" + "x" * 1000
    step = len("&wantedDids=") + len(did)
    many, rest = divmod(room, step)
    dids = ["did:web:" + "x" * (rest + over), *[did] * many]
    asked = request("localhost", dids=dids)
    assert (asked.hello == "") is by_url
    assert len(str(asked.url)) == URL_CHARS_MAX if by_url else len(str(asked.url)) < 100


def test_a_cursor_is_where_to_begin_and_later_where_to_resume() -> None:
    asked = request("localhost?cursor=3&x=1")
    assert asked.cursor == 3
    assert str(asked.at(asked.cursor)) == "ws://localhost/subscribe?x=1&cursor=3"
    assert str(asked.at(9)) == "ws://localhost/subscribe?x=1&cursor=9"
    assert request("localhost?cursor=").cursor is None


@pytest.mark.parametrize(
    ("urls", "cursor", "start"),
    [
        (["localhost?cursor=3"], 4, 4),
        (["localhost?cursor=3"], 0, 0),
        (["localhost?cursor=3"], None, 3),
        (["localhost", "localhost?cursor=3", "localhost?cursor=2"], None, 3),
        (["localhost"], None, None),
    ],
)
def test_a_given_cursor_takes_precedence_over_those_of_urls(
    urls: list[str], cursor: int | None, start: int | None
) -> None:
    assert start_of([request(url) for url in urls], cursor) == start


def test_what_is_asked_for_beside_the_filter_is_in_the_query() -> None:
    asked = request(
        "localhost", kinds=["commit"], operations=["create", "delete"], wire="v1", heartbeat=5, until=9
    )
    assert str(asked.at(3, limit=7, dictionary=123)) == (
        "ws://localhost/subscribe?wire=v1&heartbeat=5&until=9"
        "&kinds=commit&operations=create&operations=delete&cursor=3&limit=7&zstdDictionary=123"
    )


def test_content_filters_in_the_url_are_sent_with_a_long_filter() -> None:
    dids = ["did:web:" + "x" * 1000] * 10
    query = "lang=en,de&lang=pt&text=a,b&hasMedia&sample=2.5&subject=at://x&excludeDids=did:web:y&filter=abc&heartbeats=1"
    asked = request(f"localhost?{query}", dids=dids)
    assert json.loads(asked.hello)["payload"] == {
        "lang": ["en", "de", "pt"],
        "text": ["a,b"],
        "hasMedia": True,
        "sample": 2.5,
        "subject": ["at://x"],
        "excludeDids": ["did:web:y"],
        "filter": "abc",
        "wantedCollections": [],
        "wantedDids": dids,
    }
    assert str(asked.url) == "ws://localhost/subscribe?heartbeats=1&requireHello=true&wire=classic"


@pytest.mark.parametrize("odd", ["sample=much", "hasMedia=some"])
def test_an_invalid_content_filter_is_left_to_the_server_to_refuse(odd: str) -> None:
    asked = request(f"localhost?{odd}", dids=["did:web:" + "x" * 1000] * 10)
    assert odd in str(asked.url)


def test_kinds_operations_and_heartbeats_are_sent_with_a_long_filter() -> None:
    dids = ["did:web:" + "x" * 1000] * 10
    asked = request(
        "localhost?kinds=identity", dids=dids, kinds=["commit"], operations=["create"], heartbeat=5
    )
    assert json.loads(asked.hello)["payload"] == {
        "wantedCollections": [],
        "wantedDids": dids,
        "kinds": ["identity", "commit"],
        "operations": ["create"],
    }
    assert str(asked.url) == "ws://localhost/subscribe?heartbeat=5&requireHello=true&wire=classic"


@pytest.mark.parametrize(
    ("url", "dictionary"),
    [
        ("localhost", "http://localhost/zstd-dictionary"),
        ("wss://jetstream.example/v1/subscribe?x=1", "https://jetstream.example/zstd-dictionary"),
        ("localhost:6008/proxied/subscribe/", "http://localhost:6008/proxied/zstd-dictionary"),
        ("localhost/other", "http://localhost/other/zstd-dictionary"),
    ],
)
def test_the_dictionary_is_beside_the_subscription(url: str, dictionary: str) -> None:
    assert str(request(url).dictionary_url) == dictionary


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"collections": ["app"]}, "wantedCollections: 'app' is neither"),
        ({"dids": ["alice"]}, "wantedDids: 'alice' is not a DID"),
        ({"collections": [POST] * 101}, "wantedCollections: '101' are too many: at most 100"),
        ({"collections": POST}, "collections: 'app.bsky.feed.post' is a string: give a list"),
        ({"dids": ALICE}, f"dids: '{ALICE}' is a string"),
        ({"kinds": "commit"}, "kinds: 'commit' is a string"),
        ({"kinds": ["com"]}, "kinds: 'com' is not one of commit, identity, account"),
        ({"operations": ["c"]}, "operations: 'c' is not one of create, update, delete"),
        ({"wire": "v3"}, "wire: 'v3' is not one of classic, v1"),
        ({"heartbeat": 0}, "heartbeat: '0' is not a number of seconds from 1 to 300"),
        ({"heartbeat": 301}, "heartbeat: '301' is not"),
    ],
)
def test_an_invalid_option_is_named(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        Options(**options)
    assert str(raised.value).startswith(problem)


@pytest.mark.parametrize(
    ("time", "position"),
    [(None, None), (0, 0), (7, 7), ("7", 7), ("-2s", 8_000_000), ("1970-01-01T00:00:01Z", 1_000_000)],
)
def test_a_time_is_a_number_or_a_text(time: int | str | None, position: int | None) -> None:
    assert parse_position("cursor", time, 10_000_000) == position


@pytest.mark.parametrize(
    ("time", "problem"), [(-1, "until: '-1' is before 1970"), ("soon", "until: 'soon' is not a time")]
)
def test_what_is_no_time_is_named(time: int | str, problem: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        parse_position("until", time, 0)
    assert str(raised.value).startswith(problem)


def test_a_shown_url_has_neither_password_nor_filter() -> None:
    assert (
        shown(URL("wss://me:secret@jetstream.example/subscribe?wantedDids=x"))
        == "wss://jetstream.example/subscribe"
    )
