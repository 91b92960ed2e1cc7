"""How bytes and values are damaged, and some that are dangerous by themselves."""

from __future__ import annotations

from typing import Any

import cbor2
from hypothesis import strategies as st
from tests.builders import Cid, Raw, cbor_map, cid_of, nested

INTEGERS = (
    0,
    1,
    23,
    24,
    255,
    256,
    65535,
    65536,
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)

# A position is drawn as a fraction, so that an example means the same to data of any length.
_places = st.floats(0, 1, exclude_max=True)
_damages = st.lists(
    st.tuples(
        st.sampled_from(("flip", "set", "cut", "drop", "repeat", "insert")), _places, st.binary(max_size=40)
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Draw bytes with some flipped, set, left out, repeated, put in or cut off."""
    data = bytearray(draw(whole))
    for kind, place, some in draw(_damages):
        _damage(data, kind, int(place * len(data)), some)
    return bytes(data)


def _damage(data: bytearray, kind: str, at: int, some: bytes) -> None:
    size = len(some)
    if kind == "flip" and data:
        data[at] ^= 1 << (size & 7)
    elif kind == "set":
        data[at : at + size] = some
    elif kind == "cut":
        del data[at:]
    elif kind == "drop":
        del data[at : at + size]
    elif kind == "repeat":
        data[at:at] = data[at : at + size * 10]
    elif kind == "insert":
        data[at:at] = some


def cbor_values() -> st.SearchStrategy[Any]:
    """Draw values for `builders.dag_cbor`: their ends can be found, though DAG-CBOR may forbid them."""
    return cheap_values() | _costly


def cheap_values() -> st.SearchStrategy[Any]:
    """Draw those of them that are short and flat."""
    return st.recursive(_scalars, _containers, max_leaves=12)


def broken_values() -> st.SearchStrategy[Any]:
    """Draw CBOR without an end: an endless list, a text longer than there are bytes, a break, half a tag."""
    return st.sampled_from([Raw(b"\x9f\x01"), Raw(b"\x7b" + b"\xff" * 8), Raw(b"\xff"), Raw(b"\xd8\x2a\x41")])


_scalars: st.SearchStrategy[Any] = st.one_of(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20) | st.binary(max_size=40),
    st.sampled_from(INTEGERS) | st.integers(-(1 << 64), (1 << 64) - 1),
    st.sampled_from([cid_of(b"x"), Cid(b"\x01\x71"), Cid(b""), Cid(b"\xff" * 36)]),
    # A text that is not UTF-8, a float of 16 bits, an unknown tag.
    st.sampled_from([Raw(b"\x62\xff\xfe"), Raw(b"\xf9\x3c\x00"), Raw(b"\xc0\x00")]),
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.text(max_size=10) | st.sampled_from(["$type", "$link", "$bytes", "ref", "a" * 300])
    pairs = st.lists(st.tuples(keys | _scalars, inner), max_size=4)
    return st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4) | pairs.map(cbor_map)


_costly: st.SearchStrategy[Any] = st.one_of(
    st.integers(1, 200).map(nested),
    st.integers(1, 200).map(lambda deep: Raw(b"\x81" * deep + b"\x80")),
    st.integers(1, 60_000).map(lambda count: Raw(b"\x9a" + count.to_bytes(4, "big") + b"\x80" * count)),
    st.integers(1, 60_000).map(lambda count: "\0" * count),
    st.integers(1, 3_000).map(lambda count: cbor_map((f"{count - i}", i) for i in range(count))),
)


def plain(value: Any) -> Any:
    """Return what cbor2 has read as values for `builders.dag_cbor`."""
    match value:
        case cbor2.CBORTag(tag=42, value=bytes(data)):
            return Cid(data[1:])
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    return value
