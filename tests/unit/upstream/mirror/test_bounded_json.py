"""The items of JSON are counted rightly before it is read, whatever its texts hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.upstream.drops import Dropped
from jetstream.upstream.mirror.bounded_json import items_of, parse_exactly, parse_json, parse_object

TEXTS = st.text(max_size=8) | st.text(alphabet=',[{"\\', max_size=12)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda one: st.lists(one, max_size=5) | st.dictionaries(TEXTS, one, max_size=5),
)


def items(value: Any) -> int:
    """Count the lists, maps and commas of a value."""
    if not isinstance(value, list | dict):
        return 0
    inner = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(len(inner) - 1, 0) + sum(map(items, inner))


@given(VALUES, st.integers(0, 20), st.booleans())
def test_the_items_are_those_of_the_value(value: Any, items_max: int, is_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii).encode(errors="replace")
    assert (items_of(text, items_max) > items_max) is (items(value) > items_max)


@given(
    VALUES, st.integers(0, 20), st.binary(max_size=10) | st.text(alphabet='\\"a', max_size=10).map(str.encode)
)
def test_nothing_that_follows_hides_items(value: Any, items_max: int, suffix: bytes) -> None:
    """orjson reads up to what is no JSON."""
    if items(value) > items_max:
        assert items_of(json.dumps(value).encode() + suffix, items_max) > items_max


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[1,2,3]", "frame_items"),
        (b'{"a":[[]]}', "frame_items"),
        (b"[[[[", "frame_items"),
        (b'[","', "message_form"),
        (b"[1", "message_form"),
        (b"[\xff]", "message_form"),
        (b"", "message_form"),
    ],
)
def test_what_has_too_many_items_or_is_no_json_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(Dropped) as raised:
        parse_json(text, 2)
    assert raised.value.reason == reason


def test_text_and_few_items_are_read() -> None:
    assert parse_json(b'["a,[{b\\"c,\\\\",1]', 2) == ['a,[{b"c,\\', 1]
    assert parse_object(b'{"a":1,"b":2}', 2) == {"a": 1, "b": 2}
    with pytest.raises(Dropped, match="message_form"):
        parse_object(b"[]")


def test_integers_are_read_exactly_up_to_fewer_items() -> None:
    assert parse_exactly(b"[18446744073709551617]", 1) == [2**64 + 1]
    with pytest.raises(Dropped, match="record_items"):
        parse_exactly(b"[18446744073709551617,1]", 1)
    with pytest.raises(Dropped, match="message_form"):
        parse_exactly(b"[" * 5_000 + b"]" * 5_000, 5_000)
