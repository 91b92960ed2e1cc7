"""The last stage: an `Envelope` to the events that it holds, and what was left out of it.

Each op of a commit is one event: its record is found among the blocks by its CID, checked against it, and put
into JSON. An op or record that cannot be passed on costs no other op of its commit. Identity, account and
sync messages are one event each, whose body has the fields that readers get.

No commit holds the event loop for more than about 20 ms: its records share a `Budget`.

The sequence stage asks for `possible_keys` only: what a frame that may be a repeat would be known by in the
log.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
from libipld import encode_cid

from jetstream.atproto import car
from jetstream.atproto.cbor import Unreadable
from jetstream.atproto.cid import Cid, cid_of
from jetstream.limits import UpstreamLimits
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, SYNC, UPDATE, Event, Key
from jetstream.model.syntax import is_record_key, nsid_bytes
from jetstream.upstream.drops import Dropped
from jetstream.upstream.envelope import Envelope
from jetstream.upstream.lenient import DAMAGED
from jetstream.upstream.record import Budget, to_json

# Of the texts in messages that are no commits (`docs/api.md`): a handle is a domain name; the lexicon bounds
# a time. A text that is missing, longer or no text is left out.
TEXT_BYTES_MAX: Final = {"handle": 253, "status": 64, "time": 64}
# The messages that are one event each: its kind, and the keys of its body, in order (`docs/api.md`).
MESSAGES: Final = {
    "identity": (IDENTITY, ("did", "handle", "seq", "time")),
    "account": (ACCOUNT, ("active", "did", "seq", "status", "time")),
    "sync": (SYNC, ("blocks", "did", "rev", "seq", "time")),
}
# Records of so few ops are bounded by what one may cost.
_OPS_WITHOUT_BUDGET: Final = 4
# Most commits have one op. Up to here, searching for each block is cheaper than listing all of them.
_SEARCHES_MAX: Final = 2
# What `Event(…)` calls, which is a function in Python and takes twice as long.
_new: Final = tuple.__new__
_ACTIONS: Final = {"create": CREATE, "update": UPDATE, "delete": DELETE}

# Events in the order of their ops, and the reasons for what was left out.
Extracted = tuple[Sequence[Event], Sequence[str]]


def extract(
    envelope: Envelope, check_cid: bool = True, limits: UpstreamLimits = UpstreamLimits()
) -> Extracted:
    """Return the events of one frame, and a reason for each part that was left out.

    With `check_cid`, a record is an event only if its block hashes to the CID of its op.
    """
    if envelope.drop:
        return (), (envelope.drop,)
    if envelope.type == "commit":
        return _commit(envelope, check_cid, limits)
    return _message(envelope) if envelope.type in MESSAGES else ((), ())


def possible_keys(envelope: Envelope) -> list[Key]:
    """Return the keys of all events that a frame may hold, without looking at its records.

    An event whose record is dropped is among them, although the log never has it. So a frame was taken before
    if the log has *any* of these: no commit makes two events of one path, and no two commits have one rev.
    """
    if envelope.drop or envelope.type != "commit":
        return [event.key for event in extract(envelope)[0]]
    keys: list[Key] = []
    fields = envelope.fields
    did, rev = fields["repo"].encode(), fields["rev"].encode()
    for op in fields["ops"]:
        with suppress(Dropped):
            _, collection, rkey = _target(op)
            keys.append((did, collection, rkey, rev))
    return keys


def _commit(envelope: Envelope, check_cid: bool, limits: UpstreamLimits) -> Extracted:
    """Return the events of a commit. This is the hot path: 99 % of frames are commits, of one op mostly."""
    fields = envelope.fields
    ops, did, rev = fields["ops"], fields["repo"].encode(), fields["rev"].encode()
    blocks: Any = fields.get("blocks")
    budget = Budget(limits) if len(ops) > _OPS_WITHOUT_BUDGET else None
    search = check_cid and len(ops) <= _SEARCHES_MAX and type(blocks) is bytes
    records: _Records | None = None
    events: list[Event] = []
    drops: list[str] = []
    for op in ops:
        try:
            kind, collection, rkey = _target(op)
            if kind is DELETE:
                cid_text = body = b""
            else:
                cid = op.get("cid")
                raw = car.proven(blocks, cid) if search and type(cid) is bytes else None
                if raw is None:
                    records = records or _Records(blocks, check_cid, budget)
                    raw = records.get(cid)
                cid_text = encode_cid(cid).encode()
                body = to_json(raw, budget, limits)
        except Dropped as dropped:
            drops.append(dropped.reason)
        else:
            events.append(_new(Event, (kind, did, collection, rkey, rev, cid_text, body)))
    return events, drops


def _target(op: Any) -> tuple[bytes, bytes, bytes]:
    """Return what an op does, and to which path: kind, collection and rkey. Raises Dropped."""
    if type(op) is not dict:
        raise Dropped("op_cbor" if op is DAMAGED else "malformed")
    action, path = op.get("action"), op.get("path")
    if type(action) is not str or type(path) is not str:
        raise Dropped("malformed")
    kind = _ACTIONS.get(action)
    if kind is None:
        raise Dropped("op_action")
    collection_text, _, rkey = path.partition("/")
    collection = nsid_bytes(collection_text)
    if collection is None:
        raise Dropped("op_collection")
    if not is_record_key(rkey):
        raise Dropped("op_rkey")
    return kind, collection, rkey.encode()


class _Records:
    """The records of one commit, by their CID.

    Made when a record was not found by searching: because there are many ops, its CAR is long or unusual, it
    is not there, or hashes are not checked.
    """

    __slots__ = ("_blocks", "_budget", "_check_cid")

    def __init__(self, blocks: object, check_cid: bool, budget: Budget | None) -> None:
        # What the records may cost together; None for a commit of a few ops.
        self._budget = budget
        self._check_cid = check_cid
        # None if they are no CAR that can be read.
        self._blocks: car.Blocks | None = None
        if type(blocks) is bytes:
            with suppress(Unreadable):
                self._blocks = car.Blocks(blocks)

    def get(self, cid: object) -> bytes:
        """Return a record's DAG-CBOR. Raises Dropped."""
        budget = self._budget
        if budget is not None:
            budget.spend(0)  # raises when nothing is left
        if self._blocks is None:
            raise Dropped("car")
        if not isinstance(cid, bytes) or (raw := self._blocks.get(cid)) is None:
            raise Dropped("block_missing")
        if budget is not None:
            budget.spend_on_bytes(len(raw))
        if self._check_cid and cid != cid_of(raw):
            raise Dropped("block_hash")
        if not self._check_cid:
            _require_cid(cid)
        return raw


def _require_cid(cid: bytes) -> None:
    """Raise Dropped for bytes that are no CID, and so have no text."""
    try:
        encode_cid(cid)
    except ValueError as error:
        raise Dropped("block_hash") from error


def _message(envelope: Envelope) -> Extracted:
    """Return the event of a message that is no commit, and a reason for each text that was left out."""
    kind, names = MESSAGES[envelope.type]
    fields = envelope.fields
    body: dict[str, object] = {}
    drops: tuple[str, ...] = ()
    for name in names:
        value, bytes_max = fields.get(name), TEXT_BYTES_MAX.get(name)
        if bytes_max is None:
            body[name] = _bytes_as_json(value) if type(value) is bytes else value
        elif value is DAMAGED:
            drops += ("field_cbor",)
        elif type(value) is str:
            if len(value) > bytes_max or len(value.encode()) > bytes_max:
                drops += ("field_size",)
            else:
                body[name] = value
    return (Event(kind, fields["did"].encode(), b"", b"", b"", b"", orjson.dumps(body)),), drops


def sync_of(envelope: Envelope) -> Event | None:
    """Return a `#sync` event with the block of a commit, for readers to whom commits before it are missing.

    It has no `seq` and no `time`, since no upstream has sent it. None: the commit has no such block.
    """
    fields = envelope.fields
    blocks, cid, did, rev = fields.get("blocks"), fields.get("commit"), fields["repo"], fields["rev"]
    if type(blocks) is not bytes or not isinstance(cid, bytes):
        return None
    block = car.proven(blocks, cid)
    if block is None:
        with suppress(Unreadable):
            block = car.Blocks(blocks).get(cid)
    if block is None:
        return None
    proof = car.write_car(Cid(cid), [(Cid(cid), block)])
    body = orjson.dumps({"blocks": _bytes_as_json(proof), "did": did, "rev": rev})
    return Event(SYNC, did.encode(), b"", b"", b"", b"", body)


def _bytes_as_json(value: bytes) -> dict[str, str]:
    """Return a byte string as records spell it: in base64 without padding (`docs/api.md`)."""
    return {"$bytes": b64encode(value).rstrip(b"=").decode()}
