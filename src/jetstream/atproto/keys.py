"""Public keys of accounts, and what they have signed: K-256 (secp256k1) and P-256 (secp256r1).

A signature is r and s, 32 bytes each, over the SHA-256 of the message, with s in the lower half of the
curve's order ("low-S"). `encoded_key` reads public keys. Source: the cryptography page of the AT Protocol
specification.

K-256 is verified by libsecp256k1 in 25 µs. coincurve has it, but takes signatures as DER only; its handle of
the library takes the 64 bytes as they are.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final, Protocol

import coincurve
from coincurve._libsecp256k1 import ffi, lib  # type: ignore[import-not-found]  # a compiled module
from coincurve.context import GLOBAL_CONTEXT
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from jetstream.atproto.encoded_key import K256_PREFIX, P256_PREFIX, EncodedKey, parse_multikey

# The orders of the curves: r and s of a signature are below it.
K256_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SIGNATURE_BYTES: Final = 64
_PREHASHED: Final = ec.ECDSA(Prehashed(hashes.SHA256()))


class PublicKey(Protocol):
    """A public key of either curve, parsed. Immutable."""

    def verify(self, digest: bytes, signature: bytes) -> bool:
        """Return whether a signature of the SHA-256 `digest` is by this key, 64 bytes long and low-S."""
        ...


class K256PublicKey:
    """A secp256k1 key. Nearly every account has one. Raises ValueError for a point off the curve."""

    __slots__ = ("_key",)

    def __init__(self, point: bytes) -> None:
        # The point as libsecp256k1 has it: a pointer, which is valid as long as this object.
        self._key = coincurve.PublicKey(point).public_key

    def verify(
        self,
        digest: bytes,
        signature: bytes,
        *,
        # As defaults, they are looked up once.
        _new: Any = ffi.new,
        _parse: Any = lib.secp256k1_ecdsa_signature_parse_compact,
        _verify: Any = lib.secp256k1_ecdsa_verify,
        _context: Any = GLOBAL_CONTEXT.ctx,
    ) -> bool:
        """Return whether a signature is by this key. libsecp256k1 accepts low-S only. Releases the GIL."""
        if len(signature) != SIGNATURE_BYTES:
            return False
        parsed = _new("secp256k1_ecdsa_signature *")
        return bool(_parse(_context, parsed, signature) and _verify(_context, parsed, digest, self._key))


class P256PublicKey:
    """A secp256r1 key. Hardware-backed signers have them. Raises ValueError as `K256PublicKey` does."""

    __slots__ = ("_key",)

    def __init__(self, point: bytes) -> None:
        self._key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)

    def verify(self, digest: bytes, signature: bytes) -> bool:
        """Return whether a signature is by this key. OpenSSL accepts either s, so s is compared here."""
        # A signature of another length gives other numbers, and is refused before they are used.
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        if len(signature) != SIGNATURE_BYTES or s > P256_ORDER // 2:
            return False
        try:
            self._key.verify(encode_dss_signature(r, s), digest, _PREHASHED)
        except InvalidSignature:
            return False
        return True


# The class of a key, by the prefix of its encoding.
_CURVES: Final[dict[bytes, type[K256PublicKey | P256PublicKey]]] = {
    K256_PREFIX: K256PublicKey,
    P256_PREFIX: P256PublicKey,
}


def public_key(encoded: EncodedKey) -> PublicKey:
    """Return a key that verifies signatures. Raises ValueError if its point is not on the curve."""
    return _CURVES[encoded.prefix](encoded.point)


def verify(multibase: str, message: bytes, signature: bytes) -> bool:
    """Return whether a signature of a message is valid under a Multikey (`z…`), 64 bytes long and low-S.

    Raises ValueError for a key that is neither K-256 nor P-256.
    """
    return public_key(parse_multikey(multibase)).verify(sha256(message).digest(), signature)
