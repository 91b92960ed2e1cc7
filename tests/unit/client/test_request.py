from __future__ import annotations

import json

import pytest
from yarl import URL

from jetstream.client.request import DEFAULT_URL, URL_CHARS_MAX, Request, parse_url, shown
from jetstream.errors import InvalidParameter

ALICE = "did:plc:alicealicealicealicealic"
BOB = "did:web:bob.example"


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
        (
            "localhost?compress=true",
            "has compress, but this client reads uncompressed messages only: leave it out",
        ),
        ("localhost?requireHello=true", "has requireHello, but this client sets it"),
        ("localhost?cursor=yesterday", "has a cursor that is not one time in unix microseconds"),
        ("localhost?cursor=-1", "has a cursor that is not one"),
        ("localhost?cursor=1&cursor=2", "has a cursor that is not one"),
    ],
)
def test_a_value_that_is_not_a_url_is_named(text: str, problem: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        Request.parse(text)
    assert raised.value.value == text
    assert raised.value.problem.startswith(problem)


def test_a_filter_goes_into_the_url_beside_what_is_there() -> None:
    request = Request.parse("localhost?x=1", ["app.bsky.feed.post", "app.bsky.graph.*"], [ALICE, BOB])
    assert list(request.at(None).query.items()) == [
        ("x", "1"),
        ("wantedCollections", "app.bsky.feed.post"),
        ("wantedCollections", "app.bsky.graph.*"),
        ("wantedDids", ALICE),
        ("wantedDids", BOB),
    ]
    assert request.hello == ""


def test_a_filter_too_long_for_a_url_is_sent_once_connected() -> None:
    dids = [f"did:plc:{n:024}" for n in range(10_000)]
    request = Request.parse("localhost", ["app.bsky.feed.*"], dids)
    assert str(request.at(5)) == "ws://localhost/subscribe?requireHello=true&wire=classic&cursor=5"
    assert json.loads(request.hello) == {
        "type": "options_update",
        "payload": {"wantedCollections": ["app.bsky.feed.*"], "wantedDids": dids},
    }


@pytest.mark.parametrize("name", ["maxMessageSizeBytes", "maxSize"])
def test_options_in_the_url_are_sent_with_a_long_filter(name: str) -> None:
    """An update replaces all options, so those that stayed in the URL would be reset."""
    dids = [f"did:plc:{n:024}" for n in range(10_000)]
    url = f"localhost?{name}=500&wantedCollections=app.bsky.*,chat.*&wantedDids={ALICE}&x=1"
    request = Request.parse(url, ["app.bsky.feed.*"], dids)
    assert str(request.url) == "ws://localhost/subscribe?x=1&requireHello=true&wire=v1"
    assert json.loads(request.hello)["payload"] == {
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
    request = Request.parse(url, dids=["did:web:" + "x" * 1000] * 10)
    assert request.hello
    assert request.url.query.get("wire") == wire


def test_a_size_that_is_no_number_is_left_to_the_server_to_refuse() -> None:
    request = Request.parse("localhost?maxMessageSizeBytes=x", dids=["did:web:" + "x" * 1000] * 10)
    assert request.url.query["maxMessageSizeBytes"] == "x"
    assert "maxMessageSizeBytes" not in json.loads(request.hello)["payload"]


@pytest.mark.parametrize(("over", "by_url"), [(0, True), (1, False)])
def test_a_url_is_used_up_to_its_limit(over: int, by_url: bool) -> None:
    shortest = len(str(Request.parse("localhost", dids=["did:web:x"]).url)) - 1
    room = URL_CHARS_MAX - shortest
    did = "did:web:" + "x" * 1000
    step = len("&wantedDids=") + len(did)
    many, rest = divmod(room, step)
    dids = ["did:web:" + "x" * (rest + over), *[did] * many]
    request = Request.parse("localhost", dids=dids)
    assert (request.hello == "") is by_url
    assert len(str(request.url)) == URL_CHARS_MAX if by_url else len(str(request.url)) < 100


def test_a_cursor_is_where_to_begin_and_later_where_to_resume() -> None:
    request = Request.parse("localhost?cursor=3&x=1")
    assert request.cursor == 3
    assert str(request.at(request.cursor)) == "ws://localhost/subscribe?x=1&cursor=3"
    assert str(request.at(9)) == "ws://localhost/subscribe?x=1&cursor=9"
    assert Request.parse("localhost?cursor=3", cursor=4).cursor == 4
    assert Request.parse("localhost?cursor=3", cursor=0).cursor == 0
    assert Request.parse("localhost?cursor=").cursor is None


@pytest.mark.parametrize(
    ("collections", "dids", "cursor", "problem"),
    [
        (["app"], [], None, "wantedCollections: 'app' is neither"),
        ([], ["alice"], None, "wantedDids: 'alice' is not a DID"),
        (["app.bsky.feed.post"] * 101, [], None, "wantedCollections: '101' are too many: at most 100"),
        ("app.bsky.feed.post", [], None, "collections: 'app.bsky.feed.post' is a string: give a list"),
        ([], ALICE, None, f"dids: '{ALICE}' is a string"),
        ([], [], -1, "cursor: '-1' is before 1970"),
    ],
)  # fmt: skip
def test_an_invalid_argument_is_named(
    collections: list[str], dids: list[str], cursor: int | None, problem: str
) -> None:
    with pytest.raises(InvalidParameter) as raised:
        Request.parse("localhost", collections, dids, cursor)
    assert str(raised.value).startswith(problem)


def test_a_shown_url_has_neither_password_nor_filter() -> None:
    assert (
        shown(URL("wss://me:secret@jetstream.example/subscribe?wantedDids=x"))
        == "wss://jetstream.example/subscribe"
    )
