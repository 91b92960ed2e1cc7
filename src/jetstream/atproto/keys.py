"""Verify signatures of repositories: K-256 (secp256k1) and P-256 (secp256r1).

A signature is r and s, 32 bytes each, over the SHA-256 of the message, with s in the lower half of the
curve's order ("low-S"). Public keys are written as Multikeys: multibase `z` of a two-byte prefix that names
the curve, and the compressed point. Source: the cryptography page of the AT Protocol specification.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import coincurve
import libipld
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

# The orders of the curves: r and s of a signature are below it.
K256_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SIGNATURE_BYTES: Final = 64
K256_PREFIX: Final = b"\xe7\x01"  # multicodec secp256k1-pub, as a varint
P256_PREFIX: Final = b"\x80\x24"  # multicodec p256-pub, as a varint
_ORDERS: Final = {K256_PREFIX: K256_ORDER, P256_PREFIX: P256_ORDER}


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
