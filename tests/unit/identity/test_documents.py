"""The key in documents, operations and audit logs."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures import json_of
from tests.unit.identity.accounts import TOMBSTONE, did_of, document, entry, key_of, operation

from jetstream.atproto.encoded_key import K256_PREFIX, P256_PREFIX, parse_did_key
from jetstream.atproto.keys import public_key
from jetstream.identity.documents import (
    NO_HISTORY,
    Declared,
    declared,
    document_key,
    document_pds,
    only_key,
    operation_declared,
    operation_key,
    operation_pds,
    operation_us,
    parse_history,
    parse_json,
)
from jetstream.identity.failures import KEY_FAILURES, LASTING, NoKey
from jetstream.simulator.identities import did_document
from jetstream.simulator.signing import K256Key, P256Key, SigningKey

DID, KEY, OTHER = did_of(1), key_of(1), key_of(2)
SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY = 1_440 * MINUTE
NESTED = json.loads("[" * 900 + "]" * 900)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def reason(read: Any, *arguments: Any) -> str:
    with pytest.raises(NoKey) as caught:
        read(*arguments)
    assert caught.value.reason in KEY_FAILURES
    assert len(str(caught.value)) < 300
    return caught.value.reason


def outcome(read: Callable[[], object]) -> str:
    """Return why a text has no key; empty: it has one."""
    try:
        read()
    except NoKey as error:
        return error.reason
    return ""


def test_a_document_has_a_key_of_either_curve() -> None:
    for number, prefix in [(1, K256_PREFIX), (2, P256_PREFIX)]:
        key = document_key(DID, document(DID, key_of(number)))
        assert key == key_of(number)
        assert key.prefix == prefix
        assert len(key.point) == 33


@pytest.mark.parametrize("private", [K256Key(b"\5" * 32), P256Key(b"\5" * 32)])
def test_the_key_of_a_document_verifies_what_its_owner_has_signed(private: SigningKey) -> None:
    found = document_key(DID, did_document(DID, "a.test", private.multibase, "https://pds.test"))
    digest = sha256(b"a message").digest()
    assert public_key(found).verify(digest, private.sign(b"a message"))
    assert not public_key(found).verify(digest, K256Key(b"\6" * 32).sign(b"a message"))


def test_the_published_signatures_verify_with_the_keys_of_older_documents() -> None:
    for case in json_of("interop/crypto/signature-fixtures.json"):
        old = {"type": case["didDocSuite"], "publicKeyMultibase": case["publicKeyMultibase"]}
        key = document_key(DID, document(DID, KEY, **old))
        assert key == parse_did_key(case["publicKeyDid"])
        message, signature = (
            base64.b64decode(case[name] + "==") for name in ("messageBase64", "signatureBase64")
        )
        valid = public_key(key).verify(sha256(message).digest(), signature)
        assert valid == case["validSignature"], case["comment"]


def test_real_documents() -> None:
    current = json_of("identity/did_plc_doc.json")
    old = json_of("identity/did_plc_doc_legacy.json")
    assert document_key(current["id"], current) == document_key(old["id"], old)
    web = json_of("identity/did_web_doc.json")
    assert reason(document_key, web["id"], web) == "no_key"
    for did, each in json_of("firehose/did_docs.json").items():
        assert document_key(did, each).multibase == each["verificationMethod"][0]["publicKeyMultibase"]


def test_only_the_method_atproto_of_the_did_itself_counts() -> None:
    foreign = document(DID, OTHER, controller="did:plc:other")["verificationMethod"]
    label = document(DID, OTHER, id=f"{DID}#atproto_label")["verificationMethod"]
    own = document(DID, KEY, id="#atproto")["verificationMethod"]
    assert document_key(DID, {"id": DID, "verificationMethod": [3, *foreign, *label, *own]}) == KEY
    nothing: list[Any] = [None, {}, [], [None], ["text"], [[]], [{}], [{"id": ["#atproto"]}], foreign + label]
    for methods in nothing:
        assert reason(document_key, DID, {"id": DID, "verificationMethod": methods}) == "no_key"
    assert reason(document_key, DID, {"id": DID}) == "no_key"


def test_a_hundred_methods_are_looked_at() -> None:
    [own] = document(DID, KEY)["verificationMethod"]
    assert document_key(DID, {"id": DID, "verificationMethod": [*[{}] * 99, own]}) == KEY
    assert reason(document_key, DID, {"id": DID, "verificationMethod": [*[{}] * 100, own]}) == "no_key"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"type": "JsonWebKey2020"}, "bad_key"),
        ({"type": "Ed25519VerificationKey2020"}, "bad_key"),
        ({"type": ["Multikey"]}, "bad_key"),
        ({"type": NESTED}, "bad_key"),
        ({"publicKeyMultibase": None}, "bad_key"),
        ({"publicKeyMultibase": NESTED}, "bad_key"),
        ({"publicKeyMultibase": ""}, "bad_key"),
        ({"publicKeyMultibase": "z"}, "bad_key"),
        ({"publicKeyMultibase": "z0OIl"}, "bad_key"),
        ({"publicKeyMultibase": KEY.multibase[:-1]}, "bad_key"),
        ({"publicKeyMultibase": "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"}, "bad_key"),
        ({"publicKeyMultibase": "z" + "1" * 100_000}, "bad_key"),
        ({"publicKeyMultibase": "mAQID"}, "bad_key"),
        ({"type": "EcdsaSecp256k1VerificationKey2019"}, "bad_key"),  # a Multikey has a prefix too much
        ({"id": "#other"}, "no_key"),
        ({"id": NESTED}, "no_key"),
        ({"controller": None}, "no_key"),
    ],
)
def test_a_key_that_cannot_be_read(changed: dict[str, Any], expected: str) -> None:
    assert reason(document_key, DID, document(DID, KEY, **changed)) == expected
    assert expected in LASTING


@pytest.mark.parametrize("body", [b"", b"<html>", b"[" * 100_000, b'{"id":', b"\xff"])
def test_what_is_no_json(body: bytes) -> None:
    assert reason(parse_json, body) == "malformed"


def test_a_document_of_another_did() -> None:
    assert reason(document_key, DID, document(did_of(2), KEY)) == "wrong_did"
    nothing: list[Any] = [None, [], {}, {"id": 3}, "x"]
    for no_document in nothing:
        assert reason(document_key, DID, no_document) == "malformed"


def test_operations() -> None:
    assert operation_key(operation(KEY)) == KEY
    assert operation_key({"type": "create", "signingKey": f"did:key:{OTHER.multibase}"}) == OTHER
    assert operation_key(TOMBSTONE) is None
    assert operation_key(operation(KEY) | TOMBSTONE) is None
    assert operation_key(operation(KEY) | {"verificationMethods": {}}) is None
    for bad in ("did:key:z1", KEY.multibase, 3):
        assert operation_key(operation(KEY) | {"verificationMethods": {"atproto": bad}}) is None
    malformed: list[Any] = [None, 3, {}, {"type": "rotate"}, {"type": ["create"]}, {"type": NESTED}]
    for bad in malformed:
        assert reason(operation_key, bad) == "malformed"


def test_a_history_has_the_keys_of_a_time() -> None:
    log = [
        entry(DID, {"type": "create", "signingKey": f"did:key:{KEY.multibase}"}, "1970-01-01T00:01:40.000Z"),
        entry(DID, operation(key_of(9)), "1970-01-01T00:02:30.000Z", nullified=True),
        entry(DID, operation(OTHER), "1970-01-01T00:03:20.000Z"),
        entry(DID, TOMBSTONE, "1970-01-01T00:05:00.000Z"),
    ]
    history = parse_history(DID, log)
    assert history.current is None
    for second, keys in [(0, []), (100, [KEY]), (199, [KEY]), (200, [OTHER]), (299, [OTHER]), (300, [])]:
        assert history.keys_at(second * SECOND, 0) == keys
    # Around a change, both.
    assert history.keys_at(195 * SECOND, 10 * SECOND) == [OTHER, KEY]
    assert history.keys_at(205 * SECOND, 10 * SECOND) == [OTHER, KEY]
    assert history.keys_at(90 * SECOND, 10 * SECOND) == [KEY]


@pytest.mark.parametrize(
    ("time_us", "keys"),
    [
        (DAY, []),
        (2 * DAY - MINUTE, [2]),
        (2 * DAY, [2]),
        (4 * DAY - 144 * MINUTE, [2]),
        (4 * DAY - MINUTE, [4, 2]),
        (4 * DAY + MINUTE, [4, 2]),
        (4 * DAY + 6 * MINUTE, [4]),
        (6 * DAY + MINUTE, [6, 4]),
        (31 * DAY, [6]),
        (4_000 * DAY, [6]),
    ],
)
def test_around_a_time_the_keys_before_and_after_a_change_count(time_us: int, keys: list[int]) -> None:
    log = [entry(DID, operation(key_of(day)), f"1970-01-0{day + 1}T00:00:00Z") for day in (2, 4, 6)]
    for each in (log, log[::-1]):
        found = parse_history(DID, each).keys_at(time_us, 5 * MINUTE)
        assert found == [key_of(day) for day in keys]


def test_of_many_changes_the_newest_eight_keys_count() -> None:
    log = [entry(DID, operation(key_of(number)), f"1970-01-01T00:00:{number:02}Z") for number in range(1, 21)]
    assert parse_history(DID, log).keys_at(MINUTE, 5 * MINUTE) == [key_of(n) for n in range(20, 12, -1)]


def test_a_key_that_cannot_be_used_ends_the_one_before() -> None:
    bad = operation(KEY) | {"verificationMethods": {"atproto": "did:key:zz"}}
    log = [entry(DID, operation(KEY), "1970-01-01T00:00:01Z"), entry(DID, bad, "1970-01-01T00:00:03Z")]
    history = parse_history(DID, log)
    assert [history.keys_at(second * SECOND, 0) for second in (2, 3)] == [[KEY], []]
    assert history.current is None


def test_one_key_alone_is_that_of_all_times() -> None:
    for time_us in (0, 4_000 * DAY):
        assert only_key(KEY).keys_at(time_us, 0) == [KEY]
        assert NO_HISTORY.keys_at(time_us, 0) == []
    assert only_key(KEY).current == KEY


def test_an_operation_that_keeps_the_key_is_no_change() -> None:
    log = [entry(DID, operation(KEY), f"2024-01-0{day}T00:00:00Z") for day in (1, 2, 3)]
    history = parse_history(DID, log)
    assert history.keys_at(operation_us(log[1]), 10**12) == [KEY]
    assert history.current == KEY


def test_what_is_no_history() -> None:
    void = entry(DID, operation(KEY), "2024-01-01T00:00:00Z", nullified=True)
    nothing: list[Any] = [None, [], {}, "text", 7, [3], [[]], [void], [void | {"did": did_of(2)}]]
    for no_log in nothing:
        assert reason(parse_history, DID, no_log) == "malformed"


BAD_DATES: list[Any] = [None, 3, "", "yesterday", "-1h", "1700000000000000", "2024-13-01T00:00:00Z"]
UNREADABLE: list[Any] = [
    None,
    "text",
    [],
    {},
    entry(did_of(2), operation(KEY), "2024-01-02T00:00:00Z"),
    *(
        entry(DID, bad, "2024-01-02T00:00:00Z")  # type: ignore[arg-type]
        for bad in (None, {}, {"type": "rotate"}, {"type": NESTED})
    ),
    *(entry(DID, operation(KEY), no_date) for no_date in BAD_DATES),
]


@pytest.mark.parametrize("bad", UNREADABLE)
def test_where_an_operation_cannot_be_read_the_key_is_not_known_until_the_next_one(bad: Any) -> None:
    """It may have changed the key. What the others say counts."""
    good = entry(DID, operation(KEY), "2024-01-01T00:00:00Z")
    last = entry(DID, operation(OTHER), "2024-01-03T00:00:00Z")
    history = parse_history(DID, [good, bad, last])
    between, after = operation_us(last) - 10 * MINUTE, operation_us(last) + 10 * MINUTE
    assert history.keys_at(between, 0) == []
    assert not history.is_whole_at(between, 0)
    assert history.keys_at(after, 0) == [OTHER]
    assert history.is_whole_at(after, 0)
    assert not history.is_whole_at(after, 11 * MINUTE)
    assert history.is_current
    if isinstance(bad, dict) and bad.get("createdAt") == "2024-01-02T00:00:00Z":
        before = operation_us(bad) - 10 * MINUTE
        assert history.keys_at(before, 0) == [KEY]
        assert history.is_whole_at(before, 0)


@pytest.mark.parametrize("bad", UNREADABLE)
def test_a_last_operation_that_cannot_be_read_has_a_key_that_is_known_otherwise(bad: Any) -> None:
    history = parse_history(DID, [entry(DID, operation(KEY), "2024-01-01T00:00:00Z"), bad])
    now_us = operation_us(entry(DID, {}, "2024-02-01T00:00:00Z"))
    assert (history.is_current, history.current, history.pds) == (False, None, "")
    assert not history.is_whole_at(now_us, 0)
    history = history.with_current(OTHER, "b.test")
    assert (history.is_current, history.current, history.pds) == (True, OTHER, "b.test")
    assert history.keys_at(now_us, 0) == [OTHER]
    # Without a time, nobody knows for how long the key before it has counted.
    is_timed = isinstance(bad, dict) and bad.get("createdAt") == "2024-01-02T00:00:00Z"
    assert history.is_whole_at(now_us, 0) == is_timed
    assert history.is_whole_at(operation_us(entry(DID, {}, "2023-12-31T00:00:00Z")), 0)


def test_what_is_void_need_not_be_readable() -> None:
    history = parse_history(DID, [entry(DID, operation(KEY), "2024-01-01T00:00:00Z"), {"nullified": True}])
    assert history.current == KEY


def test_a_log_has_at_most_ten_thousand_entries() -> None:
    void = entry(DID, operation(KEY), "2024-01-01T00:00:00Z", nullified=True)
    good = entry(DID, operation(KEY), "2024-01-01T00:00:00Z")
    assert parse_history(DID, [*[void] * 9_999, good]).current == KEY
    assert reason(parse_history, DID, [*[void] * 10_000, good]) == "too_big"


@settings(max_examples=50)
@given(JSON, st.sampled_from(["id", "verificationMethod", "controller", "type", "publicKeyMultibase"]))
def test_any_json_is_a_key_or_a_reason(value: object, field: str) -> None:
    changed = document(DID, KEY)
    (changed if field in changed else changed["verificationMethod"][0])[field] = value
    for read in (lambda: document_key(DID, changed), lambda: document_key(DID, value)):
        assert outcome(read) in {"", *KEY_FAILURES}


@settings(max_examples=50)
@given(JSON)
def test_any_json_is_an_operation_or_a_reason(value: object) -> None:
    log = [{"did": DID, "createdAt": value}, entry(DID, {"type": "create", "signingKey": value}, "2024")]
    for read in (
        lambda: operation_key(value),
        lambda: parse_history(DID, value),
        lambda: parse_history(DID, log),
    ):
        assert outcome(read) in {"", *KEY_FAILURES}


def test_the_pds_of_a_document() -> None:
    assert declared(DID, document(DID, KEY, "https://PDS.test:8080/")) == Declared(KEY, "pds.test:8080")
    assert declared(DID, document(DID, KEY)) == Declared(KEY, "")
    service = {
        "id": f"{DID}#atproto_pds",
        "type": "AtprotoPersonalDataServer",
        "serviceEndpoint": "https://a.test",
    }
    other = service | {"id": "#other", "serviceEndpoint": "https://b.test"}
    last = service | {"serviceEndpoint": "https://c.test"}
    assert document_pds(DID, {"service": [7, other, service, last]}) == "a.test"
    wrong: list[dict[str, Any]] = [
        {"type": "x"},
        {"serviceEndpoint": ["https://a.test"]},
        {"id": "did:plc:x#atproto_pds"},
        {"id": []},
    ]
    for changes in wrong:
        assert document_pds(DID, {"service": [service | changes]}) == ""


def test_the_pds_of_an_operation() -> None:
    assert operation_declared(operation(KEY, "https://pds.test")) == Declared(KEY, "pds.test")
    assert operation_declared(TOMBSTONE) == Declared(None, "")
    old = {"type": "create", "signingKey": f"did:key:{KEY.multibase}", "service": "https://old.test"}
    assert operation_declared(old) == Declared(KEY, "old.test")
    wrong = operation(KEY) | {"services": {"atproto_pds": {"type": "x", "endpoint": "https://pds.test"}}}
    assert operation_declared(wrong) == Declared(KEY, "")


def test_the_pds_of_a_history_is_that_of_the_last_operation_that_counts() -> None:
    log = [
        entry(DID, operation(KEY, f"https://{host}.test"), f"2026-01-0{day}T00:00:00Z", nullified=day == 3)
        for day, host in [(2, "b"), (1, "a"), (3, "c")]
    ]
    assert parse_history(DID, log).pds == "b.test"


@given(JSON)
def test_anything_else_has_no_pds(value: Any) -> None:
    for found in (value, {"service": value}, {"service": [value]}):
        assert document_pds(DID, found) == ""
    for found in (value, {"services": value}, {"services": {"atproto_pds": value}}, {"service": value}):
        assert operation_pds(found) == ""
