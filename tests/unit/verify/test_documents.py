from __future__ import annotations

import base64
import copy
import json
from hashlib import sha256
from typing import Any

import pytest
from tests.fixtures import json_of
from tests.signed import DID, KEY

from jetstream.atproto.keys import K256_PREFIX, P256_PREFIX, decode_base58, key_of, parse_did_key
from jetstream.simulator.signing import K256Key, P256Key, SigningKey
from jetstream.simulator.world import did_document
from jetstream.verify.documents import NoKey, keys_at, signing_key

MESSAGE = b"a message"
DAY_US = 86_400_000_000


def has_signed(key: SigningKey, public: Any) -> bool:
    return bool(public.verify(sha256(MESSAGE).digest(), key.sign(MESSAGE)))


@pytest.mark.parametrize("key", [K256Key(b"\x05" * 32), P256Key(b"\x05" * 32)])
def test_the_key_of_a_document_is_found(key: SigningKey) -> None:
    document = did_document(DID, "a.test", key, "https://pds.test")
    assert has_signed(key, signing_key(document, DID))
    assert not has_signed(K256Key(b"\x06" * 32), signing_key(document, DID))


def test_the_id_of_a_method_may_lack_the_did() -> None:
    document: Any = did_document(DID, "a.test", KEY, "https://pds.test")
    document["verificationMethod"][0]["id"] = "#atproto"
    assert has_signed(KEY, signing_key(document, DID))


def test_the_published_documents_have_one_key_in_two_forms() -> None:
    did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
    new = json_of("identity/did_plc_doc.json")
    old = json_of("identity/did_plc_doc_legacy.json")
    point = decode_base58(old["verificationMethod"][0]["publicKeyMultibase"])
    assert len(point) == 65
    assert signing_key(old, did).verify(bytes(32), bytes(64)) is False
    assert signing_key(new, did).verify(bytes(32), bytes(64)) is False
    with pytest.raises(NoKey, match="no verification method #atproto"):
        signing_key(json_of("identity/did_web_doc.json"), "did:web:discover.bsky.social")


def test_the_published_signatures_verify_with_the_keys_of_older_documents() -> None:
    for case in json_of("interop/crypto/signature-fixtures.json"):
        method = {
            "id": "#atproto",
            "type": case["didDocSuite"],
            "controller": DID,
            "publicKeyMultibase": case["publicKeyMultibase"],
        }
        key = signing_key({"id": DID, "verificationMethod": [method]}, DID)
        message, signature = (
            base64.b64decode(case[name] + "==") for name in ("messageBase64", "signatureBase64")
        )
        for each in (key, parse_did_key(case["publicKeyDid"])):
            valid = each.verify(sha256(message).digest(), signature)
            assert valid == case["validSignature"], case["comment"]


def test_the_published_private_keys_have_the_published_keys() -> None:
    for case in json_of("interop/crypto/w3c_didkey_K256.json"):
        assert (
            f"did:key:{K256Key(bytes.fromhex(case['privateKeyBytesHex'])).multibase}" == case["publicDidKey"]
        )
    for name in ("K256", "P256"):
        for case in json_of(f"interop/crypto/w3c_didkey_{name}.json"):
            parse_did_key(case["publicDidKey"])


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"id": "#other"}, "no verification method"),
        ({"controller": "did:web:other.example"}, "no verification method"),
        ({"controller": None}, "no verification method"),
        ({"type": "Ed25519VerificationKey2020"}, "cannot be used: type 'Ed25519VerificationKey2020'"),
        ({"type": ["Multikey"]}, "type a list"),
        ({"type": json.loads("[" * 900 + "]" * 900)}, "type a list"),
        ({"publicKeyMultibase": None}, "cannot be used"),
        ({"publicKeyMultibase": ""}, "is no key in base58btc"),
        ({"publicKeyMultibase": "z"}, "neither a K-256 nor a P-256"),
        ({"publicKeyMultibase": "z0OIl"}, "cannot be used"),
        ({"publicKeyMultibase": "mAYAB"}, "is no key in base58btc"),
        ({"publicKeyMultibase": "z" + "1" * 100_000}, "is no key in base58btc"),
        ({"publicKeyMultibase": "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"}, "neither a K-256"),
        ({"publicKeyMultibase": KEY.multibase[:-1]}, "cannot be used"),
        ({"type": "EcdsaSecp256k1VerificationKey2019"}, "is no point"),
    ],
)
def test_a_document_without_a_usable_key_says_why(changed: dict[str, Any], problem: str) -> None:
    document: Any = did_document(DID, "a.test", KEY, "https://pds.test")
    document["verificationMethod"][0] |= changed
    with pytest.raises(NoKey, match=problem) as raised:
        signing_key(document, DID)
    assert DID in str(raised.value)
    assert len(str(raised.value)) < 500


NO_DOCUMENTS: list[Any] = [None, [], "text", {}, {"id": "did:web:other.example"}, {"id": DID}]
NO_METHODS: list[Any] = [{}, [None], ["text"], [[]], [{}], [{"id": ["#atproto"]}]]


@pytest.mark.parametrize(
    "document", [*NO_DOCUMENTS, *({"id": DID, "verificationMethod": methods} for methods in NO_METHODS)]
)
def test_what_is_no_document_has_no_key(document: object) -> None:
    with pytest.raises(NoKey):
        signing_key(document, DID)


@pytest.mark.parametrize(
    "point", [b"", b"\x02", b"\x06" + bytes(64), b"\x04" + bytes(64), b"\x02" + b"\xff" * 32]
)
@pytest.mark.parametrize("curve", [K256_PREFIX, P256_PREFIX])
def test_what_is_no_point_of_its_curve_is_no_key(curve: bytes, point: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each library words it in its own way
        key_of(curve, point)


OLD, MIDDLE, NEW = (K256Key(bytes((number,)) * 32) for number in (11, 12, 13))


def operation(day: int, key: SigningKey | None, **changed: Any) -> dict[str, Any]:
    """Return an entry of an audit log, made on a day of January 2026."""
    body: dict[str, Any] = {"type": "plc_tombstone"}
    if key is not None:
        body = {"type": "plc_operation", "verificationMethods": {"atproto": f"did:key:{key.multibase}"}}
    return {
        "did": DID,
        "operation": body,
        "nullified": False,
        "createdAt": f"2026-01-{day:02}T00:00:00.000Z",
    } | changed


def at(day: float) -> int:
    """Return a time in January 2026; day 1 is its first."""
    return 1_767_225_600_000_000 + int((day - 1) * DAY_US)


LOG = [operation(2, OLD), operation(4, MIDDLE), operation(6, NEW)]
MINUTE = 1 / 1_440


@pytest.mark.parametrize(
    ("day", "valid"),
    [
        (1, []),
        (2 - MINUTE, [OLD]),
        (2, [OLD]),
        (3.9, [OLD]),
        (4 - MINUTE, [MIDDLE, OLD]),
        (4 + MINUTE, [MIDDLE, OLD]),
        (4 + 6 * MINUTE, [MIDDLE]),
        (6 + MINUTE, [NEW, MIDDLE]),
        (31, [NEW]),
        (4_000, [NEW]),
    ],
)
def test_the_keys_of_a_time_are_those_around_it(day: float, valid: list[SigningKey]) -> None:
    for log in (LOG, LOG[::-1]):
        keys = keys_at(log, DID, at(day))
        assert [has_signed(key, found) for key, found in zip(valid, keys, strict=True)] == [True] * len(valid)


def test_entries_that_do_not_count_are_skipped() -> None:
    others: list[Any] = [
        operation(4, MIDDLE, nullified=True),
        operation(4, MIDDLE, did="did:plc:other"),
        operation(4, MIDDLE, createdAt="yesterday"),
        operation(4, MIDDLE, createdAt=None),
        operation(4, MIDDLE, operation=None),
        None,
        "text",
        [],
    ]
    [key] = keys_at([LOG[0], *others], DID, at(5))
    assert has_signed(OLD, key)


def test_of_many_rotations_the_newest_keys_are_tried() -> None:
    keys = [K256Key(bytes((number,)) * 32) for number in range(1, 21)]
    log = [operation(2, key, createdAt=f"2026-01-02T00:00:{second:02}Z") for second, key in enumerate(keys)]
    found = keys_at(log, DID, at(2 + MINUTE))
    assert [has_signed(key, public) for key, public in zip(keys[:11:-1], found, strict=True)] == [True] * 8


def test_a_deleted_identity_has_no_key() -> None:
    assert keys_at([LOG[0], operation(4, None)], DID, at(5)) == []
    damaged = copy.deepcopy(LOG[1])
    damaged["operation"]["verificationMethods"]["atproto"] = "did:key:zz"
    assert keys_at([LOG[0], damaged], DID, at(5)) == []


def test_the_oldest_operations_have_one_key() -> None:
    first = operation(2, None) | {"operation": {"type": "create", "signingKey": f"did:key:{OLD.multibase}"}}
    [key] = keys_at([first], DID, at(3))
    assert has_signed(OLD, key)


@pytest.mark.parametrize("log", [None, {}, "text", 7, [[]]])
def test_what_is_no_log_has_no_keys(log: object) -> None:
    assert keys_at(log, DID, at(3)) == []
