"""Accounts with keys, and what directories say of them."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from typing import Any

from jetstream.atproto.compact_did import plc_did
from jetstream.atproto.encoded_key import EncodedKey, parse_multikey
from jetstream.simulator.signing import K256Key, P256Key

PDS_TYPE = "AtprotoPersonalDataServer"


def did_of(number: int) -> str:
    return plc_did(sha256(b"%d" % number).digest()[:15])


@cache
def key_of(number: int) -> EncodedKey:
    """Return one of many keys; every third is P-256."""
    kind = P256Key if number % 3 == 2 else K256Key
    return parse_multikey(kind(sha256(b"key %d" % number).digest()).multibase)


def document(did: str, key: EncodedKey, pds: str = "", **changes: Any) -> dict[str, Any]:
    method = {
        "id": f"{did}#atproto",
        "type": "Multikey",
        "controller": did,
        "publicKeyMultibase": key.multibase,
    }
    service = {"id": "#atproto_pds", "type": PDS_TYPE, "serviceEndpoint": pds}
    return {
        "id": did,
        "alsoKnownAs": [],
        "verificationMethod": [method | changes],
        "service": [service] if pds else [],
    }


def operation(key: EncodedKey, pds: str = "") -> dict[str, Any]:
    return {
        "type": "plc_operation",
        "verificationMethods": {"atproto": f"did:key:{key.multibase}"},
        "alsoKnownAs": [],
        "services": {"atproto_pds": {"type": PDS_TYPE, "endpoint": pds}} if pds else {},
        "prev": None,
        "sig": "x",
    }


TOMBSTONE: dict[str, Any] = {"type": "plc_tombstone", "prev": "x", "sig": "x"}


def entry(did: str, operation: dict[str, Any], created: Any, **more: Any) -> dict[str, Any]:
    return {"did": did, "operation": operation, "cid": "x", "createdAt": created, "nullified": False} | more
