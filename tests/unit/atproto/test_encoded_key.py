from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures import json_of

from jetstream.atproto.encoded_key import (
    K256_PREFIX,
    P256_PREFIX,
    EncodedKey,
    decode_multibase,
    parse_did_key,
    parse_multikey,
    parse_point,
)
from jetstream.simulator.signing import K256Key, P256Key

K256, P256 = K256Key(b"\1" * 32).multibase, P256Key(b"\1" * 32).multibase


def test_a_multikey_names_its_curve() -> None:
    for text, prefix in [(K256, K256_PREFIX), (P256, P256_PREFIX)]:
        key = parse_multikey(text)
        assert key.prefix == prefix
        assert len(key.point) == 33
        assert key.multibase == text
        assert parse_did_key(f"did:key:{text}") == key


@settings(max_examples=25)
@given(st.binary(min_size=32, max_size=32).filter(any))
def test_every_key_comes_back(secret: bytes) -> None:
    for made in (K256Key(secret), P256Key(secret)):
        assert parse_multikey(made.multibase).multibase == made.multibase


def test_an_uncompressed_point_is_compressed() -> None:
    old = json_of("identity/did_plc_doc_legacy.json")["verificationMethod"][0]["publicKeyMultibase"]
    new = json_of("identity/did_plc_doc.json")["verificationMethod"][0]["publicKeyMultibase"]
    point = decode_multibase(old)
    assert len(point) == 65
    assert parse_point(K256_PREFIX, point) == parse_multikey(new)


@pytest.mark.parametrize("name", ["w3c_didkey_K256", "w3c_didkey_P256"])
def test_published_vectors(name: str) -> None:
    for vector in json_of(f"interop/crypto/{name}.json"):
        assert isinstance(parse_did_key(vector["publicDidKey"]), EncodedKey)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "z",
        "z1",
        "zzzz",
        "z0OIl",
        "zé",
        "zQ3sh",
        "zQ3shé",
        "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK",  # Ed25519
        K256[:-1],
        K256 + "1",
        "m" + K256[1:],
        "z" + "1" * 1_000_000,
        None,
        3,
    ],
)
def test_what_is_no_multikey(text: object) -> None:
    with pytest.raises(ValueError, match=r"is not|neither|could not|Invalid") as caught:
        parse_multikey(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["", K256, "did:key:", "did:web:a.com", None])
def test_what_is_no_did_key(text: object) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_did_key(text)


@pytest.mark.parametrize("prefix", [K256_PREFIX, P256_PREFIX])
@pytest.mark.parametrize(
    "point",
    [
        b"",
        b"\0",
        b"\2" + b"\xff" * 32,  # not on either curve
        b"\2",
        b"\2" * 32,
        b"\4" + b"\1" * 32,
        b"\4" + b"\1" * 64,
        b"\4" + bytes(64),
        b"\6" + bytes(64),
        b"\6" + b"\1" * 64,  # hybrid, which libsecp256k1 would read
    ],
)
def test_what_is_no_point(prefix: bytes, point: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_point(prefix, point)
