"""The signing key in DID documents, in operations of the PLC directory, and in its audit log. Pure.

Source: the DID page of the AT Protocol specification, "Representation of public keys"; the specification of
did:plc, "Operation serialization". What is wrong raises NoKey.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

import orjson

from jetstream.atproto.encoded_key import (
    EncodedKey,
    decode_multibase,
    parse_did_key,
    parse_multikey,
    parse_point,
)
from jetstream.atproto.keys import K256_PREFIX, P256_PREFIX
from jetstream.identity.failures import NoKey
from jetstream.model.timestamp import parse_time

# Types of documents made before Multikey: the point follows `z` without a prefix, compressed or not.
_OLD_TYPES: Final = {
    "EcdsaSecp256k1VerificationKey2019": K256_PREFIX,
    "EcdsaSecp256r1VerificationKey2019": P256_PREFIX,
}
_METHODS_MAX: Final = 100  # that are looked at; real documents have one to three
_SHOWN_CHARS: Final = 80  # of a foreign value, in an error


class Span(NamedTuple):
    """The key of an account from one operation to the next."""

    from_us: int  # the directory's time of the operation, in unix microseconds
    until_us: int | None  # that of the next operation; None: it is the current key
    key: EncodedKey | None  # None: a tombstone, or an operation without a usable key


class History(NamedTuple):
    """The keys of an account in the order of time, without operations that were nullified."""

    spans: tuple[Span, ...]

    @property
    def current(self) -> EncodedKey | None:
        """The key of the last operation."""
        return self.spans[-1].key

    def keys_at(self, time_us: int, slack_us: int) -> list[EncodedKey]:
        """Return the keys that were valid at a time or up to `slack_us` around it, the newest first.

        The time of a commit is that of another clock than the directory's, and a change of keys takes a while
        to reach everybody.
        """
        keys = [
            span.key
            for span in reversed(self.spans)
            if span.key is not None
            and span.from_us <= time_us + slack_us
            and (span.until_us is None or time_us - slack_us < span.until_us)
        ]
        return list(dict.fromkeys(keys))


def parse_json(body: bytes) -> object:
    """Return the value of a JSON text; at most 1,024 levels deep."""
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise NoKey("malformed", f"it is no JSON ({error}); it begins {body[:40]!r}") from error


def document_key(did: str, document: object) -> EncodedKey:
    """Return the key of a DID document: its first `#atproto` method that the DID itself controls."""
    if not isinstance(document, dict) or not isinstance(document.get("id"), str):
        raise NoKey("malformed", "it is no DID document")
    if document["id"] != did:
        raise NoKey("wrong_did", f"it is that of {_short(document['id'])}")
    for method in islice(_dicts(document.get("verificationMethod")), _METHODS_MAX):
        if method.get("id") in {"#atproto", f"{did}#atproto"} and method.get("controller") == did:
            return _method_key(method)
    raise NoKey("no_key", "it has no verification method #atproto")


def _method_key(method: Mapping[str, object]) -> EncodedKey:
    kind, text = method.get("type"), method.get("publicKeyMultibase")
    try:
        if kind == "Multikey":
            return parse_multikey(text)
        if isinstance(kind, str) and kind in _OLD_TYPES:
            return parse_point(_OLD_TYPES[kind], decode_multibase(text))
    except ValueError as error:
        raise NoKey("bad_key", str(error)) from error
    raise NoKey("bad_key", f"{_short(kind)} is no type of key")


def operation_key(operation: object) -> EncodedKey:
    """Return the key that an operation of the PLC directory gives its account.

    A tombstone raises NoKey with the reason `not_found`, as the directory answers 404 from then on.
    """
    if not isinstance(operation, dict):
        raise NoKey("malformed", "it is no operation")
    kind = operation.get("type")
    if kind == "plc_tombstone":
        raise NoKey("not_found", "the account is tombstoned")
    if kind not in {"plc_operation", "create"}:
        raise NoKey("malformed", f"{_short(kind)} is no type of operation")
    methods = operation.get("verificationMethods")
    text = methods.get("atproto") if isinstance(methods, dict) else operation.get("signingKey")
    if text is None:
        raise NoKey("no_key", "it has no signing key")
    try:
        return parse_did_key(text)
    except ValueError as error:
        raise NoKey("bad_key", str(error)) from error


def parse_history(did: str, log: object) -> History:
    """Return the history of keys in an audit log, `GET /<did>/log/audit`.

    Operations that were nullified are left out: the account's owner has declared them void, and the key
    before them counts in their time.
    """
    entries = [entry for entry in _dicts(log) if entry.get("nullified") is not True]
    if not entries:
        raise NoKey("malformed", "it is no audit log")
    if any(entry.get("did") != did for entry in entries):
        raise NoKey("wrong_did", "it has operations of another DID")
    starts = sorted(
        ((operation_us(entry), _key_or_none(entry)) for entry in entries), key=lambda pair: pair[0]
    )
    ends: list[int | None] = [from_us for from_us, _ in starts[1:]]
    return History(
        tuple(Span(from_us, until, key) for (from_us, key), until in zip(starts, [*ends, None], strict=True))
    )


def operation_us(entry: Mapping[str, object]) -> int:
    """Return the directory's time of an operation, in unix microseconds."""
    created = entry.get("createdAt")
    if isinstance(created, str) and created[4:5] == "-":
        with suppress(ValueError):
            return parse_time(created, 0)
    raise NoKey("malformed", f"createdAt is {_short(created)}")


def _key_or_none(entry: Mapping[str, object]) -> EncodedKey | None:
    try:
        return operation_key(entry.get("operation"))
    except NoKey:
        return None


def _dicts(values: object) -> Iterable[dict[str, object]]:
    return (value for value in values if isinstance(value, dict)) if isinstance(values, list) else ()


def _short(value: object) -> str:
    return repr(value)[:_SHOWN_CHARS]
