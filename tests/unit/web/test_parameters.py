from __future__ import annotations

import json
import sys
from contextlib import suppress
from operator import attrgetter
from typing import Any
from urllib.parse import unquote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orjson import JSONDecodeError
from tests.unit.web.parameter_rows import BAD, GOOD, NOW

from jetstream.delivery.subscriber import SubscriberOptions
from jetstream.errors import InvalidParameter
from jetstream.model.filter import DIDS_PER_STEP, EVERYTHING, Filter
from jetstream.steps import finish
from jetstream.web import parameters
from jetstream.web.http import Request
from jetstream.web.parameters import (
    COMMAS_MAX,
    OptionsUpdate,
    SubscribeRequest,
    parse_message,
    parse_request,
)
from jetstream.web.query import PARAMETERS_PER_STEP

POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"
ANN, BOB = "did:plc:ann", "did:web:bob.example"


def parsed(query: str = "", headers: dict[str, str] | None = None) -> SubscribeRequest:
    """Read a query string as the server is given it."""
    fields = {name.lower(): value for name, value in (headers or {}).items()}
    return finish(parse_request(Request("GET", "/subscribe", query, 1, fields), now_us=NOW))


def refused(query: str, headers: dict[str, str] | None = None) -> tuple[str, str]:
    with pytest.raises(InvalidParameter) as caught:
        parsed(query, headers)
    return caught.value.name, caught.value.value


def test_nothing_asked_for_is_everything_from_now_on() -> None:
    assert parsed() == SubscribeRequest(
        SubscriberOptions(EVERYTHING, 0), None, require_hello=False, wire=None, compress=False
    )


def test_unknown_parameters_are_ignored() -> None:
    assert parsed("foo=1&compression=zstd&kindsOf=x&wantedCollectionsOf=x&curso=x&=&" + "s" * 99) == parsed()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("wantedcollections", "wantedCollections"),
        ("WANTEDDIDS", "wantedDids"),
        ("wantedCollection", "wantedCollections"),
        ("wantedDid", "wantedDids"),
        ("wanted_dids", "wantedDids"),
        ("wanted-collections", "wantedCollections"),
        ("collections", "wantedCollections"),
        ("collection", "wantedCollections"),
        ("dids", "wantedDids"),
        ("kind", "kinds"),
        ("Kinds", "kinds"),
        ("operation", "operations"),
        ("excludeCollection", "excludeCollections"),
        ("excludedCollections", "excludeCollections"),
        ("excludedids", "excludeDids"),
        ("excluded_dids", "excludeDids"),
        ("Cursor", "cursor"),
        ("cursors", "cursor"),
        ("limits", "limit"),
        ("Until", "until"),
        ("heart-beat", "heartbeat"),
        ("requirehello", "requireHello"),
        ("Compress", "compress"),
        ("maxMessageSizeByte", "maxMessageSizeBytes"),
        ("%43ursor", "cursor"),
    ],
)
def test_what_is_surely_a_mistake_is_refused_with_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(InvalidParameter, match=f"did you mean {meant}\\?$"):
        parsed(f"cursor=1&{name}=x")


# The table


@pytest.mark.parametrize(
    ("part", "query", "expected"),
    [(part, *row) for part, rows in GOOD.values() for row in rows.items()],
    ids=[f"{name}-{query[:40]}" for name, (_, rows) in GOOD.items() for query in rows],
)
def test_what_is_taken(part: str, query: str, expected: object) -> None:
    assert attrgetter(part)(parsed(query)) == expected


@pytest.mark.parametrize(
    ("name", "query", "problem"),
    [(name, *row) for name, rows in BAD.items() for row in rows.items()],
    ids=[f"{name}-{query[:40]}" for name, rows in BAD.items() for query in rows],
)
def test_what_is_refused(name: str, query: str, problem: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parsed(query)
    assert (caught.value.name, caught.value.problem) == (name, problem)
    if "&" not in query and "too many" not in problem:
        assert caught.value.value in unquote_plus(query)


def test_every_parameter_has_rows() -> None:
    assert set(GOOD) == set(BAD) == set(parameters._KNOWN)


def test_the_longest_url_of_all() -> None:
    """A hundred collections, ten thousand DIDs and every other parameter."""
    collections = [f"com.example{number:02}.collection" for number in range(100)]
    dids = [f"did:plc:{number:024}" for number in range(10_000)]
    repeated = urlencode(
        {
            "wantedCollections": collections,
            "wantedDids": dids,
            "maxMessageSizeBytes": 1_000_000,
            "cursor": 1725519626134432,
            "requireHello": "true",
        },
        doseq=True,
    )
    listed = (
        repeated.partition("wantedDids")[0]
        + urlencode({"wantedDids": ",".join(dids)})
        + "&cursor=1725519626134432"
    )
    subscription = parsed(repeated)

    assert 400_000 < len(repeated) < 1 << 20
    assert subscription == SubscribeRequest(
        SubscriberOptions(Filter.parse(collections, dids), 1_000_000),
        1725519626134432,
        require_hello=True,
        wire="v1",
        compress=False,
    )
    assert parsed(listed).options.wanted == subscription.options.wanted
    assert refused(f"{repeated}&wantedDids={ANN}") == ("wantedDids", "10001")
    assert refused(f"{repeated}&wantedCollections={POST}") == ("wantedCollections", "101")


# What is remembered

CURSOR = 1725519626134432


@pytest.mark.parametrize(
    "query",
    [query for _, rows in GOOD.values() for query in rows if "cursor" not in query and "until" not in query],
)
def test_a_client_that_comes_back_with_a_cursor_asks_for_the_same(query: str) -> None:
    wanted = parsed(query)._replace(cursor=CURSOR)
    for text in (f"cursor={CURSOR}&{query}", f"{query}&cursor={CURSOR}"):
        assert parsed(text) == parsed(text) == wanted


@pytest.mark.parametrize(
    "query", ["cursor=-10m", "%63ursor=-10m", "cursor=1&until=-10m", "cursor=1&%75ntil=-10m"]
)
def test_an_age_counts_from_each_request(query: str) -> None:
    def times(now_us: int) -> list[int]:
        asked = finish(parse_request(Request("GET", "/subscribe", query, 1, {}), now_us=now_us))
        return [time for time in (asked.cursor, asked.until) if time and time > 1]

    assert times(NOW) == [NOW - 600_000_000]
    assert times(NOW + 1) == [NOW - 599_999_999]


def test_two_cursors_are_refused_in_whatever_form() -> None:
    for other in (f"cursor={CURSOR}", "cursor=1", "%63ursor=1"):
        assert refused(f"wantedDids={ANN}&cursor={CURSOR}&{other}")[0] == "cursor"


# Wire and compression


@pytest.mark.parametrize(
    ("query", "headers", "wire"),
    [
        ("", {}, None),
        ("wire=", {}, None),
        ("wire=classic", {}, "classic"),
        ("wire=v1", {}, "v1"),
        ("wantedCollections=app.*&wantedDids=did:plc:ann&cursor=1&unknown=1", {}, None),
        *((f"compress={value}", {}, "v1") for value in ("", "true", "false")),
        *((f"requireHello={value}", {}, "v1") for value in ("", "true", "false")),
        *((f"maxMessageSizeBytes={value}", {}, "v1") for value in ("", "0", "1")),
        *((f"maxSize={value}", {}, "v1") for value in ("", "0", "1")),
        ("", {"Socket-Encoding": "zstd"}, "v1"),
        ("", {"socket-encoding": ""}, "v1"),
        ("", {"Socket-Encoding": "identity"}, "v1"),
        ("wire=classic&compress=true&requireHello=true", {"Socket-Encoding": "zstd"}, "classic"),
        ("maxMessageSizeBytes=1&wire=classic", {}, "classic"),
        ("wire=&compress=false", {}, "v1"),
    ],
)  # fmt: skip
def test_the_wire_is_named_or_v1_for_what_came_with_it(
    query: str, headers: dict[str, str], wire: str | None
) -> None:
    assert parsed(query, headers).wire == wire


@pytest.mark.parametrize(
    ("query", "headers", "compress"),
    [
        ("compress=true", {}, True),
        ("compress=false", {}, False),
        ("compress=", {}, False),
        ("", {"Socket-Encoding": "zstd"}, True),
        ("", {"SOCKET-ENCODING": "gzip, ZSTD"}, True),
        ("compress=false", {"Socket-Encoding": "zstd"}, True),
        ("", {"Socket-Encoding": "zstandard"}, False),
        ("", {"Socket-Encoding": ""}, False),
        ("", {"Accept-Encoding": "zstd"}, False),
    ],
)
def test_compression_is_asked_for_by_parameter_or_header(
    query: str, headers: dict[str, str], compress: bool
) -> None:
    assert parsed(query, headers).compress is compress


def test_bounds_are_those_of_one_subscriber() -> None:
    assert parsed("cursor=1&wire=v1").bounds is None
    one, other = (parsed("cursor=1&until=7").bounds, parsed("limit=3").bounds)
    assert one is not None
    assert other is not None
    assert (one.until, other.left) == (7, 3)
    assert one.left == other.until == sys.maxsize
    request = parsed("limit=3")
    assert request.bounds is not request.bounds


def test_refusals_are_short_sentences_that_name_the_value() -> None:
    with pytest.raises(
        InvalidParameter,
        match=r"^cursor: 'now' is not a time: give unix microseconds, RFC 3339 such as 2026-07-04T14:30:00Z, "
        r"or an age such as -10m$",
    ):
        parsed("cursor=now")
    with pytest.raises(InvalidParameter) as caught:
        parsed("wantedDids=" + "x" * 500_000)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@given(
    st.text(),
    st.sampled_from(
        [
            *("cursor", "until", "limit", "heartbeat", "maxMessageSizeBytes"),
            *("wantedCollections", "wantedDids", "requireHello"),
        ]
    ),
)
def test_any_value_is_taken_or_refused(value: str, name: str) -> None:
    with suppress(InvalidParameter):
        parsed(urlencode({name: value}, errors="replace"))


# Messages


def parse(text: str | bytes) -> SubscriberOptions | None:
    update = parse_update(text)
    return None if update is None else update.options


def parse_update(text: str | bytes) -> OptionsUpdate | None:
    return finish(parse_message(text if isinstance(text, bytes) else text.encode()))


def update(**payload: Any) -> SubscriberOptions | None:
    return parse(json.dumps({"type": "options_update", "payload": payload}))


def test_an_update_replaces_everything() -> None:
    assert update() == SubscriberOptions()
    assert update(wantedCollections=None, wantedDids=None, maxMessageSizeBytes=None) == SubscriberOptions()
    assert update(wantedCollections=[], wantedDids=[], maxMessageSizeBytes=0) == SubscriberOptions()
    assert update(
        wantedCollections=[POST, "app.bsky.graph.*"], wantedDids=[ANN], maxMessageSizeBytes=9
    ) == SubscriberOptions(Filter.parse([POST, "app.bsky.graph.*"], [ANN]), 9)
    assert update(other=1) == SubscriberOptions()


def test_an_update_has_all_lists_of_a_filter() -> None:
    lists = {
        "kinds": ["commit"],
        "operations": ["delete", "create"],
        "excludeCollections": ["app.bsky.graph.*"],
        "excludeDids": [ANN],
    }
    query = urlencode(lists, doseq=True)
    assert update(**lists) == parsed(query).options != SubscriberOptions()
    assert update(**{name: [] for name in lists}) == SubscriberOptions()
    assert update(maxSize=9) == SubscriberOptions(message_bytes_max=9)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("wantedcollections", "wantedCollections"),
        ("wanted_dids", "wantedDids"),
        ("wantedDid", "wantedDids"),
        ("collections", "wantedCollections"),
        ("dids", "wantedDids"),
        ("kind", "kinds"),
        ("Operations", "operations"),
        ("excludedCollection", "excludeCollections"),
        ("excludedids", "excludeDids"),
        ("maxmessagesizebytes", "maxMessageSizeBytes"),
        ("MaxSize", "maxSize"),
    ],
)
@pytest.mark.parametrize("value", [None, [], ["x"], 1])
def test_a_mistaken_name_in_an_update_is_refused_with_what_was_meant(
    name: str, meant: str, value: object
) -> None:
    with pytest.raises(InvalidParameter, match=f"did you mean {meant}\\?$"):
        update(**{name: value})


def test_parameters_that_cannot_change_are_ignored_in_an_update() -> None:
    assert update(cursor=1, Cursors=1, Wire="x", compress=True, requirehello=1) == SubscriberOptions()


def test_an_update_of_many_unknown_names_is_read_in_small_steps() -> None:
    text = json.dumps({"type": "options_update", "payload": dict.fromkeys(map(str, range(10_000)))})
    assert len(list(parse_message(text.encode()))) > 40


def test_ten_thousand_dids_are_read_in_small_steps() -> None:
    dids = [f"did:plc:{number:024}" for number in range(10_000)]
    text = json.dumps({"type": "options_update", "payload": {"wantedDids": dids}})
    assert len(list(parse_message(text.encode()))) >= 10_000 // DIDS_PER_STEP
    query = "&".join(f"wantedDids={did}" for did in dids)
    request = Request("GET", "/subscribe", query, 1, {})
    steps = list(parse_request(request, now_us=NOW))
    assert len(steps) >= 10_000 // PARAMETERS_PER_STEP + 10_000 // DIDS_PER_STEP


@pytest.mark.parametrize(("value", "seconds"), [(None, None), (1, 1), (300, 300)])
def test_an_update_may_change_the_heartbeat(value: int | None, seconds: int | None) -> None:
    message = json.dumps({"type": "options_update", "payload": {"heartbeat": value}})
    assert parse_update(message) == OptionsUpdate(SubscriberOptions(), seconds)


def test_an_update_without_a_heartbeat_leaves_that_of_the_url() -> None:
    assert parse_update('{"type":"options_update","payload":{}}') == OptionsUpdate(SubscriberOptions(), None)


def test_an_update_may_come_as_bytes() -> None:
    assert parse(b'{"type":"options_update","payload":{"wantedDids":["did:plc:ann"]}}') == SubscriberOptions(
        Filter.parse([], [ANN])
    )


def test_an_update_may_name_ten_thousand_dids() -> None:
    dids = [f"did:plc:{number:024}" for number in range(10_001)]

    options = update(wantedDids=dids[:10_000])
    assert options is not None
    assert len(options.wanted.dids) == 10_000
    with pytest.raises(InvalidParameter, match="wantedDids: '10001' are too many"):
        update(wantedDids=dids)
    with pytest.raises(InvalidParameter, match="wantedCollections: '101' are too many"):
        update(wantedCollections=[f"com.example.c{number}" for number in range(101)])


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"type":"other"}',
        '{"type":null,"payload":1}',
        '{"type":["options_update"]}',
        '{"type":"Options_update","payload":[]}',
    ],
)
def test_unknown_types_are_ignored(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "hello",
        "{'type':1}",
        '{"a":NaN}',
        '{"a":1}x',
        "\ufeff{}",
        b"\xff",
        b'{"a":"\xff"}',
        '"\\ud800"',
        "[" * 20_000,
    ],
)
def test_what_is_no_json(text: str | bytes) -> None:
    with pytest.raises(JSONDecodeError):
        parse(text)


@pytest.mark.parametrize(
    "text", ["1", "null", '"text"', "[]", "[1]", "true", "[" * 300 + "]" * 300, "[" * 1000 + "]" * 1000]
)
def test_a_message_is_an_object(text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse(text)
    assert caught.value.name == "message"


@pytest.mark.parametrize("entry", ['"did:plc:ann",', "[]", "{}"])
def test_more_entries_than_an_update_can_have_are_refused_unread(entry: str) -> None:
    entries = entry * (COMMAS_MAX + 1)
    with pytest.raises(InvalidParameter, match=f"bytes' has more than {COMMAS_MAX} entries"):
        parse(f'{{"type":"options_update","payload":{{"wantedDids":[{entries}]}}}}')


@pytest.mark.parametrize("payload", ["null", "1", "[]", '"text"', "[" * 300 + "]" * 300])
def test_a_payload_is_an_object(payload: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse(f'{{"type":"options_update","payload":{payload}}}')
    assert caught.value.name == "payload"


def test_an_update_has_a_payload() -> None:
    with pytest.raises(InvalidParameter, match="payload: 'null' is not an object of options"):
        parse('{"type":"options_update"}')


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wantedCollections", POST),
        ("wantedCollections", {}),
        ("wantedCollections", [1]),
        ("wantedCollections", [None]),
        ("wantedCollections", [[POST]]),
        ("wantedCollections", [f"{POST},{LIKE}"]),
        ("wantedCollections", [""]),
        ("wantedCollections", ["*"]),
        ("wantedCollections", ["app.bsky.graph.fo*"]),
        ("wantedDids", ANN),
        ("wantedDids", 0),
        ("wantedDids", [False]),
        ("wantedDids", [""]),
        ("wantedDids", ["alice.example"]),
        ("kinds", "commit"),
        ("kinds", ["commits"]),
        ("kinds", [None]),
        ("operations", ["create,update"]),
        ("excludeCollections", ["*"]),
        ("excludeDids", [1]),
        ("maxSize", "1"),
        ("maxMessageSizeBytes", -1),
        ("maxMessageSizeBytes", 1.0),
        ("maxMessageSizeBytes", 10**30),
        ("maxMessageSizeBytes", "1"),
        ("maxMessageSizeBytes", True),
        ("maxMessageSizeBytes", []),
        ("heartbeat", 0),
        ("heartbeat", 301),
        ("heartbeat", 1.0),
        ("heartbeat", "1"),
        ("heartbeat", True),
        ("heartbeat", 10**30),
    ],
)
def test_bad_updates_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidParameter) as caught:
        update(**{name: value})
    assert caught.value.name == name


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "payload", "wantedDids"]), inner)
    ),
    max_leaves=6,
)


@given(JSON)
def test_any_json_is_taken_or_refused(value: object) -> None:
    for message in (value, {"type": "options_update", "payload": value}):
        with suppress(InvalidParameter, JSONDecodeError):
            parse(json.dumps(message))
