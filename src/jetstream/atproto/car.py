"""Find blocks in the CAR of a commit, without decoding any; and write CAR files (CARv1 specification).

    uvarint(n) ‖ DAG-CBOR {"roots": [CID], "version": 1}        n bytes: the header
    uvarint(n) ‖ CID (36 bytes) ‖ block                          n bytes: a section, repeated to the end

Most of a commit's blocks are nodes of the repository's tree; a decoder that decodes all of them, as libipld's
`decode_car` does, takes 20 µs a frame. There are two ways to a record instead. `proven` searches for its CID
and checks the hash, which costs the same however many blocks there are. `Blocks` scans the lengths of all
sections. `checked_blocks` does so too, and checks every hash, for a consumer that verifies commits.

Blocks may be in any order, and a block may be there twice: of one CID, the last counts. Links between blocks
are not followed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Final, NamedTuple

from jetstream.atproto.cbor import Unreadable, decode
from jetstream.atproto.cid import CID_BYTES, DAG_CBOR_SHA256, LINK_HEAD, Cid, raw_cid

# The header that every relay writes, around the CID of its one root. Any other is decoded.
_HEADER_HEAD: Final = b"\x3a\xa2\x65roots\x81" + LINK_HEAD
_HEADER_TAIL: Final = b"\x67version\x01"
# Both parts of a header whose root is a DAG-CBOR block, where they are, and the bytes of the whole.
_USUAL_HEAD: Final = _HEADER_HEAD + DAG_CBOR_SHA256
_HEADER_TAIL_AT: Final = len(_HEADER_HEAD) + CID_BYTES
_HEADER_BYTES: Final = _HEADER_TAIL_AT + len(_HEADER_TAIL)
# Bytes of a length: the limit of the multiformats specification (unsigned-varint).
_VARINT_BYTES_MAX: Final = 9
# Blocks of one CAR, at 0.25 µs each. A thousand ops in the largest repository need nine thousand tree nodes.
BLOCKS_MAX: Final = 10_000
# Bytes of a header, which is decoded as a whole. Ten roots take half of it.
_HEADER_BYTES_MAX: Final = 1_024
# Bytes of a CAR that is searched for a CID. A search may compare a whole CID at each place: in a longer one
# that could take milliseconds.
_SEARCHED_BYTES_MAX: Final = 16_384


class Mismatch(Exception):
    """A block of a CAR does not hash to its CID. The text names the CID."""


def proven(car: bytes, cid: bytes) -> bytes | None:
    """Return the record that follows its CID and hashes to it; None where only `Blocks` can tell.

    The bytes before the CID are taken for a length of one or two bytes. Only the hash shows that this is
    right. `cid` may be bytes of any length. It must be of the codec dag-cbor; a blob (`raw`) is not
    found.
    """
    if len(cid) != CID_BYTES or len(car) > _SEARCHED_BYTES_MAX:
        return None
    # The CID stands before its record, and in the tree's nodes. Those usually come first, so search from the
    # end.
    start = car.rfind(cid)
    if start < 2:
        return None
    low, high = car[start - 2], car[start - 1]
    size = (low & 127) | high << 7 if low > 127 else high
    record = car[start + CID_BYTES : start + size]
    return record if cid == DAG_CBOR_SHA256 + sha256(record).digest() else None


class Blocks:
    """The blocks of one CAR, by their binary CID. None is copied or hashed until it is asked for.

    Raises Unreadable for a bad header, a block that runs past the end, more than `BLOCKS_MAX` blocks, and
    anything else that is not a CAR of version 1.
    """

    __slots__ = ("_car", "_starts", "_stops")

    def __init__(self, car: bytes) -> None:
        self._car = car
        # Where each section ends, by where its CID starts; and where each CID starts.
        self._stops = _stops(car)
        self._starts = {car[start : start + CID_BYTES]: start for start in self._stops}

    def get(self, cid: bytes) -> bytes | None:
        """Return a block's bytes, unchecked; None if there is none. Only CIDs of 36 bytes are found.

        The caller compares the hash. Costs a copy of the block.
        """
        start = self._starts.get(cid)
        if start is None:
            return None
        return self._car[start + CID_BYTES : self._stops[start]]


def checked_blocks(car: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Return the first root of a CAR, and its blocks by their CID. Each block hashes to its CID.

    Raises Unreadable as `Blocks` does, and Mismatch for a block with another hash.
    """
    blocks: dict[bytes, bytes] = {}
    for start, stop in _stops(car).items():
        body = start + CID_BYTES
        cid, block = car[start:body], car[body:stop]
        if cid != DAG_CBOR_SHA256 + sha256(block).digest():
            _require_raw(cid, block)
        blocks[cid] = block
    return _root(car), blocks


def _require_raw(cid: bytes, block: bytes) -> None:
    """Raise Mismatch for a block that is not under the CID of its bytes as they are (codec `raw`)."""
    if cid == raw_cid(sha256(block).digest()):
        return
    raise Mismatch(f"the block of {Cid(cid)} has another hash")


def _root(car: bytes) -> bytes:
    """Return the first root of a CAR whose header was read before. Raises Unreadable.

    The usual header is compared with the bytes that relays write; only another one is decoded.
    """
    if car.startswith(_USUAL_HEAD) and car.startswith(_HEADER_TAIL, _HEADER_TAIL_AT):
        return car[len(_HEADER_HEAD) : _HEADER_TAIL_AT]
    size, position = _uvarint(car, 0)
    roots = decode(car[position : position + size])["roots"]
    if type(roots) is not list or not isinstance(roots[0], bytes):
        raise Unreadable("the CAR's header has roots that are no CIDs")
    return bytes(roots[0])


def _stops(car: bytes) -> dict[int, int]:
    """Return where each section ends, by where its CID starts. A section too short for a CID is skipped."""
    stops = {}
    end = len(car)
    usual = car.startswith(_USUAL_HEAD) and car.startswith(_HEADER_TAIL, _HEADER_TAIL_AT)
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
    """Return where the header ends. Raises Unreadable."""
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
    """Return an unsigned varint and the position after it. Raises IndexError at the end, and Unreadable.

    One with needless bytes at its end is read as well, though the specification forbids it.
    """
    value = 0
    for shift in range(0, 7 * _VARINT_BYTES_MAX, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise Unreadable("a length of more than nine bytes in the CAR")


class Block(NamedTuple):
    """One block of a CAR file, with its CID."""

    # It is not compared with the data when one is made.
    cid: Cid
    data: bytes


def write_car(root: Cid, blocks: Iterable[tuple[Cid, bytes]]) -> bytes:
    """Return a CAR file with one root. The blocks are written in the order given.

    Nothing is checked: neither that a block hashes to its CID, nor that the root is among them.
    """
    parts = [_HEADER_HEAD, root, _HEADER_TAIL]
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


_UVARINTS: Final = tuple(uvarint(number) for number in range(4096))  # covers the sizes of nearly all blocks
