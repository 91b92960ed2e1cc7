from __future__ import annotations

import base64
from hashlib import sha256

import pytest
from tests.fixtures import json_of

from jetstream.atproto import keys
from jetstream.atproto.encoded_key import K256_PREFIX, P256_PREFIX, EncodedKey, parse_multikey
from jetstream.simulator.signing import K256Key, P256Key, high_s


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


@pytest.mark.parametrize("prefix", [K256_PREFIX, P256_PREFIX])
@pytest.mark.parametrize("point", [b"", b"\2", b"\2" + b"\xff" * 32, b"\4" + bytes(64)])
def test_a_point_that_is_not_on_its_curve_is_no_key(prefix: bytes, point: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each library words it in its own way
        keys.public_key(EncodedKey(prefix, point))


@pytest.mark.parametrize("curve", [K256Key, P256Key])
def test_a_parsed_key_verifies_what_its_private_key_signed(curve: type[K256Key | P256Key]) -> None:
    private = curve(b"\x01" * 32)
    public = keys.public_key(parse_multikey(private.multibase))
    signature = private.sign(b"message")
    digest = sha256(b"message").digest()
    assert public.verify(digest, signature)
    assert not public.verify(sha256(b"other").digest(), signature)
    assert not public.verify(digest, high_s(signature, private.order))
    for at in (0, 31, 32, 63):
        flipped = signature[:at] + bytes((signature[at] ^ 1,)) + signature[at + 1 :]
        assert not public.verify(digest, flipped)
