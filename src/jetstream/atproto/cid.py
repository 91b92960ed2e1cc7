"""Content identifiers: CIDv1 over SHA-256, the only ones that repositories use.

A binary CID has 36 bytes: version (1), codec, hash function (0x12, SHA-256), hash length (0x20) and the hash.
Source: the data model page of the AT Protocol specification, "Link and CID formats".
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import libipld

CID_BYTES: Final = 36
# What precedes a CID in DAG-CBOR: tag 42, a byte string of 37 bytes, and the multibase prefix 00.
LINK_HEAD: Final = bytes.fromhex("d82a582500")
# What the CID of a DAG-CBOR block begins with: version 1, dag-cbor, SHA-256, 32 bytes.
DAG_CBOR_SHA256: Final = bytes.fromhex("01711220")
_RAW_SHA256: Final = bytes.fromhex("01551220")


class Cid(bytes):
    """The 36 bytes of a CID. In a value to encode, a `Cid` is a link and plain `bytes` are a byte string.

    Neither the length nor the content is checked when one is made. An empty one stands for none
    (`mst_node`).
    """

    __slots__ = ()

    def __str__(self) -> str:
        """Return the CID as text: multibase `b`, which is base32 in lower case.

        Bytes that are no CID have no such text: the first 36 of them are shown in hex. So an error can name
        whatever a peer has sent in place of a link.
        """
        try:
            return libipld.encode_cid(bytes(self))
        except ValueError:
            return self[:CID_BYTES].hex()


def cid_of(block: bytes) -> Cid:
    """Return the CID of a DAG-CBOR block: a record, a tree node or a commit."""
    return Cid(DAG_CBOR_SHA256 + sha256(block).digest())


def raw_cid(digest: bytes) -> Cid:
    """Return the CID of a blob (codec `raw`), given the SHA-256 of its bytes."""
    return Cid(_RAW_SHA256 + digest)
