"""Signing keys of repositories: K-256 and P-256, deterministic and low-S.

Source: the cryptography page of the ATProto specification. A signature is r and s, 32 bytes each, over the
SHA-256 of the message, with s in the lower half of the curve's order. Both curves sign as RFC 6979 says,
so the same key and message give the same bytes.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final, Protocol

import coincurve
import libipld
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

K256_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SIGNATURE_BYTES: Final = 64
_K256_PREFIX: Final = b"\xe7\x01"
_P256_PREFIX: Final = b"\x80\x24"
_P256_ALGORITHM: Final = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


class SigningKey(Protocol):
    """A private key with what a DID document says of it."""

    order: int
    multibase: str

    def sign(self, message: bytes) -> bytes:
        """Sign a message: 64 bytes, low-S, the same every time."""
        ...


class K256Key:
    """A secp256k1 key of 32 secret bytes, as nearly every account has."""

    order = K256_ORDER

    def __init__(self, secret: bytes) -> None:
        self._key = coincurve.PrivateKey(secret)
        self.multibase = _multibase(_K256_PREFIX + self._key.public_key.format())

    def sign(self, message: bytes) -> bytes:
        """Sign a message: 64 bytes, low-S (libsecp256k1 makes no other), the same every time."""
        return self._key.sign_recoverable(message)[:SIGNATURE_BYTES]


class P256Key:
    """A secp256r1 key of 32 secret bytes, as hardware-backed signers have."""

    order = P256_ORDER

    def __init__(self, secret: bytes) -> None:
        self._key = ec.derive_private_key(
            (int.from_bytes(secret, "big") - 1) % (P256_ORDER - 1) + 1, ec.SECP256R1()
        )
        point = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        self.multibase = _multibase(_P256_PREFIX + point)

    def sign(self, message: bytes) -> bytes:
        """Sign a message: 64 bytes, low-S, the same every time."""
        r, s = decode_dss_signature(self._key.sign(message, _P256_ALGORITHM))
        return _compact(r, min(s, P256_ORDER - s))


def high_s(signature: bytes, order: int) -> bytes:
    """Make the twin that the curve allows and ATProto forbids: s in the upper half of the order."""
    s = int.from_bytes(signature[32:], "big")
    return signature[:32] + (order - s).to_bytes(32, "big")


def verify(multibase: str, message: bytes, signature: bytes) -> bool:
    """Tell whether a signature is valid under a Multikey, `z…`, and in the one form that ATProto allows.

    Raises ValueError for a key that is neither K-256 nor P-256.
    """
    encoded = bytes(libipld.decode_multibase(multibase)[1])
    if len(signature) != SIGNATURE_BYTES:
        return False
    if encoded.startswith(_K256_PREFIX):
        return _verify_k256(encoded[2:], message, signature)
    if encoded.startswith(_P256_PREFIX):
        return _verify_p256(encoded[2:], message, signature)
    raise ValueError(f"{multibase} is neither a K-256 nor a P-256 key")


def _verify_k256(point: bytes, message: bytes, signature: bytes) -> bool:
    r, s = _scalars(signature)
    if not 0 < s <= K256_ORDER // 2:
        return False
    key = coincurve.PublicKey(point)
    return bool(key.verify(encode_dss_signature(r, s), sha256(message).digest(), hasher=None))


def _verify_p256(point: bytes, message: bytes, signature: bytes) -> bool:
    r, s = _scalars(signature)
    if not 0 < s <= P256_ORDER // 2:
        return False
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _scalars(signature: bytes) -> tuple[int, int]:
    return int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")


def _compact(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _multibase(encoded: bytes) -> str:
    return libipld.encode_multibase("z", encoded)
