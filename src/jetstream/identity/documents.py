"""The signing key and the PDS in DID documents, in operations of the PLC directory, in its audit log. Pure.

An operation of a log that cannot be read may be the one that has changed the key. So the key before it ends
there, and until the next operation the key is not known. The keys of all others count. Where an operation has
no time, the key before it may have counted for longer, even if the key of the last one is known otherwise.

A PDS is the host and port of a URL (`addresses.endpoint`); empty: there is none, or none that can be used.

Source: the DID page of the AT Protocol specification, "DID documents" and "Representation of public keys";
the specification of did:plc, "Operation serialization". What is wrong raises NoKey.

    a document      GET /<did>               document_key, document_pds     what counts now
    an operation    a line of /export        operation_key, operation_pds   what counts from its time on
    an audit log    GET /<did>/log/audit     parse_history                  what has counted at any time

All of it comes from others: each function takes any JSON, and bounds what it looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from operator import itemgetter
from typing import Final, NamedTuple

import orjson

from jetstream.atproto.encoded_key import (
    K256_PREFIX,
    P256_PREFIX,
    EncodedKey,
    decode_multibase,
    parse_did_key,
    parse_multikey,
    parse_point,
)
from jetstream.identity.addresses import endpoint
from jetstream.identity.failures import NoKey
from jetstream.model.timestamp import parse_time

# Types of documents made before Multikey: the point follows `z` without a prefix, compressed or not.
_OLD_TYPES: Final = {
    "EcdsaSecp256k1VerificationKey2019": K256_PREFIX,
    "EcdsaSecp256r1VerificationKey2019": P256_PREFIX,
}
_METHODS_MAX: Final = 100  # that are looked at, and as many services; real documents have one to three
_PDS_TYPE: Final = "AtprotoPersonalDataServer"
_ENTRIES_MAX: Final = 10_000  # of an audit log
_KEYS_MAX: Final = 8  # of one time: each may be tried, which takes 25 to 45 µs
_SHOWN_CHARS: Final = 80  # of a foreign value, in an error


class Declared(NamedTuple):
    """What an account declares of itself."""

    key: EncodedKey | None  # None: it has no key that can be used
    pds: str  # the host of its PDS, empty if there is none


class Span(NamedTuple):
    """The key of an account from one operation to the next."""

    from_us: int  # the directory's time of the operation, in unix microseconds
    until_us: int | None  # that of the next operation; None: it is the current key
    key: EncodedKey | None  # None: a tombstone, or an operation without a usable key
    is_readable: bool = True  # False: the operation cannot be read, so nothing is known of the key
    # False: it has no time. `from_us` is that of the one before, whose key has counted for longer.
    is_timed: bool = True


class History(NamedTuple):
    """The keys of an account in the order of time, without operations that were nullified."""

    spans: tuple[Span, ...]  # each ends where the next one begins; the last has no end
    pds: str = ""  # that of the last operation

    @property
    def current(self) -> EncodedKey | None:
        """The key of the last operation. Raises IndexError for `NO_HISTORY`."""
        return self.spans[-1].key

    @property
    def is_current(self) -> bool:
        """Whether the last operation could be read: else the current key is not known from the log."""
        return self.spans[-1].is_readable

    def with_current(self, key: EncodedKey | None, pds: str) -> History:
        """Return the history with the key and the PDS of the last operation, which are known otherwise."""
        last = self.spans[-1]._replace(key=key, is_readable=True)
        return History((*self.spans[:-1], last), pds)

    def keys_at(self, time_us: int, slack_us: int) -> list[EncodedKey]:
        """Return the keys that were valid at a time or up to `slack_us` around it: the eight newest.

        The newest comes first. The time of a commit is that of another clock than the directory's, and a
        change of keys takes a while to reach everybody.
        """
        keys = [span.key for span in self._spans_at(time_us, slack_us) if span.key is not None]
        return list(dict.fromkeys(keys))[:_KEYS_MAX]

    def is_whole_at(self, time_us: int, slack_us: int) -> bool:
        """Return whether all operations could be read whose keys were valid then, and have a time."""
        return all(span.is_readable and span.is_timed for span in self._spans_at(time_us, slack_us))

    def _spans_at(self, time_us: int, slack_us: int) -> list[Span]:
        """Return what counted at a time or up to `slack_us` microseconds around it, the newest first."""
        return [
            span
            for span in reversed(self.spans)
            if span.from_us <= time_us + slack_us
            and (span.until_us is None or time_us - slack_us < span.until_us)
        ]


# Of an account whose keys were never had.
NO_HISTORY: Final = History(())


def only_key(key: EncodedKey | None, pds: str = "") -> History:
    """Return the history of an account of which one key is known, at all times."""
    return History((Span(0, None, key),), pds)


def parse_json(body: bytes) -> object:
    """Return the value of a JSON text; at most 1,024 levels deep."""
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise NoKey("malformed", f"it is no JSON ({error}); it begins {body[:40]!r}") from error


def document_key(did: str, document: object) -> EncodedKey:
    """Return the key of a DID document: its first `#atproto` method that the DID itself controls.

    Raises NoKey: `malformed`, `wrong_did`, `no_key` or `bad_key`. A second method is not looked at when the
    first has no usable key.
    """
    if not isinstance(document, dict) or not isinstance(document.get("id"), str):
        raise NoKey("malformed", "it is no DID document")
    if document["id"] != did:
        raise NoKey("wrong_did", f"it is that of {_short(document['id'])}")
    methods = document.get("verificationMethod")
    for method in methods[:_METHODS_MAX] if isinstance(methods, list) else ():
        if isinstance(method, dict) and _is_signing_method(method, did):
            return _method_key(method)
    raise NoKey("no_key", "it has no verification method #atproto")


def _is_signing_method(method: Mapping[str, object], did: str) -> bool:
    """Tell whether a verification method is `#atproto`, controlled by the DID. Its ID may be relative."""
    # A tuple, no set: the ID in a document may be a list, which has no hash.
    return method.get("id") in ("#atproto", f"{did}#atproto") and method.get("controller") == did


def _method_key(method: Mapping[str, object]) -> EncodedKey:
    """Return the key of a verification method. Raises NoKey (`bad_key`) for one of no known type."""
    kind, text = method.get("type"), method.get("publicKeyMultibase")
    try:
        if kind == "Multikey":
            return parse_multikey(text)
        if isinstance(kind, str) and kind in _OLD_TYPES:
            return parse_point(_OLD_TYPES[kind], decode_multibase(text))
    except ValueError as error:
        raise NoKey("bad_key", str(error)) from error
    raise NoKey("bad_key", f"{_short(kind)} is no type of key")


def document_pds(did: str, document: object) -> str:
    """Return the host of the PDS in a DID document: its first service `#atproto_pds`. It raises nothing."""
    services = document.get("service") if isinstance(document, dict) else None
    for service in services[:_METHODS_MAX] if isinstance(services, list) else ():
        if isinstance(service, dict) and service.get("id") in ("#atproto_pds", f"{did}#atproto_pds"):
            return endpoint(service.get("serviceEndpoint")) if service.get("type") == _PDS_TYPE else ""
    return ""


def declared(did: str, document: object) -> Declared:
    """Return what a DID document says. Raises NoKey if it has no key."""
    return Declared(document_key(did, document), document_pds(did, document))


def operation_key(operation: object) -> EncodedKey | None:
    """Return the key that an operation of the PLC directory gives its account.

    None: it is a tombstone, or its key cannot be used. Raises NoKey (`malformed`) for what is no operation.
    """
    if not isinstance(operation, dict):
        raise NoKey("malformed", "it is no operation")
    kind = operation.get("type")
    if kind == "plc_tombstone":
        return None
    if kind not in ("plc_operation", "create"):
        raise NoKey("malformed", f"{_short(kind)} is no type of operation")
    methods = operation.get("verificationMethods")
    text = methods.get("atproto") if isinstance(methods, dict) else operation.get("signingKey")
    try:
        return parse_did_key(text)
    except ValueError:
        return None


def operation_pds(operation: object) -> str:
    """Return the host of the PDS that an operation of the PLC directory gives its account.

    Empty for a tombstone, and where it names none that can be used.
    """
    if not isinstance(operation, dict):
        return ""
    services = operation.get("services")
    service = services.get("atproto_pds") if isinstance(services, dict) else None
    if isinstance(service, dict):
        return endpoint(service.get("endpoint")) if service.get("type") == _PDS_TYPE else ""
    return endpoint(operation.get("service"))  # an operation of the first form, `create`


def operation_declared(operation: object) -> Declared:
    """Return what an operation says. Raises NoKey (`malformed`) for what is none."""
    return Declared(operation_key(operation), operation_pds(operation))


def parse_history(did: str, log: object) -> History:
    """Return the history of keys in an audit log, `GET /<did>/log/audit`.

    Operations that were nullified are left out: the account's owner has declared them void, and the key
    before them counts in their time. Raises NoKey if none is left that may be one of the account.
    """
    if not isinstance(log, list):
        raise NoKey("malformed", "it is no audit log")
    if len(log) > _ENTRIES_MAX:
        raise NoKey("too_big", f"it has more than {_ENTRIES_MAX:,} operations")
    entries = [each if isinstance(each, dict) else {} for each in log]
    valid = [each for each in entries if each.get("nullified") is not True]
    if not any(each.get("did") == did for each in valid):
        raise NoKey("malformed", "it has no operation of the account that counts")
    starts = sorted(_starts(did, valid), key=itemgetter(0))
    ends = [*(from_us for from_us, *_ in starts[1:]), None]
    spans = (
        Span(from_us, end, now and now.key, now is not None, is_timed)
        for (from_us, now, is_timed), end in zip(starts, ends, strict=True)
    )
    last = starts[-1][1]
    return History(tuple(spans), last.pds if last is not None else "")


def _starts(did: str, entries: Iterable[Mapping[str, object]]) -> Iterator[tuple[int, Declared | None, bool]]:
    """Yield when each operation was made, what counts from then on, and whether the time is its own.

    None: it cannot be read. So is an operation without a time, which gets that of the one before: where it
    belongs is not known.
    """
    from_us = 0
    for entry in entries:
        is_timed, now = False, None
        with suppress(NoKey):
            from_us, is_timed = operation_us(entry), True
            if entry.get("did") == did:
                now = operation_declared(entry.get("operation"))
        yield from_us, now, is_timed


def operation_us(entry: Mapping[str, object]) -> int:
    """Return the directory's time of an operation, in unix microseconds: its `createdAt`, an RFC 3339 date.

    Raises NoKey (`malformed`) without one.
    """
    created = entry.get("createdAt")
    if isinstance(created, str) and created[4:5] == "-":
        with suppress(ValueError):
            return parse_time(created, 0)
    raise NoKey("malformed", f"createdAt is {_short(created)}")


def _short(value: object) -> str:
    """Return a foreign value for an error. It may be nested too deeply for `repr`."""
    return repr(value[:_SHOWN_CHARS]) if isinstance(value, str) else f"a {type(value).__name__}"
