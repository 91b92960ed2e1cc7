from __future__ import annotations

import base64
import math
from typing import Any

import cbor2
import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures import json_of

from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import Cid, cid_of, raw_cid

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**63 - 1)
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.binary(min_size=32, max_size=32).map(raw_cid)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=30), inner, max_size=5),
    max_leaves=20,
)


def without_links(value: Any) -> Any:
    """Turn every link into the plain bytes that libipld gives for it."""
    if isinstance(value, dict):
        return {key: without_links(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_links(item) for item in value]
    return bytes(value) if isinstance(value, Cid) else value


def from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$link"}:
        return Cid(libipld.decode_multibase(value["$link"])[1])
    if value.keys() == {"$bytes"}:
        return base64.b64decode(value["$bytes"] + "==")
    return {key: from_json(item) for key, item in value.items()}


@given(VALUES)
def test_a_strict_decoder_reads_back_what_was_written(value: object) -> None:
    assert libipld.decode_dag_cbor(encode_cbor(value)) == without_links(value)


@given(SCALARS.filter(lambda value: not isinstance(value, bytes)) | st.text(min_size=200, max_size=70_000))
def test_scalars_are_written_as_canonical_cbor(value: object) -> None:
    assert encode_cbor(value) == cbor2.dumps(value, canonical=True)


def test_a_byte_string_that_looks_like_a_cid_stays_a_byte_string() -> None:
    link = cid_of(b"\xa0")
    assert encode_cbor(bytes(link)) == b"\x58\x24" + link
    assert encode_cbor(link) == b"\xd8\x2a\x58\x25\x00" + link
    assert cbor2.loads(encode_cbor(link)) == cbor2.CBORTag(42, b"\x00" + link)


def test_keys_are_sorted_by_length_then_bytes_whatever_their_order() -> None:
    assert encode_cbor({"bb": 1, "a": 2, "é": 3, "ab": 4}) == encode_cbor({"a": 2, "é": 3, "ab": 4, "bb": 1})
    assert list(libipld.decode_dag_cbor(encode_cbor({"bb": 1, "a": 2, "é": 3, "ab": 4}))) == [
        "a",
        "ab",
        "bb",
        "é",
    ]


@pytest.mark.parametrize("value", [1.5, math.nan, {1, 2}, (1,), {"a": [0.0]}])
def test_what_the_data_model_lacks_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no DAG-CBOR encoding"):
        encode_cbor(value)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_integers_beyond_64_bits_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        encode_cbor(value)


def test_the_published_vectors_have_the_published_bytes_and_cids() -> None:
    cases = json_of("interop/data-model/data-model-fixtures.json")
    assert cases
    for case in cases:
        block = encode_cbor(from_json(case["json"]))
        assert block == base64.b64decode(case["cbor_base64"] + "==")
        assert str(cid_of(block)) == case["cid"]
