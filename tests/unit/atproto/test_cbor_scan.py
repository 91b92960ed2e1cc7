from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import Cid, Raw, cid_of, commit, dag_cbor, frame, head, nested
from tests.fixtures import captured_frames

from jetstream.atproto.cbor import Unreadable, decode, decode_lax
from jetstream.atproto.cbor_scan import BYTES, MAP, TEXT, Scanner, item_heads, text_strings

LINK = cid_of(b"what is linked to")


def items(value: object) -> int:
    """Count what a value is made of, slowly: a link is a tag and a byte string."""
    match value:
        case dict():
            return 1 + sum(1 + items(item) for item in value.values())
        case list():
            return 1 + sum(map(items, value))
        case Cid():
            return 2
    return 1


def all_texts(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from all_texts(item)
        case dict():
            for key in sorted(value, key=dag_cbor):
                yield key
                yield from all_texts(value[key])


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.text(max_size=40)
    | st.binary(max_size=300)
    | st.just(LINK)
    | st.floats(),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=30), inner, max_size=4),
    max_leaves=40,
)


@given(VALUES)
def test_heads_are_the_items(value: Any) -> None:
    raw = dag_cbor(value)

    assert len(item_heads(raw, len(raw))) == items(value) <= len(raw)
    assert item_heads(raw, len(raw))[0] == raw[0]


@given(VALUES, st.integers(0, 100))
def test_no_more_heads_are_read_than_asked_for(value: Any, limit: int) -> None:
    raw = dag_cbor(value)

    assert item_heads(raw, limit) == item_heads(raw, len(raw))[:limit]


@given(VALUES)
def test_texts_are_the_texts(value: Any) -> None:
    assert list(text_strings(dag_cbor(value))) == [text.encode() for text in all_texts(value)]


@given(st.binary(max_size=200))
def test_a_decoder_makes_no_more_items_than_are_counted(noise: bytes) -> None:
    assert len(item_heads(noise, len(noise))) <= len(noise)
    assert all(type(text) is bytes for text in text_strings(noise))
    try:
        value = decode(noise)
    except Unreadable:
        return
    assert sum(1 for _ in _values(value)) <= len(item_heads(noise, len(noise)))


def _values(value: object) -> Iterator[object]:
    yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("major", [2, 3])
def test_a_string_is_one_step_however_long_its_length_is(major: int, width: int) -> None:
    raw = head(4, 2) + head(major, 200, width) + b"\x80" * 200 + b"\xf6"

    assert item_heads(raw, 9) == bytes((0x82, raw[1], 0xF6))
    assert list(text_strings(raw)) == ([b"\x80" * 200] if major == 3 else [])


@pytest.mark.parametrize("raw", [b"\x5b" + b"\xff" * 8, b"\x7a\xff", b"\x78", b"\x63ab", b"\x9b\xff"])
def test_what_ends_too_soon_is_counted_all_the_same(raw: bytes) -> None:
    assert len(item_heads(raw, 9)) == 1
    with pytest.raises(Unreadable):
        Scanner(raw, 9).skip()


def test_heads_of_captured_frames() -> None:
    for raw in captured_frames():
        split = Scanner(raw, 1_000)
        split.skip()
        header, body = decode_lax(raw[: split.position]), decode_lax(raw[split.position :])
        links = sum(1 for value in _values(body) if isinstance(value, bytes) and type(value) is not bytes)
        keys = sum(len(value) for value in _values([header, body]) if isinstance(value, dict))
        values = sum(1 for _ in _values([header, body])) - 1
        assert len(item_heads(raw, 1_000)) == values + keys + links


# Scanner


@given(VALUES, VALUES)
def test_skipping_ends_where_the_item_ends(value: Any, after: Any) -> None:
    raw = dag_cbor(value)
    scanner = Scanner(raw + dag_cbor(after), 1_000_000)
    scanner.skip()

    assert scanner.position == len(raw)


def test_a_scanner_reads_heads_and_bytes() -> None:
    scanner = Scanner(b"\xff" + head(3, 300) + b"x" * 300 + head(5, 2), 2, position=1)

    assert (scanner.head(), scanner.take(300), scanner.head()) == ((TEXT, 300), b"x" * 300, (MAP, 2))
    with pytest.raises(Unreadable, match="too many items"):
        scanner.head()


@pytest.mark.parametrize("raw", [b"", b"\x58", b"\x59\0", b"\x9f", b"\x1c", b"\x82\0", b"\xa1\0", b"\xc1"])
def test_a_scanner_stops_where_bytes_make_no_sense(raw: bytes) -> None:
    with pytest.raises(Unreadable):
        Scanner(raw, 99).skip()


@pytest.mark.parametrize("raw", [nested(100_000), head(4, 100_000) + bytes(100_000), b"\xc1" * 100_000])
def test_a_scanner_reads_no_more_items_than_it_may(raw: bytes) -> None:
    """And needs no stack for what is deep."""
    scanner = Scanner(raw, 50)
    with pytest.raises(Unreadable, match="too many items"):
        scanner.skip()

    assert scanner.position <= 200


def test_skipping_what_a_head_began() -> None:
    raw = dag_cbor([b"abc", {"a": [1, 2]}, 7])
    scanner = Scanner(raw, 99, position=1)
    kind, size = scanner.head()
    assert kind == BYTES
    scanner.skip_rest(kind, size)
    scanner.skip()

    assert raw[scanner.position :] == b"\x07"


def test_a_frame_of_strings_has_few_items() -> None:
    raw = commit(7, more=["x" * 1_000_000, Raw(head(2, 1_000_000) + b"\x80" * 1_000_000)])

    assert len(item_heads(raw, 1_000)) < 60
    assert len(item_heads(frame("#commit", {"a": [[]] * 10_000}), 100_000)) == 10_008
