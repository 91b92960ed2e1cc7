"""The tables of parameters against what reads the parameters: the same names, and the same values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.errors import InvalidParameter
from jetstream.limits import WebLimits
from jetstream.model.did_set import NO_DIDS
from jetstream.steps import Steps, finish
from jetstream.web import parameters, subscribe_events_parameters
from jetstream.web.did_lists import DidList, DidLists
from jetstream.web.http import Request
from jetstream.web.parameter_table import EVENT_STREAM, SUBSCRIBE, SUBSCRIBE_EVENTS, Parameter

Parse = Callable[..., Steps[Any]]

NOW_US = 1_796_054_400_000_000
# By endpoint: the table, and what reads its parameters.
ENDPOINTS: dict[str, tuple[Sequence[Parameter], Parse]] = {
    "subscribe": (SUBSCRIBE, parameters.parse_request),
    "subscribeEvents": (SUBSCRIBE_EVENTS, subscribe_events_parameters.parse_subscribe_events),
}
ROWS = [
    pytest.param(parse, each, id=f"{endpoint}-{each.name}")
    for endpoint, (table, parse) in ENDPOINTS.items()
    for each in table
    if each.name != "filter"
]
LISTS = [row for row in ROWS if "maxItems" in row.values[1].schema]  # type: ignore[union-attr]
# Values that are good for one parameter or another, and values on both sides of a limit.
EDGES = [
    *("", "0", "1", "007", "300", "301", "-1", "+1", "1.5", " 1", "4294967295", "4294967296", "9" * 19),
    *("true", "false", "True", "1e3", "commit", "sync", "commits", "create", "put", "classic", "v1", "v2"),
    *("app.bsky.feed.post", "app.bsky.*", "app.*", "*", "app.bsky", "app.bsky.fo*", "app.bsky.", "a..*"),
    *("did:plc:ann", "did:web:bob.example", "did:plc", "DID:plc:a", "did:plc:" + "x" * 2040, "did:a:b%"),
    *("did:plc:" + "x" * 2041, "-10m", "10m", "-1h30m", "-1.5d", "- 1h", "2026-07-04T14:30:00Z"),
    *("at://did:plc:ann/app.bsky.feed.post/a", "at://did:plc:ann/app.bsky.feed.post/..", "at://did:plc:ann"),
    *("en", "pt-BR", "e1", "0.01", "0.001", "099.50", "100", "100.01", "100.0", "0.0", "50.", "x" * 256),
    *("x" * 257, " ", "good morning", "!", "at://ann.example/app.bsky.feed.post/a"),
    *("2026-07-04 14:30:00.123456789+02:00", "2026-07-04T14:30:00", "2026-07-04"),
]
SHORT = st.text("0123456789-:.TZsmhd", max_size=20) | st.text(max_size=5)


def any_list(list_id: str) -> DidList:
    return DidList(list_id, NO_DIDS, 0)


def read(parse: Parse, query: str) -> object:
    return finish(parse(Request("GET", "/", query, 1, {}), any_list, now_us=NOW_US))


def takes(parse: Parse, name: str, values: Sequence[str]) -> bool:
    """Tell whether a parameter may have these values."""
    # An end in the past needs a beginning before it.
    before = {"cursor": "0"} if name == "until" else {}
    try:
        read(parse, urlencode(before | {name: values}, doseq=True))
    except InvalidParameter:
        return False
    return True


def is_valid(parameter: Parameter, value: str) -> bool:
    """Tell whether a value of the query is one of the schema."""
    return jsonschema_rs.is_valid(dict(parameter.schema), decoded(parameter, value))


def decoded(parameter: Parameter, value: str) -> object:
    kind = parameter.schema.get("type")
    if kind == "array":
        return [value]
    if kind == "integer" and re.fullmatch("[0-9]+", value):
        return int(value)
    if kind == "boolean":
        return {"true": True, "false": False}.get(value, value)
    return value


class Recorder(dict[str, list[str]]):
    """A query that notes which parameters are looked for."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self._names = names

    def get(self, name: str, default: Any = None) -> Any:
        self._names.add(name)
        return default

    def __contains__(self, name: object) -> bool:
        self._names.add(str(name))
        return False


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_table_has_the_parameters_that_are_read(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table, parse = ENDPOINTS[endpoint]
    names: set[str] = set()

    def decoded(*_args: object, **_more: object) -> Steps[Recorder]:
        yield
        return Recorder(names)

    for module in (parameters, subscribe_events_parameters):
        monkeypatch.setattr(module, "decode_query", decoded)
    read(parse, "x" * (parameters.SHORT_CHARS + 1))  # too long to be remembered
    if endpoint == "subscribeEvents":
        names -= {"compress", *subscribe_events_parameters._ELSEWHERE}  # looked for, to refuse them
    else:
        names |= set(parameters._V1)  # looked for all at once
    assert sorted(each.name for each in table) == sorted(names)


def test_what_may_be_meant_is_in_the_table() -> None:
    assert set(parameters._KNOWN) == {each.name for each in SUBSCRIBE}


def test_an_event_stream_has_what_needs_no_websocket() -> None:
    left_out = {each.name for each in SUBSCRIBE} - {each.name for each in EVENT_STREAM}
    assert left_out == {"requireHello", "compress", "zstdDictionary"}


def compare(parse: Parse, parameter: Parameter, value: str) -> None:
    """The schema allows what is taken, and the other way round."""
    taken, valid = takes(parse, parameter.name, [value]), is_valid(parameter, value)
    if taken and not valid:
        assert value == "", parameter.name  # the same as no value
    if valid and not taken:
        assert parameter.name in ("cursor", "until")
        assert re.match("[0-9]{4}-", value)  # a date that does not exist


@pytest.mark.parametrize(("parse", "parameter"), ROWS)
def test_a_schema_allows_what_is_taken(parse: Parse, parameter: Parameter) -> None:
    for value in EDGES:
        compare(parse, parameter, value)


@given(SHORT.filter(lambda text: "," not in text))
def test_the_schemas_of_all_parameters_allow_what_is_taken(value: str) -> None:
    for row in ROWS:
        parse, parameter = row.values
        compare(parse, parameter, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("parse", "parameter"), ROWS)
def test_an_example_is_taken(parse: Parse, parameter: Parameter) -> None:
    if parameter.example is not None:
        example = parameter.example if isinstance(parameter.example, list) else [str(parameter.example)]
        assert takes(parse, parameter.name, example)
        assert all(is_valid(parameter, value) for value in example)


@pytest.mark.parametrize(("parse", "parameter"), LISTS)
def test_a_list_may_be_as_long_as_its_schema_says(parse: Parse, parameter: Parameter) -> None:
    most = parameter.schema["maxItems"]
    value = next(each for each in EDGES if each and is_valid(parameter, each))
    assert takes(parse, parameter.name, [value] * most)
    assert not takes(parse, parameter.name, [value] * (most + 1))


def test_the_id_of_a_list_is_valid() -> None:
    [parameter] = [each for each in SUBSCRIBE if each.name == "filter"]
    kept = finish(DidLists(WebLimits(), lambda: 0.0).add(b"did:plc:ann"))
    assert is_valid(parameter, kept.id)
    assert not is_valid(parameter, kept.id + "0")
    assert is_valid(parameter, "") == takes(parameters.parse_request, "filter", [""])
