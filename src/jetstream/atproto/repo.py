"""The signed commit of a repository, version 3, and the names of its operations.

Source: the repository page of the AT Protocol specification, "Commit objects", and the sync page, "#commit".
"""

from __future__ import annotations

from typing import Final

from jetstream.atproto.car_writer import Block
from jetstream.atproto.cbor_encoder import LINK_HEAD, encode_text
from jetstream.atproto.cid import Cid, cid_of
from jetstream.atproto.keys import SigningKey

# The `action` of an operation in a `#commit` message.
CREATE: Final = "create"
UPDATE: Final = "update"
DELETE: Final = "delete"

OPS_MAX: Final = 200  # operations in one commit; the limit of the lexicon
SIGNATURE_FIELD: Final = (
    b"\x63sig\x58\x40"  # the key `sig` and the head of a byte string of 64; the signature follows
)


def sign_commit(did: str, rev: str, data: Cid, key: SigningKey) -> Block:
    """Return the commit block for a tree root: `{"did", "rev", "sig", "data", "prev": null, "version": 3}`.

    The signature covers the same map without `sig`, so both maps are assembled from the same encoded parts.
    """
    before = b"\x63did" + encode_text(did) + b"\x63rev" + encode_text(rev)
    after = b"\x64data" + LINK_HEAD + data + b"\x64prev\xf6\x67version\x03"
    signature = key.sign(b"\xa5" + before + after)
    block = b"\xa6" + before + SIGNATURE_FIELD + signature + after
    return Block(cid_of(block), block)
