from __future__ import annotations

import libipld
import pytest

from jetstream.atproto import keys
from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import cid_of
from jetstream.atproto.keys import K256Key, P256Key
from jetstream.atproto.repo import SIGNATURE_FIELD, sign_commit

DID, REV, DATA = "did:plc:" + "a" * 24, "3kwemukb22222", cid_of(b"tree")


@pytest.mark.parametrize("curve", [K256Key, P256Key])
def test_a_commit_is_canonical_and_signed_without_its_signature(curve: type[K256Key | P256Key]) -> None:
    key = curve(b"\x07" * 32)
    cid, block = sign_commit(DID, REV, DATA, key)
    unsigned = {"did": DID, "rev": REV, "data": DATA, "prev": None, "version": 3}
    signature = libipld.decode_dag_cbor(block)["sig"]
    assert block == encode_cbor({**unsigned, "sig": signature})
    assert cid == cid_of(block)
    assert keys.verify(key.multibase, encode_cbor(unsigned), signature)
    assert block.count(SIGNATURE_FIELD + signature) == 1
