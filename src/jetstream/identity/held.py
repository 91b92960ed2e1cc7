"""What is known of an account as it is kept in memory, and keys as they are in a file. Pure.

key    34 bytes   a letter for the curve, and the compressed point; zeros: the account has no key
at     4 bytes    when that was so, in unix seconds, little-endian
pds    the rest   the host of the account's PDS; `-`: it has none; nothing: it is not known
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from jetstream.atproto.encoded_key import K256_PREFIX, P256_PREFIX, POINT_BYTES, EncodedKey

KEY_BYTES: Final = 1 + POINT_BYTES  # the letter of the curve, and a compressed point
NONE: Final = bytes(KEY_BYTES)
_LETTERS: Final = {K256_PREFIX: b"k", P256_PREFIX: b"p"}
_PREFIXES: Final = {letter: prefix for prefix, letter in _LETTERS.items()}
_PACKED: Final = Struct(f"<{KEY_BYTES}sI")
AT_MAX: Final = (1 << 32) - 1  # in the year 2106
_NO_PDS: Final = b"-"


class Held(NamedTuple):
    """What is known of an account."""

    key: EncodedKey | None  # None: it has none
    at_s: int  # when that was so, in unix seconds
    # The host of its PDS; empty: it has none. None: it is not known, since the key is from a file of an
    # earlier version.
    pds: str | None = None


def pack_key(key: EncodedKey | None) -> bytes:
    """Return a key as 34 bytes."""
    return NONE if key is None else _LETTERS[key.prefix] + key.point


def unpack_key(packed: bytes) -> EncodedKey | None:
    """Return the key that bytes are; None for 34 zeros, and for what is no key."""
    prefix = _PREFIXES.get(packed[:1])
    return None if prefix is None or len(packed) != KEY_BYTES else EncodedKey(prefix, packed[1:])


def pack(key: bytes, at_s: int, pds: str | None = None) -> bytes:
    """Return a packed key, its time and a PDS as 38 bytes and the name of the host."""
    host = b"" if pds is None else pds.encode() or _NO_PDS
    return _PACKED.pack(key, min(max(at_s, 0), AT_MAX)) + host


def unpack(packed: bytes) -> Held:
    """Return what `pack` has packed. Nothing is checked: other bytes give a wrong value, or struct.error."""
    key, at_s = _PACKED.unpack_from(packed)
    host = packed[_PACKED.size :]
    pds = "" if host == _NO_PDS else host.decode() or None
    return Held(unpack_key(key), at_s, pds)
