"""The events that a correct Jetstream must emit, made from the world and not by a decoder.

They are in the format of the v1 wire, without `time_us`: one event for each operation, identity change and
account change, none for a `#sync`, which only the v2 wire has. Records are JSON with `$link` and `$bytes`.
"""

from __future__ import annotations

import base64

import orjson

from jetstream.atproto.cid import Cid
from jetstream.simulator.frames import Account, Commit, Identity, Message, Sync
from jetstream.simulator.repo import DELETE, Op

Event = dict[str, object]


def events_of(message: Message, seq: int | None) -> list[Event]:
    """Return the events that must result from a message, in order. Without `seq` they have no number."""
    match message:
        case Commit(did, _, revision):
            return [_commit_event(did, revision.rev, op) for op in revision.ops]
        case Identity(did, time, handle):
            return [_event(did, "identity", {"did": did, "handle": handle, "seq": seq, "time": time})]
        case Account(did, time, active, status):
            body = {"active": active, "did": did, "seq": seq, "status": status, "time": time}
            return [_event(did, "account", body)]
        case Sync():
            return []


def to_json(event: Event) -> bytes:
    """Return an event as a line of JSON, without the newline. Raises TypeError for what JSON lacks."""
    return orjson.dumps(event, default=_tagged)


def _commit_event(did: str, rev: str, op: Op) -> Event:
    collection, _, rkey = op.path.partition("/")
    body: Event = {"rev": rev, "operation": op.action, "collection": collection, "rkey": rkey}
    if op.action != DELETE:
        body |= {"record": op.record, "cid": str(op.cid)}
    return {"did": did, "kind": "commit", "commit": body}


def _event(did: str, kind: str, body: Event) -> Event:
    present = {name: value for name, value in body.items() if value is not None}
    return {"did": did, "kind": kind, kind: present}


def _tagged(value: object) -> dict[str, str]:
    if isinstance(value, Cid):
        return {"$link": str(value)}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode().rstrip("=")}
    raise TypeError(f"{type(value).__name__} is not part of a record")
