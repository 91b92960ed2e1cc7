from __future__ import annotations

import base64

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures import json_of

from jetstream.atproto import keys
from jetstream.atproto.keys import K256Key, P256Key

SECRETS = st.integers(min_value=1, max_value=keys.P256_ORDER - 1).map(lambda n: n.to_bytes(32, "big"))
CURVES = st.sampled_from([K256Key, P256Key])


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
    twin = keys.high_s(signature, key.order)
    assert not keys.verify(key.multibase, message, twin)
    assert keys.high_s(twin, key.order) == signature


@pytest.mark.parametrize("signature", [b"", bytes(64), b"\xff" * 64, b"\x30" + bytes(70)])
@pytest.mark.parametrize("curve", [K256Key, P256Key])
def test_a_malformed_signature_is_not_valid(curve: type[K256Key | P256Key], signature: bytes) -> None:
    assert not keys.verify(curve(b"\x01" * 32).multibase, b"message", signature)


def test_keys_of_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="neither a K-256 nor a P-256"):
        keys.verify("z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK", b"", bytes(64))


def test_the_published_signatures_verify_as_published() -> None:
    cases = json_of("interop/crypto/signature-fixtures.json")
    assert cases
    for case in cases:
        multibase = case["publicKeyDid"].removeprefix("did:key:")
        message, signature = (
            base64.b64decode(case[name] + "==") for name in ("messageBase64", "signatureBase64")
        )
        assert keys.verify(multibase, message, signature) == case["validSignature"], case["comment"]


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
