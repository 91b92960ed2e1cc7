"""Signing keys of repositories: K-256 (secp256k1) and P-256 (secp256r1).

A signature is r and s, 32 bytes each, over the SHA-256 of the message, with s in the lower half of the
curve's order ("low-S"). Signing is deterministic (RFC 6979): the same key and message give the same bytes.
Public keys are written as Multikeys: multibase `z` of a two-byte prefix that names the curve, and the
compressed point. Source: the cryptography page of the AT Protocol specification.
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

# The orders of the curves: r and s of a signature are below it.
K256_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SIGNATURE_BYTES: Final = 64
_K256_PREFIX: Final = b"\xe7\x01"  # multicodec secp256k1-pub, as a varint
_P256_PREFIX: Final = b"\x80\x24"  # multicodec p256-pub, as a varint
_P256_ALGORITHM: Final = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


class SigningKey(Protocol):
    """A private key of either curve."""

    order: int  # of the curve
    multibase: str  # the public key as a DID document has it (`publicKeyMultibase`)

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message: 64 bytes, low-S, deterministic."""
        ...


class K256Key:
    """A secp256k1 key, made of 32 secret bytes. Nearly every account has one."""

    order = K256_ORDER

    def __init__(self, secret: bytes) -> None:
        self._key = coincurve.PrivateKey(secret)  # immutable, as is all of the key
        self.multibase = _multibase(_K256_PREFIX + self._key.public_key.format())

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message: 64 bytes, deterministic; libsecp256k1 always makes it low-S."""
        return self._key.sign_recoverable(message)[:SIGNATURE_BYTES]


class P256Key:
    """A secp256r1 key, made of 32 secret bytes. Hardware-backed signers have them."""

    order = P256_ORDER

    def __init__(self, secret: bytes) -> None:
        # Reduced, so that any 32 bytes are a valid secret.
        self._key = ec.derive_private_key(
            (int.from_bytes(secret, "big") - 1) % (P256_ORDER - 1) + 1, ec.SECP256R1()
        )
        point = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        self.multibase = _multibase(_P256_PREFIX + point)

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message: 64 bytes, low-S, deterministic."""
        r, s = decode_dss_signature(self._key.sign(message, _P256_ALGORITHM))
        return _compact(r, min(s, P256_ORDER - s))


def high_s(signature: bytes, order: int) -> bytes:
    """Return the other valid signature of the curve, with s in the upper half, which the protocol forbids."""
    s = int.from_bytes(signature[32:], "big")
    return signature[:32] + (order - s).to_bytes(32, "big")


def verify(multibase: str, message: bytes, signature: bytes) -> bool:
    """Return whether a signature is valid under a Multikey (`z…`), 64 bytes long and low-S.

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
    """Verify with libsecp256k1, in about 30 µs. It releases the GIL."""
    r, s = _scalars(signature)
    if not 0 < s <= K256_ORDER // 2:
        return False
    key = coincurve.PublicKey(point)
    return bool(key.verify(encode_dss_signature(r, s), sha256(message).digest(), hasher=None))


def _verify_p256(point: bytes, message: bytes, signature: bytes) -> bool:
    """Verify with OpenSSL."""
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
    """Return r and s."""
    return int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")


def _compact(r: int, s: int) -> bytes:
    """Return the 64 bytes of a signature. The libraries use DER, which the protocol does not."""
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _multibase(encoded: bytes) -> str:
    """Return bytes in base58btc, which multibase names `z`."""
    return libipld.encode_multibase("z", encoded)
