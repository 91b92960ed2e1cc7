"""Events of any wire in one form, so that what readers have received can be compared. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

_DIGEST_BYTES: Final = 12
V1_KINDS: Final = frozenset({"commit", "identity", "account"})
V2_KINDS: Final = V1_KINDS | {"sync"}
_NO_NUMBERS: Final = frozenset({"seq"})  # each relay has numbers of its own


class Fact(NamedTuple):
    """What a reader learns from an event, but for its position."""

    did: str
    kind: str
    operation: str  # of a commit; else empty
    collection: str
    ends: bool  # whether the account is deleted
    digest: bytes  # of all of it

    @property
    def is_erasable(self) -> bool:
        """Whether it goes when its account is deleted."""
        return self.operation in ("create", "update") or self.kind == "sync"


def of_v1(event: Mapping[str, Any]) -> Fact:
    """Take an event of the v1 wire, or of the truth."""
    kind = event["kind"]
    return _fact(event["did"], kind, event[kind])


def of_v2(payload: Mapping[str, Any]) -> Fact:
    """Take the payload of an event of the v2 wire."""
    kind = payload["$type"].rpartition("#")[2]
    if kind != "commit":
        return _fact(payload["did"], kind, payload[kind])
    names = ("rev", "operation", "collection", "rkey", "record", "cid")
    return _fact(payload["did"], kind, {name: payload[name] for name in names if name in payload})


def _fact(did: str, kind: str, body: Mapping[str, Any]) -> Fact:
    if kind == "commit":
        return Fact(did, kind, body["operation"], body["collection"], False, _digest(did, kind, body))
    ends = kind == "account" and body.get("status") == "deleted"
    own = {name: value for name, value in body.items() if name not in _NO_NUMBERS}
    return Fact(did, kind, "", "", ends, _digest(did, kind, own))


def _digest(*parts: object) -> bytes:
    return blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS), digest_size=_DIGEST_BYTES).digest()


@dataclass(frozen=True)
class Wanted:
    """Which events a reader has asked for. Empty sets ask for all."""

    kinds: frozenset[str] = V1_KINDS
    collections: tuple[str, ...] = ()  # names, or prefixes that end with `.*`
    excluded: tuple[str, ...] = ()
    operations: frozenset[str] = frozenset()
    dids: frozenset[str] = frozenset()

    def wants(self, fact: Fact) -> bool:
        """Tell whether it has asked for an event."""
        if fact.kind not in self.kinds or (self.dids and fact.did not in self.dids):
            return False
        if fact.kind != "commit":
            return True
        if self.operations and fact.operation not in self.operations:
            return False
        if self.collections and not _matches(fact.collection, self.collections):
            return False
        return not _matches(fact.collection, self.excluded)

    @property
    def is_all(self) -> bool:
        """Whether it has asked for every commit."""
        return "commit" in self.kinds and not (
            self.collections or self.excluded or self.operations or self.dids
        )


def _matches(collection: str, patterns: tuple[str, ...]) -> bool:
    return any(
        collection.startswith(each[:-1]) if each.endswith(".*") else collection == each for each in patterns
    )
