"""The CAR file of a commit: where each block's bytes are.

    uvarint(n) ‖ DAG-CBOR {"roots": [CID], "version": 1}        n bytes
    uvarint(n) ‖ CID (36 bytes) ‖ block                          n bytes, again and again

Tree nodes are never decoded (libipld's `decode_car` decodes all, 20 µs a frame). `proven` finds one record
and lets its hash vouch for it; `Blocks` walks over the lengths of all blocks. Source: CARv1 specification.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from jetstream.atproto.cbor import Unreadable, decode

CID_BYTES: Final = 36  # version 1, one-byte codec, sha-256: all that repositories use
# The header that every relay writes: one root, version 1.
_HEADER_HEAD: Final = bytes.fromhex("3aa265726f6f747381d82a58250001711220")
_HEADER_TAIL: Final = bytes.fromhex("6776657273696f6e01")
_HEADER_BYTES: Final = 59
_HEADER_TAIL_AT: Final = _HEADER_BYTES - len(_HEADER_TAIL)
_VARINT_BYTES_MAX: Final = 9
# A record's CID: version 1, dag-cbor, sha-256 of 32 bytes.
RECORD_CID_HEAD: Final = b"\x01\x71\x12\x20"
# Of one commit, at 0.25 µs each: a thousand ops in the largest repository need nine thousand tree nodes.
BLOCKS_MAX: Final = 10_000
_HEADER_BYTES_MAX: Final = 1_024  # it is decoded; ten roots are half of it
# In a longer CAR a search from the end could take milliseconds, for it may compare a whole CID at each place.
_SEARCHED_BYTES_MAX: Final = 16_384


def proven(car: bytes, cid: bytes) -> bytes | None:
    """Return the record that stands behind its CID and hashes to it; None where only a walk can tell.

    Nothing else of the CAR is looked at, so this costs the same however many blocks there are. The length
    before the CID is a guess until the hash has shown it to be right.
    """
    if len(cid) != CID_BYTES or len(car) > _SEARCHED_BYTES_MAX:
        return None
    # The CID stands before its block, and in the tree's nodes, which come first as a rule.
    start = car.rfind(cid)
    if start < 2:
        return None
    low, high = car[start - 2], car[start - 1]
    size = (low & 127) | high << 7 if low > 127 else high
    record = car[start + CID_BYTES : start + size]
    return record if cid == RECORD_CID_HEAD + sha256(record).digest() else None


class Blocks:
    """The blocks of one CAR, by their binary CID.

    Raises Unreadable for a bad header, for a block that runs past the end, for more than `BLOCKS_MAX` blocks,
    and for anything else that is not a CAR of version 1.
    """

    __slots__ = ("_car", "_starts", "_stops")

    def __init__(self, car: bytes) -> None:
        self._car = car
        self._stops = _stops(car)
        self._starts = {car[start : start + CID_BYTES]: start for start in self._stops}

    def get(self, cid: bytes) -> bytes | None:
        """Return a block's bytes, unverified; None if it is not here. Only CIDs of 36 bytes are found."""
        start = self._starts.get(cid)
        if start is None:
            return None
        return self._car[start + CID_BYTES : self._stops[start]]


def _stops(car: bytes) -> dict[int, int]:
    """Return where each block ends, by where its CID starts. What is too short for a CID is passed over."""
    stops = {}
    end = len(car)
    usual = car.startswith(_HEADER_HEAD) and car.startswith(_HEADER_TAIL, _HEADER_TAIL_AT)
    position = _HEADER_BYTES if usual else _after_header(car)
    try:
        for _ in range(BLOCKS_MAX):
            if position >= end:
                break
            size = car[position]
            if size < 128:
                start = position + 1
            elif (more := car[position + 1]) < 128:
                size += (more - 1) << 7
                start = position + 2
            else:
                size, start = _uvarint(car, position)
            position = start + size
            if size >= CID_BYTES:
                stops[start] = position
    except IndexError as error:
        raise Unreadable("the CAR ends inside a length") from error
    if position != end:
        what = "more than 10,000 blocks" if position < end else "a last block that is cut off"
        raise Unreadable(f"the CAR has {what}")
    return stops


def _after_header(car: bytes) -> int:
    try:
        size, position = _uvarint(car, 0)
    except IndexError as error:
        raise Unreadable("the CAR is empty or ends inside its header") from error
    stop = position + size
    if size > _HEADER_BYTES_MAX or stop > len(car):
        raise Unreadable("the CAR's header is over 1,024 bytes, or ends too soon")
    header = decode(car[position:stop])
    if not isinstance(header, dict) or header.get("version") != 1 or not header.get("roots"):
        raise Unreadable("the CAR's header has no roots, or is not of version 1")
    return stop


def _uvarint(data: bytes, position: int) -> tuple[int, int]:
    """Return an unsigned varint and the position after it. Raises IndexError, Unreadable."""
    value = 0
    for shift in range(0, 7 * _VARINT_BYTES_MAX, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise Unreadable("a length of more than nine bytes in the CAR")
