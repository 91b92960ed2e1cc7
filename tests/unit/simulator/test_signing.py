from __future__ import annotations

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures import json_of

from jetstream.atproto import keys
from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import cid_of
from jetstream.simulator.signing import SIGNATURE_FIELD, K256Key, P256Key, high_s, sign_commit

SECRETS = st.integers(min_value=1, max_value=keys.P256_ORDER - 1).map(lambda n: n.to_bytes(32, "big"))
CURVES = st.sampled_from([K256Key, P256Key])
DID, REV, DATA = "did:plc:" + "a" * 24, "3kwemukb22222", cid_of(b"tree")


@given(CURVES, SECRETS, st.binary())
def test_signatures_verify_and_are_the_same_each_time(
    curve: type[K256Key | P256Key], secret: bytes, message: bytes
) -> None:
    key = curve(secret)
    signature = key.sign(message)
    assert signature == curve(secret).sign(message)
    assert keys.verify(key.multibase, message, signature)
    assert not keys.verify(key.multibase, message + b"\x00", signature)


@given(CURVES, SECRETS, st.binary())
def test_a_high_s_signature_is_refused(curve: type[K256Key | P256Key], secret: bytes, message: bytes) -> None:
    key = curve(secret)
    signature = key.sign(message)
    twin = high_s(signature, key.order)
    assert not keys.verify(key.multibase, message, twin)
    assert high_s(twin, key.order) == signature


def test_private_keys_have_the_published_names() -> None:
    k256 = json_of("interop/crypto/w3c_didkey_K256.json")
    p256 = json_of("interop/crypto/w3c_didkey_P256.json")
    assert k256
    assert p256
    for case in k256:
        key = K256Key(bytes.fromhex(case["privateKeyBytesHex"]))
        assert case["publicDidKey"] == f"did:key:{key.multibase}"
    for case in p256:
        secret = bytes(libipld.decode_multibase("z" + case["privateKeyBytesBase58"])[1])
        assert case["publicDidKey"] == f"did:key:{P256Key(secret).multibase}"


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
