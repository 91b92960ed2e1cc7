"""Which keys an account signs with: from its DID document, and from the log of a PLC directory.

A document has the key of today. The log has every operation on the identity, so it also tells which keys were
valid when an older commit was made. Both come from servers that anybody may run: nothing here raises anything
but `NoKey`, whatever they hold.

Source: the DID page of the AT Protocol specification; the did:plc specification, `/<did>/log/audit` and
`/export`.
"""

from __future__ import annotations

from contextlib import suppress
from operator import itemgetter
from typing import Any, Final

from jetstream.atproto.keys import (
    K256_PREFIX,
    P256_PREFIX,
    PublicKey,
    decode_base58,
    key_of,
    parse_did_key,
    parse_multikey,
)
from jetstream.model.timestamp import TIME_MAX, parse_time

_KEY_ID: Final = "#atproto"
# Types of older documents, whose keys are points without a prefix: the prefix of their curve.
_POINT_TYPES: Final = {
    "EcdsaSecp256k1VerificationKey2019": K256_PREFIX,
    "EcdsaSecp256r1VerificationKey2019": P256_PREFIX,
}
# How far the clocks of a directory and of a repository's server may be apart: a key is taken as valid for so
# long before and after it was, in microseconds.
_SLACK_US: Final = 300_000_000
# Methods of a document, and entries of a log, that are looked at.
_METHODS_MAX: Final = 100
_ENTRIES_MAX: Final = 10_000
# Keys of one time that are returned: each may be tried, which takes 25 to 45 µs.
_KEYS_MAX: Final = 8


class NoKey(ValueError):
    """A document or a log has no key that signs commits."""


def signing_key(document: object, did: str) -> PublicKey:
    """Return the key that a DID document has for repositories. Raises NoKey.

    It is the first verification method whose ID is `#atproto`, with or without the DID before it, and whose
    controller is the DID.
    """
    if not isinstance(document, dict) or document.get("id") != did:
        raise NoKey(f"this is no DID document of {did}")
    methods = document.get("verificationMethod")
    for method in methods[:_METHODS_MAX] if isinstance(methods, list) else ():
        if _is_signing_method(method, did):
            return _key_of_method(method, did)
    raise NoKey(f"the DID document of {did} has no verification method {_KEY_ID}")


def keys_at(log: object, did: str, time_us: int) -> list[PublicKey]:
    """Return the keys that were valid at a time, in unix microseconds, by a PLC audit log; the newest first.

    `log` is what `/<did>/log/audit` answers. Entries that are nullified, malformed or of other DIDs are
    skipped. Several keys were valid around a rotation; the eight newest are returned.
    """
    entries = log[:_ENTRIES_MAX] if isinstance(log, list) else []
    starts = sorted(filter(None, (_entry(entry, did) for entry in entries)), key=itemgetter(0))
    ends = [*(start for start, _ in starts[1:]), TIME_MAX]
    valid = [
        text
        for (start, text), end in zip(starts, ends, strict=False)
        if start - _SLACK_US <= time_us < end + _SLACK_US
    ]
    keys = []
    for text in list(dict.fromkeys(reversed(valid)))[:_KEYS_MAX]:
        with suppress(ValueError):
            keys.append(parse_did_key(text))
    return keys


def _is_signing_method(method: object, did: str) -> bool:
    if not isinstance(method, dict):
        return False
    return method.get("id") in (_KEY_ID, did + _KEY_ID) and method.get("controller") == did


def _key_of_method(method: dict[str, Any], did: str) -> PublicKey:
    try:
        return _parse(method.get("type"), method.get("publicKeyMultibase"))
    except ValueError as error:
        raise NoKey(f"the key of {did} cannot be used: {error}") from error


def _parse(kind: object, text: object) -> PublicKey:
    """Return the key of a verification method, by its type. Raises ValueError."""
    if isinstance(text, str) and kind == "Multikey":
        return parse_multikey(text)
    if isinstance(text, str) and isinstance(kind, str) and kind in _POINT_TYPES:
        return key_of(_POINT_TYPES[kind], decode_base58(text))
    raise ValueError(f"type {_shown(kind)} with publicKeyMultibase {_shown(text)}")


def _shown(value: object) -> str:
    """Return what a document has where a text should be, for people. It may be nested deeply."""
    return repr(value[:100]) if isinstance(value, str) else f"a {type(value).__name__}"


def _entry(entry: object, did: str) -> tuple[int, str] | None:
    """Return when an operation was made, and the key from then on; an empty key after a deletion."""
    if not isinstance(entry, dict) or entry.get("did") != did or entry.get("nullified") is True:
        return None
    operation, created = entry.get("operation"), entry.get("createdAt")
    if not isinstance(operation, dict) or not isinstance(created, str):
        return None
    methods = operation.get("verificationMethods")
    # Operations of 2022 and 2023 (`create`) have one key, under a name of its own.
    key = methods.get("atproto") if isinstance(methods, dict) else operation.get("signingKey")
    try:
        return parse_time(created, 0), key if isinstance(key, str) else ""
    except ValueError:
        return None
