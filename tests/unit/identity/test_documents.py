"""The key in documents, operations and audit logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures import json_of
from tests.unit.identity.accounts import TOMBSTONE, did_of, document, entry, key_of, operation

from jetstream.atproto.keys import K256_PREFIX, P256_PREFIX
from jetstream.identity.documents import (
    document_key,
    operation_key,
    operation_us,
    parse_history,
    parse_json,
)
from jetstream.identity.failures import KEY_FAILURES, LASTING, NoKey

DID, KEY, OTHER = did_of(1), key_of(1), key_of(2)
SECOND = 1_000_000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def reason(read: Any, *arguments: Any) -> str:
    with pytest.raises(NoKey) as caught:
        read(*arguments)
    assert caught.value.reason in KEY_FAILURES
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
    assert reason(document_key, DID, {"id": DID, "verificationMethod": foreign + label}) == "no_key"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"type": "JsonWebKey2020"}, "bad_key"),
        ({"type": ["Multikey"]}, "bad_key"),
        ({"publicKeyMultibase": None}, "bad_key"),
        ({"publicKeyMultibase": "z"}, "bad_key"),
        ({"publicKeyMultibase": "z" + "1" * 100_000}, "bad_key"),
        ({"publicKeyMultibase": "mAQID"}, "bad_key"),
        ({"type": "EcdsaSecp256k1VerificationKey2019"}, "bad_key"),  # a Multikey has a prefix too much
        ({"id": "#other"}, "no_key"),
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
    assert reason(operation_key, TOMBSTONE) == "not_found"
    assert reason(operation_key, operation(KEY) | {"verificationMethods": {}}) == "no_key"
    for bad in ("did:key:z1", KEY.multibase, 3):
        assert reason(operation_key, operation(KEY) | {"verificationMethods": {"atproto": bad}}) == "bad_key"
    assert reason(operation_key, {"type": "rotate"}) == reason(operation_key, 3) == "malformed"


def test_a_history_has_the_keys_of_a_time() -> None:
    log = [
        entry(DID, operation(KEY), "1970-01-01T00:01:40.000Z"),
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


def test_an_operation_that_keeps_the_key_is_no_change() -> None:
    log = [entry(DID, operation(KEY), f"2024-01-0{day}T00:00:00Z") for day in (1, 2, 3)]
    history = parse_history(DID, log)
    assert history.keys_at(operation_us(log[1]), 10**12) == [KEY]
    assert history.current == KEY


def test_what_is_no_history() -> None:
    void = entry(DID, operation(KEY), "2024-01-01T00:00:00Z", nullified=True)
    nothing: list[Any] = [None, [], {}, [3], [void]]
    for no_log in nothing:
        assert reason(parse_history, DID, no_log) == "malformed"
    assert (
        reason(parse_history, DID, [entry(did_of(2), operation(KEY), "2024-01-01T00:00:00Z")]) == "wrong_did"
    )
    for date in (None, 3, "", "yesterday", "-1h", "1700000000000000", "2024-13-01T00:00:00Z"):
        assert reason(parse_history, DID, [entry(DID, operation(KEY), date)]) == "malformed"


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
