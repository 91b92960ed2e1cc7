from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import Raw, cbor_map, cid_of, dag_cbor, head, nested

from jetstream.atproto.cbor import Unreadable, decode, decode_lax, decode_pair, depth
from jetstream.atproto.cid import Cid

LINK = cid_of(b"what is linked to")


def test_two_objects_are_a_frame() -> None:
    assert decode_pair(dag_cbor({"op": 1}) + dag_cbor({"a": LINK})) == ({"op": 1}, {"a": bytes(LINK)})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        dag_cbor({}),
        dag_cbor({}) * 3,
        bytes.fromhex("a2626f700161746723636f6d6d6974") + dag_cbor({}),
        cbor_map([("op", 1), ("a", 1)]),
        cbor_map([("op", 1), ("a", 1)]) * 3,
        dag_cbor({}) + b"\xff",
        dag_cbor({}) + b"\xa1",
        b"\xff" + dag_cbor({}),
        b"\x81" * 10_000,
        dag_cbor({}) + nested(10_000),
        dag_cbor({}) + b"\x9b" + b"\xff" * 8,
    ],
)
def test_anything_else_is_no_frame(raw: bytes) -> None:
    with pytest.raises(Unreadable):
        decode_pair(raw)


def test_one_object_is_one_object() -> None:
    assert decode(dag_cbor([1, "a", None])) == [1, "a", None]
    assert decode(cbor_map([("b", 1), ("a", 2)])) == {"b": 1, "a": 2}
    for raw in (b"", b"\x01\x01", b"\xff"):
        for read in (decode, decode_lax):
            with pytest.raises(Unreadable):
                read(raw)


def test_the_lax_way_tells_links_from_byte_strings() -> None:
    link, other = decode_lax(dag_cbor([LINK, bytes(LINK)]))

    assert (type(link), type(other)) == (Cid, bytes)
    assert link == other == LINK


def test_only_links_are_tagged() -> None:
    """Left to itself cbor2 makes dates, compiles patterns and shares values."""
    for tag in (*range(42), *range(43, 300), 1000, 1001, 43000, 55799, 2**32, 2**64 - 1):
        for value in (0, 1.5, "2024-09-05T06:11:04Z", "a(", b"\x01", [1, 2], {"a": 1}):
            with pytest.raises(Unreadable):
                decode(head(6, tag) + dag_cbor(value))


@pytest.mark.parametrize("value", [None, 1, "text", [b"\0"], {}, b"", b"\x01" + LINK, Raw(dag_cbor(LINK))])
def test_a_link_is_a_zero_and_a_cid(value: object) -> None:
    with pytest.raises(Unreadable):
        decode_lax(head(6, 42) + dag_cbor(value))


@pytest.mark.parametrize(
    ("value", "levels"),
    [
        (1, 0),
        ({}, 1),
        ([], 1),
        ({"a": 1}, 1),
        ({"a": [1]}, 2),
        ([[], [[]], {}], 3),
        ({"a": {"b": {"c": []}}}, 4),
    ],
)
def test_depth_counts_containers(value: object, levels: int) -> None:
    assert depth(value) == levels


def test_depth_needs_no_stack() -> None:
    value: object = 1
    for _ in range(100_000):
        value = [value]

    assert depth(value) == 100_000
    while isinstance(value, list):  # free it level by level: CPython's own way recurses
        value = value.pop()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.text()
    | st.binary(max_size=20)
    | st.floats(width=64),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_was_encoded_is_decoded(value: object) -> None:
    raw = dag_cbor(value)

    assert dag_cbor(decode_lax(raw)) == raw


@given(st.binary(max_size=80))
@settings(max_examples=200)
def test_noise_is_unreadable_or_read(noise: bytes) -> None:
    for read in (decode, decode_lax, decode_pair):
        try:
            read(noise)
        except Unreadable:
            continue
