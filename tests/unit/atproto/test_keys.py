from __future__ import annotations

import base64

import pytest
from tests.fixtures import json_of

from jetstream.atproto import keys
from jetstream.simulator.signing import K256Key, P256Key


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
