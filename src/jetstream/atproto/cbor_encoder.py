"""Encode DAG-CBOR. Every value has exactly one encoding.

Map keys are sorted by their encoded bytes, so shorter keys come first; lengths are minimal; tag 42 is the
only tag; there are no floats. A link is a `Cid`, and plain `bytes` are a byte string: an encoder that guessed
would turn a byte string that looks like a CID into a link.

`cbor` decodes; the two share no code. Source: the data model page of the AT Protocol specification, and the
DAG-CBOR (DRISL) profile that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from jetstream.atproto.cid import LINK_HEAD, Cid

# Takes the next part of an encoding. The parts are joined at the end.
Emit = Callable[[bytes], None]

# Major types (RFC 8949, section 3.1), and the integers of the data model: 64 bits, signed.
_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP = 0, 1, 2, 3, 4, 5
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1


def _long_head(major: int, number: int) -> bytes:
    """Return the shortest head: the number is in the first byte, or in 1, 2, 4 or 8 bytes after it."""
    if number < 24:
        return bytes((major << 5 | number,))
    exponent = (number > 0xFF) + (number > 0xFFFF) + (number > 0xFFFFFFFF)
    return bytes((major << 5 | 24 + exponent,)) + number.to_bytes(1 << exponent, "big")


# Heads are looked up in a table: computing them took a third of the time of encoding a record.
_HEADS: Final = tuple(tuple(_long_head(major, number) for number in range(1024)) for major in range(6))
_TEXT_HEADS: Final = _HEADS[_TEXT]


def cbor_head(major: int, number: int) -> bytes:
    """Return the shortest head of a CBOR item: a major type with a length or value below 2^64.

    `major` is 0 to 5; tags and simple values have no heads here. DAG-CBOR requires the shortest head that
    holds the number.
    """
    return _HEADS[major][number] if number < 1024 else _long_head(major, number)


def encode_cbor(value: object) -> bytes:
    """Encode None, a bool, an int of 64 bits, str, bytes, `Cid`, a list, or a dict with str keys.

    Raises TypeError for any other type, including float, and ValueError for an integer out of range. Nesting
    is limited by Python's recursion limit, far above the 32 levels that records may have.
    """
    parts: list[bytes] = []
    _emit(value, parts.append)
    return b"".join(parts)


def encode_text(value: str) -> bytes:
    """Encode a string."""
    encoded = value.encode()
    return cbor_head(_TEXT, len(encoded)) + encoded


# Records of one collection have few different sequences of keys.
@lru_cache(maxsize=4096)
def _layout(keys: tuple[str, ...]) -> tuple[bytes, list[tuple[bytes, str]]]:
    """Return how a map with these keys is encoded, whatever their order.

    That is the head of the map, and each key, encoded and as it is, in the order of DAG-CBOR.
    """
    return cbor_head(_MAP, len(keys)), sorted((encode_text(key), key) for key in keys)


def _emit(value: object, emit: Emit) -> None:
    """Emit the encoding of a value in parts. The exact type decides: a subclass of `str` is not text."""
    writer = _WRITERS.get(type(value))
    if writer is None:
        raise TypeError(f"{type(value).__name__} has no DAG-CBOR encoding: {value!r}")
    writer(value, emit)


def _emit_int(value: int, emit: Emit) -> None:
    """Emit an integer. Raises ValueError above 64 bits."""
    if not _INT_MIN <= value <= _INT_MAX:
        raise ValueError(f"{value} is outside the 64-bit integers of the data model")
    emit(cbor_head(_UINT, value) if value >= 0 else cbor_head(_NEGATIVE, -1 - value))


def _emit_text(value: str, emit: Emit) -> None:
    """Emit a string, in UTF-8. Raises UnicodeEncodeError, a ValueError, for a lone surrogate."""
    text = value.encode()
    size = len(text)
    emit(_TEXT_HEADS[size] if size < 1024 else cbor_head(_TEXT, size))
    emit(text)


def _emit_bytes(value: bytes, emit: Emit) -> None:
    """Emit a byte string. A `Cid` does not come here: it is a link."""
    emit(cbor_head(_BYTES, len(value)))
    emit(value)


def _emit_link(value: Cid, emit: Emit) -> None:
    """Emit a link: tag 42, and a byte string of a zero byte and the CID."""
    emit(LINK_HEAD)
    emit(value)


def _emit_list(value: list[object], emit: Emit) -> None:
    """Emit a list, whose items stay in order."""
    emit(cbor_head(_ARRAY, len(value)))
    for item in value:
        _emit(item, emit)


def _emit_map(value: Mapping[str, object], emit: Emit) -> None:
    """Emit a map, its keys sorted by their encoding. Raises AttributeError for a key that is no string."""
    head, keys = _layout(tuple(value))
    emit(head)
    for key_bytes, key in keys:
        emit(key_bytes)
        item = value[key]
        if type(item) is str:  # most values are strings; this saves 20 % of a record's time
            _emit_text(item, emit)
        else:
            _emit(item, emit)


# What emits a value, by its exact type: `bool` is a subclass of `int`, and `Cid` of `bytes`.
_WRITERS: Final[dict[type, Callable[[Any, Emit], None]]] = {
    type(None): lambda _, emit: emit(b"\xf6"),
    bool: lambda value, emit: emit(b"\xf5" if value else b"\xf4"),
    int: _emit_int,
    str: _emit_text,
    bytes: _emit_bytes,
    Cid: _emit_link,
    list: _emit_list,
    dict: _emit_map,
}
