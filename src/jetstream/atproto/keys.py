"""Public keys, and signatures of repositories: K-256 (secp256k1) and P-256 (secp256r1).

A signature is r and s, 32 bytes each, over the SHA-256 of the message, with s in the lower half of the
curve's order ("low-S"). Public keys are written as Multikeys: multibase `z` of a two-byte prefix that names
the curve, and the compressed point. Source: the cryptography page of the AT Protocol specification.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final, NamedTuple

import coincurve
import libipld
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

# The orders of the curves: r and s of a signature are below it.
K256_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SIGNATURE_BYTES: Final = 64
K256_PREFIX: Final = b"\xe7\x01"  # multicodec secp256k1-pub, as a varint
P256_PREFIX: Final = b"\x80\x24"  # multicodec p256-pub, as a varint
_ORDERS: Final = {K256_PREFIX: K256_ORDER, P256_PREFIX: P256_ORDER}
POINT_BYTES: Final = 33  # of a compressed point: 2 or 3, for the sign of y, and x
_ENCODINGS: Final = {(POINT_BYTES, b"\2"), (POINT_BYTES, b"\3"), (65, b"\4")}  # the last has x and y
_MULTIBASE_CHARS_MAX: Final = 100  # an uncompressed point has 89. Decoding takes the square of the length
_DID_KEY: Final = "did:key:"
_SHOWN_CHARS: Final = 60  # of a bad key, in an error


class PublicKey(NamedTuple):
    """A public key: a point that is known to be on its curve."""

    prefix: bytes  # names the curve: `K256_PREFIX` or `P256_PREFIX`
    point: bytes  # compressed, `POINT_BYTES` bytes

    @property
    def multibase(self) -> str:
        """The key as a Multikey, `z…`."""
        return str(libipld.encode_multibase("z", self.prefix + self.point))


def parse_multikey(multibase: object) -> PublicKey:
    """Read a Multikey, `z…`, whose point is compressed. Raises ValueError, which names the text."""
    encoded = decode_multibase(multibase)
    if encoded[:2] not in _ORDERS or len(encoded) != 2 + POINT_BYTES:
        raise ValueError(f"{_short(multibase)} is neither a K-256 nor a P-256 key")
    return parse_point(encoded[:2], encoded[2:])


def parse_did_key(text: object) -> PublicKey:
    """Read a key as `did:key:z…`, as operations of the PLC directory have it. Raises ValueError."""
    if not isinstance(text, str) or not text.startswith(_DID_KEY):
        raise ValueError(f"{_short(text)} is not a did:key")
    return parse_multikey(text[len(_DID_KEY) :])


def parse_point(prefix: bytes, point: bytes) -> PublicKey:
    """Read a point, compressed or not, of the curve that `prefix` names.

    Raises ValueError for a point that is not on the curve, and for another encoding.
    """
    if (len(point), point[:1]) not in _ENCODINGS:
        raise ValueError(f"the point {point[:1].hex()}… of {len(point)} bytes has no known encoding")
    if prefix == K256_PREFIX:
        return PublicKey(prefix, coincurve.PublicKey(point).format())
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    return PublicKey(prefix, key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint))


def decode_multibase(text: object) -> bytes:
    """Return the bytes of a text in base58btc, which multibase names `z`. Raises ValueError."""
    if not isinstance(text, str) or not text.startswith("z") or len(text) > _MULTIBASE_CHARS_MAX:
        raise ValueError(f"{_short(text)} is not a key in base58btc (z…)")
    try:
        return bytes(libipld.decode_multibase(text)[1])
    except ValueError as error:
        raise ValueError(f"{_short(text)} is not a key in base58btc: {error}") from error


def _short(value: object) -> str:
    return repr(value[:_SHOWN_CHARS] if isinstance(value, str) else type(value).__name__)


def verify(multibase: str, message: bytes, signature: bytes) -> bool:
    """Return whether a signature is valid under a Multikey (`z…`), 64 bytes long and low-S.

    Raises ValueError for a key that is neither K-256 nor P-256.
    """
    encoded = bytes(libipld.decode_multibase(multibase)[1])
    prefix, point = encoded[:2], encoded[2:]
    if prefix not in _ORDERS:
        raise ValueError(f"{multibase} is neither a K-256 nor a P-256 key")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if len(signature) != SIGNATURE_BYTES or not 0 < s <= _ORDERS[prefix] // 2:
        return False
    der = encode_dss_signature(r, s)  # the libraries use DER, which the protocol does not
    if prefix == K256_PREFIX:  # by libsecp256k1, in about 30 µs; it releases the GIL
        return bool(coincurve.PublicKey(point).verify(der, sha256(message).digest(), hasher=None))
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        key.verify(der, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
