"""The parameters of a filter, in a query and in an update: both mean the same."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from jetstream.delivery.subscriber import SubscriberOptions
from jetstream.errors import InvalidParameter
from jetstream.model.content import Content
from jetstream.model.filter import EVERYTHING, Filter
from jetstream.steps import finish
from jetstream.web.filter_parameters import COMMA_LISTS, FILTER, SHORT_CHARS, SHORT_VALUES
from jetstream.web.http import Request
from jetstream.web.parameters import parse_message, parse_request

ANN, BOB = "did:plc:ann", "did:web:bob.example"
POST = f"at://{ANN}/app.bsky.feed.post/3k"


def queried(query: str) -> SubscriberOptions:
    return finish(parse_request(Request("GET", "/subscribe", query, 1, {}), now_us=0)).options


def updated(**payload: Any) -> SubscriberOptions:
    update = finish(parse_message(json.dumps({"type": "options_update", "payload": payload}).encode()))
    assert update is not None
    return update.options


GIVEN: list[tuple[dict[str, Any], Filter, Content | None]] = [
    ({"kinds": ["commit"]}, Filter.parse([], [], kinds=["commit"]), None),
    ({"operations": ["create", "delete"]}, Filter.parse([], [], operations=["create", "delete"]), None),
    ({"excludeCollections": ["app.*"]}, Filter.parse([], [], exclude_collections=["app.*"]), None),
    ({"excludeDids": [ANN, BOB]}, Filter.parse([], [], exclude_dids=[ANN, BOB]), None),
    ({"sample": 5}, Filter.parse([], [], sample="5"), None),
    ({"sample": 0.25}, Filter.parse([], [], sample="0.25"), None),
    ({"sample": 100}, EVERYTHING, None),
    ({"lang": ["en", "pt-BR"]}, Filter.parse([], [], content=("", "")), Content.parse(lang=["en", "pt-BR"])),
    ({"mentions": [ANN]}, Filter.parse([], [], content=("", "")), Content.parse(mentions=[ANN])),
    ({"replyTo": [ANN, BOB]}, Filter.parse([], [], content=("", "")), Content.parse(reply_to=[ANN, BOB])),
    ({"subject": [ANN, POST]}, Filter.parse([], [], content=("", "")), Content.parse(subject=[ANN, POST])),
    (
        {"text": ["good day", "a, b"]},
        Filter.parse([], [], content=("", "")),
        Content.parse(text=["good day", "a, b"]),
    ),
    (
        {"hasMedia": True, "kinds": ["commit", "account"], "operations": ["create"]},
        Filter.parse([], [], kinds=["commit", "account"], operations=["create"]),
        Content.parse(has_media=True),
    ),
]


@pytest.mark.parametrize(("given", "wanted", "content"), GIVEN)
def test_a_query_and_an_update_say_the_same(
    given: dict[str, Any], wanted: Filter, content: Content | None
) -> None:
    options = SubscriberOptions(wanted, 0, content)
    query = {name: "true" if value is True else value for name, value in given.items()}
    assert queried(urlencode(query, doseq=True)) == options
    assert updated(**given) == options
    joined = {name: ",".join(given[name]) for name in COMMA_LISTS & given.keys()}
    assert queried(urlencode(query | joined, doseq=True)) == options


def test_every_parameter_is_tested_here() -> None:
    listed = {name for given, _, _ in GIVEN for name in given}
    assert listed | {"wantedCollections", "wantedDids"} == set(FILTER)


@pytest.mark.parametrize(
    ("query", "asked"), [("hasMedia", True), ("hasMedia=", True), ("hasMedia=false", False)]
)
def test_a_flag_without_a_value_is_set(query: str, asked: bool) -> None:
    assert (queried(query).content is not None) is asked


def test_nothing_given_is_reset() -> None:
    assert updated(lang=[], text=None, hasMedia=None, sample=None, kinds=None) == SubscriberOptions()
    assert updated(hasMedia=False) == SubscriberOptions()


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("sample=0", "sample"),
        ("sample=5%25", "sample"),
        ("sample=5&sample=6", "sample"),
        ("sample=1&wantedDids=did:plc:ann", "sample"),
        ("lang=", "lang"),
        ("lang=en,", "lang"),
        ("mentions=@ann", "mentions"),
        ("replyTo=x", "replyTo"),
        (f"subject=at://{ANN}", "subject"),
        ("text=", "text"),
        ("text=+", "text"),
        ("hasMedia=1", "hasMedia"),
        ("hasMedia&hasMedia", "hasMedia"),
        ("lang=en&operations=delete", "lang"),
        (f"replyTo={ANN}&kinds=identity", "replyTo"),
        ("hasMedia&kinds=account", "hasMedia"),
    ],
)
def test_a_bad_query_is_named(query: str, name: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        queried(query)
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample", "5"),
        ("sample", True),
        ("sample", 0),
        ("sample", 101),
        ("sample", [5]),
        ("lang", "en"),
        ("lang", [1]),
        ("text", [""]),
        ("hasMedia", "true"),
        ("hasMedia", 1),
        ("mentions", [f"{ANN},{BOB}"]),
    ],
)
def test_a_bad_update_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidParameter) as caught:
        updated(**{name: value})
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("langs", "lang"),
        ("Lang", "lang"),
        ("mention", "mentions"),
        ("replyto", "replyTo"),
        ("reply_to", "replyTo"),
        ("subjects", "subject"),
        ("has_media", "hasMedia"),
        ("samples", "sample"),
        ("Text", "text"),
    ],
)
def test_a_mistaken_name_is_refused_with_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(InvalidParameter, match=f"did you mean {meant}\\?$"):
        queried(f"{name}=x")
    with pytest.raises(InvalidParameter, match=f"did you mean {meant}\\?$"):
        updated(**{name: ["x"]})


def test_who_asks_for_the_same_short_filter_shares_it() -> None:
    query = "wantedCollections=app.bsky.feed.post&lang=en&sample=10"
    first, second = queried(query), queried(f"cursor=1&{query}")
    assert first.wanted is second.wanted
    assert first.content is second.content
    assert queried("wantedCollections=app.bsky.feed.post") != first


@pytest.mark.parametrize(
    "values", [["did:plc:" + "a" * (SHORT_CHARS - 7)], [f"did:plc:{n}" for n in range(SHORT_VALUES + 1)]]
)
def test_a_long_filter_is_not_remembered(values: list[str]) -> None:
    first, second = updated(wantedDids=values), updated(wantedDids=values)
    assert first == second
    assert first.wanted is not second.wanted


def test_a_bad_short_filter_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(InvalidParameter):
            queried("wantedCollections=no")
