"""Sign commits: the private keys of accounts, on either curve, and the commit block.

Signing is deterministic (RFC 6979): the same key and message give the same bytes. `atproto.keys` verifies.
Source: the cryptography page of the AT Protocol specification, and the repository page, "Commit objects".
"""

from __future__ import annotations

from typing import Final, Protocol

import coincurve
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from jetstream.atproto.car import Block
from jetstream.atproto.cbor_encoder import encode_text
from jetstream.atproto.cid import LINK_HEAD, Cid, cid_of
from jetstream.atproto.encoded_key import K256_PREFIX, P256_PREFIX, EncodedKey
from jetstream.atproto.keys import K256_ORDER, P256_ORDER, SIGNATURE_BYTES

# The key `sig` and the head of a byte string of 64; the signature follows.
SIGNATURE_FIELD: Final = b"\x63sig\x58\x40"
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
        self.multibase = EncodedKey(K256_PREFIX, self._key.public_key.format()).multibase

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
        self.multibase = EncodedKey(P256_PREFIX, point).multibase

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message: 64 bytes, low-S, deterministic."""
        r, s = decode_dss_signature(self._key.sign(message, _P256_ALGORITHM))
        return r.to_bytes(32, "big") + min(s, P256_ORDER - s).to_bytes(32, "big")


def high_s(signature: bytes, order: int) -> bytes:
    """Return the other valid signature of the curve, with s in the upper half, which the protocol forbids."""
    s = int.from_bytes(signature[32:], "big")
    return signature[:32] + (order - s).to_bytes(32, "big")


def sign_commit(did: str, rev: str, data: Cid, key: SigningKey) -> Block:
    """Return the commit block for a tree root: `{"did", "rev", "sig", "data", "prev": null, "version": 3}`.

    The signature covers the same map without `sig`, so both maps are assembled from the same encoded parts.
    """
    before = b"\x63did" + encode_text(did) + b"\x63rev" + encode_text(rev)
    after = b"\x64data" + LINK_HEAD + data + b"\x64prev\xf6\x67version\x03"
    signature = key.sign(b"\xa5" + before + after)
    block = b"\xa6" + before + SIGNATURE_FIELD + signature + after
    return Block(cid_of(block), block)
