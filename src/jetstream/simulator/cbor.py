"""Encode DAG-CBOR, strictly: one value has one encoding.

Source: the DRISL / DAG-CBOR profile that the ATProto data model names. Map keys are sorted by their
encoded bytes (so the shorter first), lengths are minimal, tag 42 is the only tag, floats do not exist.
A link is a `Cid`, never plain `bytes`: an encoder that guesses turns a byte string that looks like a CID
into a link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

import libipld

Emit = Callable[[bytes], None]

_DAG_CBOR_SHA256: Final = bytes.fromhex("01711220")
_RAW_SHA256: Final = bytes.fromhex("01551220")
_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP = 0, 1, 2, 3, 4, 5
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1

# Tag 42, a byte string of 37, and the multibase prefix 00 that the data model demands before the CID.
LINK_HEAD: Final = bytes.fromhex("d82a582500")


class Cid(bytes):
    """The 36 bytes of a CIDv1 over SHA-256: a link, where plain `bytes` are a byte string."""

    __slots__ = ()

    def __str__(self) -> str:
        """Write the CID as text: base32, lower case."""
        return libipld.encode_cid(bytes(self))


def cid_of(block: bytes) -> Cid:
    """Name a DAG-CBOR block: a record, a tree node or a commit."""
    return Cid(_DAG_CBOR_SHA256 + sha256(block).digest())


def raw_cid(digest: bytes) -> Cid:
    """Name a blob by the SHA-256 of its bytes."""
    return Cid(_RAW_SHA256 + digest)


def _long_head(major: int, number: int) -> bytes:
    kind = major << 5
    if number < 24:
        return bytes((kind | number,))
    if number < 0x100:
        return bytes((kind | 24, number))
    if number < 0x10000:
        return bytes((kind | 25,)) + number.to_bytes(2, "big")
    if number < 0x100000000:
        return bytes((kind | 26,)) + number.to_bytes(4, "big")
    return bytes((kind | 27,)) + number.to_bytes(8, "big")


# Heads are looked up, not computed: computing them was a third of the time that a record took.
_HEADS: Final = tuple(tuple(_long_head(major, number) for number in range(1024)) for major in range(6))
_TEXT_HEADS: Final = _HEADS[_TEXT]


def head(major: int, number: int) -> bytes:
    """Write the shortest head of a CBOR item: its major type with a length or value below 2^64."""
    return _HEADS[major][number] if number < 1024 else _long_head(major, number)


def encode(value: object) -> bytes:
    """Encode a value: null, bool, int of 64 bits, str, bytes, `Cid`, list, or dict with str keys.

    Raises TypeError for any other type, floats among them, and ValueError for an integer out of range.
    Nesting is bounded by Python's own recursion limit, far above the 32 levels that records may have.
    """
    parts: list[bytes] = []
    _emit(value, parts.append)
    return b"".join(parts)


def text(value: str) -> bytes:
    """Encode a string."""
    encoded = value.encode()
    return head(_TEXT, len(encoded)) + encoded


class _Layout(NamedTuple):
    """How the maps with one set of keys are written: the head, then every encoded key in order."""

    head: bytes
    keys: tuple[tuple[bytes, str], ...]


@lru_cache(maxsize=4096)
def _layout(keys: tuple[str, ...]) -> _Layout:
    encoded = []
    for key in keys:
        text = key.encode()
        encoded.append((head(_TEXT, len(text)) + text, key))
    return _Layout(head(_MAP, len(keys)), tuple(sorted(encoded)))


def _emit(value: object, emit: Emit) -> None:
    writer = _WRITERS.get(type(value))
    if writer is None:
        raise TypeError(f"{type(value).__name__} has no DAG-CBOR encoding: {value!r}")
    writer(value, emit)


def _emit_null(_: None, emit: Emit) -> None:
    emit(b"\xf6")


def _emit_bool(value: bool, emit: Emit) -> None:
    emit(b"\xf5" if value else b"\xf4")


def _emit_int(value: int, emit: Emit) -> None:
    if not _INT_MIN <= value <= _INT_MAX:
        raise ValueError(f"{value} is outside the 64-bit integers of the data model")
    emit(head(_UINT, value) if value >= 0 else head(_NEGATIVE, -1 - value))


def _emit_text(value: str, emit: Emit) -> None:
    text = value.encode()
    size = len(text)
    emit(_TEXT_HEADS[size] if size < 1024 else head(_TEXT, size))
    emit(text)


def _emit_bytes(value: bytes, emit: Emit) -> None:
    emit(head(_BYTES, len(value)))
    emit(value)


def _emit_link(value: Cid, emit: Emit) -> None:
    emit(LINK_HEAD)
    emit(value)


def _emit_list(value: list[object], emit: Emit) -> None:
    emit(head(_ARRAY, len(value)))
    for item in value:
        _emit(item, emit)


def _emit_map(value: Mapping[str, object], emit: Emit) -> None:
    layout = _layout(tuple(value))
    emit(layout.head)
    for key_bytes, key in layout.keys:
        emit(key_bytes)
        item = value[key]
        if type(item) is str:  # most values are: 20 % less time for a record
            _emit_text(item, emit)
        else:
            _emit(item, emit)


_WRITERS: Final[dict[type, Callable[[Any, Emit], None]]] = {
    type(None): _emit_null,
    bool: _emit_bool,
    int: _emit_int,
    str: _emit_text,
    bytes: _emit_bytes,
    Cid: _emit_link,
    list: _emit_list,
    dict: _emit_map,
}
