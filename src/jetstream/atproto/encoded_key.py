"""Public keys as bytes: what is kept of a key, and how documents write it.

    Multikey   `z`, and in base58btc: two bytes that name the curve, and the compressed point
    did:key    `did:key:`, and the Multikey

Source: the cryptography page of the AT Protocol specification. `keys` verifies signatures.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import coincurve
import libipld
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

K256_PREFIX: Final = b"\xe7\x01"  # multicodec secp256k1-pub, as a varint
P256_PREFIX: Final = b"\x80\x24"  # multicodec p256-pub, as a varint
POINT_BYTES: Final = 33  # of a compressed point: 2 or 3, for the sign of y, and x
_ENCODINGS: Final = {(POINT_BYTES, b"\2"), (POINT_BYTES, b"\3"), (65, b"\4")}  # the last has x and y
# Characters of a key in base58btc: an uncompressed point has 90. Decoding takes time by the square of
# the length.
_MULTIBASE_CHARS_MAX: Final = 100
_DID_KEY: Final = "did:key:"
_SHOWN_CHARS: Final = 60  # of a bad key, in an error


class EncodedKey(NamedTuple):
    """A public key: a point that is known to be on its curve."""

    prefix: bytes  # names the curve: `K256_PREFIX` or `P256_PREFIX`
    point: bytes  # compressed, `POINT_BYTES` bytes

    @property
    def multibase(self) -> str:
        """The key as a Multikey, `z…`."""
        return str(libipld.encode_multibase("z", self.prefix + self.point))


def parse_multikey(multibase: object) -> EncodedKey:
    """Read a Multikey, `z…`, whose point is compressed. Raises ValueError, which names the text."""
    encoded = decode_multibase(multibase)
    if encoded[:2] not in {K256_PREFIX, P256_PREFIX} or len(encoded) != 2 + POINT_BYTES:
        raise ValueError(f"{_short(multibase)} is neither a K-256 nor a P-256 key")
    return parse_point(encoded[:2], encoded[2:])


def parse_did_key(text: object) -> EncodedKey:
    """Read a key as `did:key:z…`, as operations of the PLC directory have it. Raises ValueError."""
    if not isinstance(text, str) or not text.startswith(_DID_KEY):
        raise ValueError(f"{_short(text)} is not a did:key")
    return parse_multikey(text[len(_DID_KEY) :])


def parse_point(prefix: bytes, point: bytes) -> EncodedKey:
    """Read a point, compressed or not, of the curve that `prefix` names.

    Raises ValueError for a point that is not on the curve, and for another encoding.
    """
    if (len(point), point[:1]) not in _ENCODINGS:
        raise ValueError(f"the point {point[:1].hex()}… of {len(point)} bytes has no known encoding")
    if prefix == K256_PREFIX:
        return EncodedKey(prefix, coincurve.PublicKey(point).format())
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    return EncodedKey(prefix, key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint))


def decode_multibase(text: object) -> bytes:
    """Return the bytes of a text in base58btc, which multibase names `z`. Raises ValueError."""
    if not isinstance(text, str) or not text.startswith("z") or len(text) > _MULTIBASE_CHARS_MAX:
        raise ValueError(f"{_short(text)} is not a key in base58btc (z…)")
    try:
        return bytes(libipld.decode_multibase(text)[1])
    except ValueError as error:
        raise ValueError(f"{_short(text)} is not a key in base58btc: {error}") from error


def _short(value: object) -> str:
    """Return a bad key for the text of an error: its beginning, or its type if it is no text."""
    return repr(value[:_SHOWN_CHARS] if isinstance(value, str) else type(value).__name__)
