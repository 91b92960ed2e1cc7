"""A key as it is kept, in memory and in a file. Pure.

key    34 bytes   a letter for the curve, and the compressed point; zeros: the account has no key
at     4 bytes    when that was so, in unix seconds, little-endian
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from jetstream.atproto.encoded_key import K256_PREFIX, P256_PREFIX, POINT_BYTES, EncodedKey

KEY_BYTES: Final = 1 + POINT_BYTES
NONE: Final = bytes(KEY_BYTES)
_LETTERS: Final = {K256_PREFIX: b"k", P256_PREFIX: b"p"}
_PREFIXES: Final = {letter: prefix for prefix, letter in _LETTERS.items()}
_PACKED: Final = Struct(f"<{KEY_BYTES}sI")
AT_MAX: Final = (1 << 32) - 1


class Held(NamedTuple):
    """What is known of an account's key."""

    key: EncodedKey | None  # None: it has none
    at_s: int  # when that was so, in unix seconds


def pack_key(key: EncodedKey | None) -> bytes:
    """Return a key as 34 bytes."""
    return NONE if key is None else _LETTERS[key.prefix] + key.point


def unpack_key(packed: bytes) -> EncodedKey | None:
    """Return the key that bytes are; None for 34 zeros, and for what is no key."""
    prefix = _PREFIXES.get(packed[:1])
    return None if prefix is None or len(packed) != KEY_BYTES else EncodedKey(prefix, packed[1:])


def pack(key: bytes, at_s: int) -> bytes:
    """Return a packed key and its time as 38 bytes."""
    return _PACKED.pack(key, min(max(at_s, 0), AT_MAX))


def unpack(packed: bytes) -> Held:
    """Return what 38 bytes hold."""
    key, at_s = _PACKED.unpack(packed)
    return Held(unpack_key(key), at_s)
