"""Write CAR files: a header that names the root, then the blocks, each with its length and CID.

    uvarint(58)  DAG-CBOR {"roots": [root], "version": 1}
    uvarint(n)   CID (36 bytes), block          n bytes in all; repeated

`car` reads them; the two share no code. Source: the CARv1 specification.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from jetstream.atproto.cbor_encoder import LINK_HEAD
from jetstream.atproto.cid import Cid


class Block(NamedTuple):
    """One block of a CAR file, with its CID."""

    cid: Cid
    data: bytes


def write_car(root: Cid, blocks: Iterable[tuple[Cid, bytes]]) -> bytes:
    """Return a CAR file with one root. The blocks are written in the order given."""
    parts = [_HEADER_BEFORE_ROOT, root, _HEADER_AFTER_ROOT]
    for cid, data in blocks:
        size = len(cid) + len(data)
        parts += (_UVARINTS[size] if size < len(_UVARINTS) else uvarint(size), cid, data)
    return b"".join(parts)


def uvarint(number: int) -> bytes:
    """Encode an unsigned varint: seven bits a byte, lowest first; the high bit means that more follow."""
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


_HEADER_BEFORE_ROOT: Final = b"\x3a\xa2\x65roots\x81" + LINK_HEAD
_HEADER_AFTER_ROOT: Final = b"\x67version\x01"
_UVARINTS: Final = tuple(uvarint(number) for number in range(4096))  # covers the sizes of nearly all blocks
