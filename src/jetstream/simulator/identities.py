"""The identities of accounts over time, as the directory of `did:plc` keeps them.

An identity begins with a first operation, the *genesis*, and every change of its key or handle is one more.
Each operation is signed and names the one before it by its CID. A document is what the newest one says.
Source: the did:plc specification, "Operation serialization, signing and validation", and its directory server
for `/export`.
"""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final, NamedTuple

import libipld

from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import cid_of
from jetstream.simulator.records import datetime_of
from jetstream.simulator.signing import K256Key, SigningKey

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PDS: Final = "AtprotoPersonalDataServer"
# Signs the operations of all accounts, as the server that hosts accounts does.
_ROTATION_KEY: Final = K256Key(sha256(b"the rotation key of simulated accounts").digest())


class Change(NamedTuple):
    """What the identity of an account is from a time on."""

    did: str
    time_us: int  # in whole milliseconds, as the directory tells it
    key: str  # the public key as a document has it (`publicKeyMultibase`)
    handle: str


class Entry(NamedTuple):
    """An operation in the directory's log: its number, from 1 in the order of the log, and its JSON."""

    seq: int
    json: dict[str, object]

    def numbered(self) -> dict[str, object]:
        """Return the JSON with the number, as it is in an export by numbers."""
        return self.json | {"seq": self.seq}


HostOf = Callable[[str], str]  # from a DID to the URL of the PDS of its account


class OperationLog:
    """The signed operations of a sequence of changes, which grows at its end.

    An operation is signed when it is first asked for, so a network whose log nobody reads signs none.
    """

    def __init__(self, changes: Sequence[Change], host_of: HostOf) -> None:
        self._changes = changes
        self._host_of = host_of
        self._order: list[int] = []  # places in `changes` that are in the log; did:web has no log
        self._numbers: dict[str, list[int]] = defaultdict(list)  # by DID, where its changes are in `_order`
        self._signed: dict[str, list[dict[str, object]]] = {}  # by DID, its operations so far
        self._indexed = 0  # how many of `changes` are in `_order`

    def audit(self, did: str) -> list[dict[str, object]]:
        """Return the operations of one DID, the oldest first; none for a DID that is not in the log."""
        self._index()
        numbers = self._numbers.get(did, [])
        return self._operations(did, len(numbers)) if numbers else []

    def after_seq(self, seq: int, count: int) -> list[Entry]:
        """Return up to `count` operations with numbers above `seq`."""
        self._index()
        return [self._entry(number) for number in range(seq, min(seq + count, len(self._order)))]

    def after_time(self, time_us: int, count: int) -> list[Entry]:
        """Return up to `count` operations that are newer than a time, as the public directory does.

        Where a page ends between two operations of the same millisecond, the next page lacks the second one.
        """
        self._index()
        start = bisect_right(self._order, time_us, key=lambda place: self._changes[place].time_us)
        return self.after_seq(start, count)

    def forget_signed(self) -> None:
        """Sign all operations again when they are asked for: the URLs of the hosts have changed."""
        self._signed.clear()

    def _index(self) -> None:
        for place in range(self._indexed, len(self._changes)):
            did = self._changes[place].did
            if did.startswith("did:plc:"):
                self._numbers[did].append(len(self._order))
                self._order.append(place)
        self._indexed = len(self._changes)

    def _entry(self, number: int) -> Entry:
        did = self._changes[self._order[number]].did
        nth = self._numbers[did].index(number)
        return Entry(number + 1, self._operations(did, nth + 1)[nth])

    def _operations(self, did: str, count: int) -> list[dict[str, object]]:
        """Return at least the first `count` operations of a DID. Sign those that have not been."""
        signed = self._signed.setdefault(did, [])
        for number in self._numbers[did][len(signed) : count]:
            prev = signed[-1]["cid"] if signed else None
            signed.append(_operation(self._changes[self._order[number]], self._host_of(did), prev))
        return signed


def _operation(change: Change, host: str, prev: object) -> dict[str, object]:
    """Return an entry of the log. `prev` is the CID of the operation before it, None for the genesis."""
    unsigned: dict[str, object] = {
        "type": "plc_operation",
        "rotationKeys": [f"did:key:{_ROTATION_KEY.multibase}"],
        "verificationMethods": {"atproto": f"did:key:{change.key}"},
        "alsoKnownAs": [f"at://{change.handle}"],
        "services": {"atproto_pds": {"type": _PDS, "endpoint": host}},
        "prev": prev,
    }
    signature = base64.urlsafe_b64encode(_ROTATION_KEY.sign(encode_cbor(unsigned))).decode().rstrip("=")
    operation = unsigned | {"sig": signature}
    return {
        "did": change.did,
        "operation": operation,
        "cid": str(cid_of(encode_cbor(operation))),
        "nullified": False,
        "createdAt": datetime_of(change.time_us),
    }


def plc_did_of(key: SigningKey) -> str:
    """Return a DID derived from a key, with 24 characters of base 32 like those of `did:plc`.

    A real one is derived from the genesis. A reader that checks this refuses the logs of the simulator.
    """
    digest = sha256(key.multibase.encode()).digest()[:15]
    return "did:plc:" + libipld.encode_multibase("b", digest)[1:]


def host_number(did: str, hosts: int, share: float) -> int:
    """Return on which of `hosts` PDSes an account lives, from 1; 0 for the share of accounts on none."""
    digest = sha256(did.encode()).digest()
    if not hosts or int.from_bytes(digest[:4], "big") >= share * (1 << 32):
        return 0
    return 1 + int.from_bytes(digest[4:8], "big") % hosts


def did_document(did: str, handle: str, key: str, pds: str) -> dict[str, object]:
    """Return a DID document as the directory serves it."""
    return {
        "@context": ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"],
        "id": did,
        "alsoKnownAs": [f"at://{handle}"],
        "verificationMethod": [
            {"id": f"{did}#atproto", "type": "Multikey", "controller": did, "publicKeyMultibase": key}
        ],
        "service": [{"id": "#atproto_pds", "type": _PDS, "serviceEndpoint": pds}],
    }


def document_in(did: str, found: object) -> dict[str, object] | None:
    """Return the DID document in what a recording has of an account: a document, or an audit log.

    None if it is neither.
    """
    if isinstance(found, dict):
        return found
    match found:
        case [
            *_,
            {
                "operation": {
                    "verificationMethods": {"atproto": str(key)},
                    "alsoKnownAs": [str(handle), *_],
                    "services": {"atproto_pds": {"endpoint": str(pds)}},
                }
            },
        ]:
            return did_document(did, handle.removeprefix("at://"), key.removeprefix("did:key:"), pds)
    return None


def parse_time_us(text: str) -> int:
    """Parse a time of `after=`, such as `2026-01-01T00:00:00.000Z`. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)
