"""DIDs as a few bytes, as the key of a table: 15 for `did:plc`, 16 for others.

A `did:plc` is 24 characters of base 32, which are 15 bytes. Any other DID, which may have 2,048 characters,
is a 1 and 15 bytes of its SHA-256: the length keeps the two apart.
"""

from __future__ import annotations

import re
from base64 import b32encode
from hashlib import sha256
from typing import Final

# What a `did:plc` begins with, and the bytes of the 24 characters after it.
PLC: Final = "did:plc:"
PLC_BYTES: Final = 15
# Python's digits of base 32 for those of a DID. So it takes 0.6 µs, and `base64` 6.
_DIGITS: Final = str.maketrans("abcdefghijklmnopqrstuvwxyz234567", "0123456789abcdefghijklmnopqrstuv")
_PLC: Final = re.compile(r"did:plc:[a-z2-7]{24}", re.ASCII).fullmatch


def is_plc(did: str) -> bool:
    """Tell whether a text is a valid `did:plc`."""
    return _PLC(did) is not None


def compact_did(did: str) -> bytes:
    """Return a DID as 15 or 16 bytes. It is not checked: any text has some.

    Of 16 bytes, 15 are of a hash: to find two DIDs with equal ones takes about 2^60 tries, and to find
    one for a DID that is given 2^120.
    """
    if is_plc(did):
        return int(did[len(PLC) :].translate(_DIGITS), 32).to_bytes(PLC_BYTES, "big")
    return b"\1" + sha256(did.encode()).digest()[:PLC_BYTES]


def plc_did(compact: bytes) -> str:
    """Return the `did:plc` that 15 bytes are: the inverse of `compact_did` for these."""
    return PLC + b32encode(compact).decode().lower()
