"""The CAR file of a commit: where each block's bytes are.

    uvarint(n) ‖ DAG-CBOR {"roots": [CID], "version": 1}        n bytes
    uvarint(n) ‖ CID (36 bytes) ‖ block                          n bytes, again and again

Only the extents are found here: tree nodes are never decoded (libipld's `decode_car` decodes all, 20 µs
a frame against 3). Hashes are the business of whoever uses a block. Source: CARv1 specification.
"""

from __future__ import annotations

from typing import Final

from jetstream.firehose.cbor import Unreadable, decode

CID_BYTES: Final = 36  # version 1, one-byte codec, sha-256: all that repositories use
# The header that every relay writes: one root, version 1.
_HEADER_HEAD: Final = bytes.fromhex("3aa265726f6f747381d82a58250001711220")
_HEADER_TAIL: Final = bytes.fromhex("6776657273696f6e01")
_HEADER_BYTES: Final = 59
_VARINT_BYTES_MAX: Final = 9


def index(car: bytes) -> dict[bytes, tuple[int, int]]:
    """Return where each block is, by its binary CID: `car[start:stop]`.

    Blocks under CIDs of another length are passed over. Raises Unreadable for a bad header, for a block
    that runs past the end, and for anything else that is not a CAR of version 1.
    """
    blocks = {}
    end = len(car)
    position = _after_header(car)
    try:
        while position < end:
            size = car[position]
            position += 1
            if size > 127:
                more = car[position]
                if more < 128:
                    size += (more - 1) << 7
                    position += 1
                else:
                    size, position = _uvarint(car, position - 1)
            stop = position + size
            # A block too short for its CID gets a key that no op can have, or an empty extent.
            start = position + CID_BYTES
            blocks[car[position:start]] = (start, stop)
            position = stop
    except IndexError as error:
        raise Unreadable("the CAR ends inside a length") from error
    if position != end:
        raise Unreadable(f"the CAR's last block needs {position - end} more bytes")
    return blocks


def _after_header(car: bytes) -> int:
    if car.startswith(_HEADER_HEAD) and car.startswith(_HEADER_TAIL, _HEADER_BYTES - len(_HEADER_TAIL)):
        return _HEADER_BYTES
    try:
        size, position = _uvarint(car, 0)
    except IndexError as error:
        raise Unreadable("the CAR is empty or ends inside its header") from error
    stop = position + size
    if stop > len(car):
        raise Unreadable("the CAR ends inside its header")
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
