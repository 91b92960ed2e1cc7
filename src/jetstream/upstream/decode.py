"""One frame to its events: pure, and never surprised.

`decode` returns a `Message` whatever it is given. What cannot be passed on is left out, the smallest part
of it that can be, and named in `drops` by a reason out of `DROP_REASONS` (`wire.md`, last table).

No frame holds the event loop for more than about 20 ms, and no record for more than 5: what could cost more
is measured first (`walk`), and dropped when it is over a limit.
"""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from typing import Any, Final, Literal, NamedTuple

import orjson
from libipld import encode_cid

from jetstream.atproto import car
from jetstream.atproto.cbor import Unreadable, decode_pair
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, UPDATE, Event
from jetstream.model.syntax import is_did, is_record_key, is_tid, nsid_bytes
from jetstream.upstream.lenient import DAMAGED, skim
from jetstream.upstream.record import Budget, Refused, to_json
from jetstream.upstream.walk import heads

FRAME_BYTES_MAX: Final = 5_000_000  # the protocol's limit for a frame
# Lists, maps and what is in them, strings at one each. A thousand ops have eleven thousand: 5 ms at most.
FRAME_ITEMS_MAX: Final = 16_000
OPS_MAX: Final = 1_000  # of a commit; the protocol says 200
COMMIT_BLOCKS_BYTES_MAX: Final = 2_000_000  # the protocol's limits for the blocks of a commit and of a #sync
SYNC_BLOCKS_BYTES_MAX: Final = 10_000
HANDLE_BYTES_MAX: Final = 253  # a domain name
STATUS_BYTES_MAX: Final = 64
TIME_BYTES_MAX: Final = 64  # the lexicon's limit for a datetime
SEQ_MAX: Final = (1 << 63) - 1  # what a signed integer of the log can hold
# A frame of fewer bytes cannot have so many items that it must be measured: 99 % of real ones.
_UNMEASURED_BYTES_MAX: Final = FRAME_ITEMS_MAX
# Records of so few ops are bounded by what one may cost.
_OPS_WITHOUT_BUDGET: Final = 4

# Most commits have one op: to search for its block is cheaper than to name them all. More are named.
_SEARCHES_MAX: Final = 2
_ACTIONS: Final = {"create": CREATE, "update": UPDATE, "delete": DELETE}

DROP_REASONS: Final = {
    "frame_cbor": "the frame is not two DAG-CBOR objects",
    "frame_header": "the header is no map or its op is unknown",
    "frame_size": "the frame is over 5,000,000 bytes",
    "frame_items": "the frame has over 16,000 items",
    "frame_text": "a text message where frames are binary",
    "frame_type": "a message type that is unknown",
    "repeat": "the frame was taken before",
    "malformed": "a field that is required is missing or of the wrong type",
    "did": "the DID does not match the DID syntax",
    "rev": "the rev of a commit is no TID",
    "field_cbor": "a handle, status or time that cannot be read, which was left out of the event",
    "field_size": "a handle over 253 bytes, a status or time over 64, which was left out of the event",
    "sync_size": "the blocks of a #sync are over 10,000 bytes",
    "commit_size": "the blocks of a commit are over 2,000,000 bytes",
    "commit_ops": "a commit has over 1,000 ops",
    "commit_items": "a commit's records before this one have over 48,000 items, or bytes that cost as much",
    "car": "the blocks of a commit are no readable CAR, or over 10,000",
    "op_cbor": "an op that is not DAG-CBOR: its path is not UTF-8, for example",
    "op_action": "an op that is neither create, update nor delete",
    "op_collection": "the collection of an op is no NSID",
    "op_rkey": "the rkey of an op is no record key",
    "block_missing": "the record of an op is not among the commit's blocks",
    "block_hash": "the record does not hash to the op's CID",
    "record_cbor": "the record is not DAG-CBOR",
    "record_type": "the record is not a map",
    "record_size": "the record is over 1 MiB",
    "record_depth": "the record is nested deeper than 128",
    "record_float": "the record has a float that is not a whole number",
    "record_items": "the record has over 8,000 items, or 2,000 with floats, odd keys or many byte strings",
    "json_size": "the record is over 990,000 bytes of JSON",
}

MESSAGE_TYPES: Final = (
    "commit",
    "identity",
    "account",
    "sync",
    "info",
    "error",
    "handle",
    "migrate",
    "tombstone",
    "unknown",
)


class Message(NamedTuple):
    """What one frame said.

    `type` is one of `MESSAGE_TYPES`. `seq` is None when the frame has none that can be read. `too_big` says
    that the producer left records out. `time` is upstream's clock, as it wrote it. `name` and `text` are
    those of an error or info frame.
    """

    type: str
    seq: int | None = None
    events: tuple[Event, ...] | list[Event] = ()
    drops: tuple[str, ...] | list[str] = ()
    too_big: bool = False
    time: str = ""
    name: str = ""
    text: str = ""


def decode(frame: bytes, *, check_cid: bool = True) -> Message:
    """Read one frame.

    With `check_cid`, a record is an event only if its block hashes to the CID of its op.
    """
    if len(frame) > _UNMEASURED_BYTES_MAX and (reason := _too_costly(frame)):
        return _dropped(frame, reason)
    try:
        header, body = decode_pair(frame)
    except Unreadable:
        header, body, whole = skim(frame, FRAME_ITEMS_MAX)
        if not whole:
            return Message("unknown", _seq(body), drops=("frame_cbor",))
    if type(header) is not dict or type(body) is not dict:
        return Message("unknown", drops=("frame_header",))
    op, t = header.get("op"), header.get("t")
    if op == 1:
        return _commit(body, check_cid) if t == "#commit" else _message(t, body)
    if op == -1:
        return Message("error", name=_text(body.get("error")), text=_text(body.get("message")))
    return Message("unknown", _seq(body), drops=("frame_header",))


def _too_costly(frame: bytes) -> str:
    if len(frame) > FRAME_BYTES_MAX:
        return "frame_size"
    return "frame_items" if len(heads(frame, FRAME_ITEMS_MAX + 1)) > FRAME_ITEMS_MAX else ""


def _dropped(frame: bytes, reason: str) -> Message:
    header, body, _ = skim(frame)
    return Message(_type(header.get("t")), _seq(body), drops=(reason,))


def _message(t: object, body: dict[str, Any]) -> Message:
    kind, seq, blocks = _type(t), _seq(body), body.get("blocks")
    if kind == "identity":
        return _identity(body, seq)
    if kind == "account":
        return _account(body, seq)
    if kind == "info":
        return Message(kind, name=_text(body.get("name")), text=_text(body.get("message")))
    if kind == "sync" and type(blocks) is bytes and len(blocks) > SYNC_BLOCKS_BYTES_MAX:
        return Message(kind, seq, drops=("sync_size",))
    return Message(kind, seq, drops=("frame_type",) if kind == "unknown" else ())


_TYPES: Final = {f"#{name}": name for name in MESSAGE_TYPES if name not in {"error", "unknown"}}


def _type(t: object) -> str:
    return _TYPES.get(t, "unknown") if type(t) is str else "unknown"


def _seq(body: dict[str, Any]) -> int | None:
    seq = body.get("seq")
    return seq if type(seq) is int and 0 < seq <= SEQ_MAX else None


def _text(value: object) -> str:
    """Return what a peer says of itself, short enough for a log line."""
    return value[:200] if isinstance(value, str) else ""


def _commit(body: dict[str, Any], check_cid: bool) -> Message:
    seq = _seq(body)
    did, rev, ops = body.get("repo"), body.get("rev"), body.get("ops")
    if seq is None or type(did) is not str or type(rev) is not str or type(ops) is not list:
        return Message("commit", seq, drops=("malformed",))
    if not is_did(did):
        return Message("commit", seq, drops=("did",))
    if not is_tid(rev):
        return Message("commit", seq, drops=("rev",))
    blocks, time = body.get("blocks"), body.get("time")
    if len(ops) > OPS_MAX:
        return Message("commit", seq, drops=("commit_ops",))
    if type(blocks) is bytes and len(blocks) > COMMIT_BLOCKS_BYTES_MAX:
        return Message("commit", seq, drops=("commit_size",))
    events: list[Event] = []
    drops: list[str] = []
    records = _Records(blocks, check_cid, Budget() if len(ops) > _OPS_WITHOUT_BUDGET else None)
    did_bytes, rev_bytes = did.encode(), rev.encode()
    for op in ops:
        try:
            events.append(_op(op, did_bytes, rev_bytes, records))
        except Refused as refused:
            drops.append(refused.reason)
    time = time if type(time) is str and len(time) <= TIME_BYTES_MAX else ""
    return Message("commit", seq, events, drops, body.get("tooBig") is True, time)


def _op(op: object, did: bytes, rev: bytes, records: _Records) -> Event:
    """Return the event of one op of a commit. Raises Refused."""
    if type(op) is not dict:
        raise Refused("op_cbor" if op is DAMAGED else "malformed")
    action, path = op.get("action"), op.get("path")
    if type(action) is not str or type(path) is not str:
        raise Refused("malformed")
    kind = _ACTIONS.get(action)
    if kind is None:
        raise Refused("op_action")
    collection_text, _, rkey_text = path.partition("/")
    collection = nsid_bytes(collection_text)
    if collection is None:
        raise Refused("op_collection")
    if not is_record_key(rkey_text):
        raise Refused("op_rkey")
    rkey = rkey_text.encode()
    if kind is DELETE:
        return Event(DELETE, did, collection, rkey, rev, b"", b"")
    cid = op.get("cid")
    raw = records.get(cid)
    return Event(kind, did, collection, rkey, rev, _cid_text(cid), to_json(raw, records.budget))


class _Records:
    """The records of one commit, by their CID. `budget` is what they may cost; None for a few."""

    __slots__ = ("_blocks", "_car", "_check_cid", "_searches", "budget")

    def __init__(self, blocks: object, check_cid: bool, budget: Budget | None) -> None:
        self.budget = budget
        self._car = blocks
        self._check_cid = check_cid
        self._searches = 0  # that were made without listing the blocks
        self._blocks: car.Blocks | Literal[False] | None = None  # None until listed, False if unreadable

    def get(self, cid: object) -> bytes:
        """Return a record's DAG-CBOR. Raises Refused."""
        if self._check_cid and self._searches < _SEARCHES_MAX:
            self._searches += 1
            if type(cid) is bytes and type(self._car) is bytes:
                raw = car.proven(self._car, cid)
                if raw is not None:
                    return raw
        return self._listed(cid)

    def _listed(self, cid: object) -> bytes:
        budget = self.budget
        if budget is not None:
            budget.spend(0)  # raises when nothing is left
        if self._blocks is None:
            self._blocks = self._list()
        if not self._blocks:
            raise Refused("car")
        if not isinstance(cid, bytes) or (raw := self._blocks.get(cid)) is None:
            raise Refused("block_missing")
        if budget is not None:
            budget.spend_on_bytes(len(raw))
        if self._check_cid and cid != car.RECORD_CID_HEAD + sha256(raw).digest():
            raise Refused("block_hash")
        return raw

    def _list(self) -> car.Blocks | Literal[False]:
        if type(self._car) is bytes:
            with suppress(Unreadable):
                return car.Blocks(self._car)
        return False


def _cid_text(cid: Any) -> bytes:
    try:
        return encode_cid(cid).encode()
    except ValueError as error:
        raise Refused("block_hash") from error


def _identity(body: dict[str, Any], seq: int | None) -> Message:
    did, time = body.get("did"), body.get("time")
    if seq is None or type(did) is not str or not (type(time) is str or time is DAMAGED):
        return Message("identity", seq, drops=("malformed",))
    if not is_did(did):
        return Message("identity", seq, drops=("did",))
    identity: dict[str, object] = {"did": did}
    drops = _add(identity, "handle", body, HANDLE_BYTES_MAX)
    identity["seq"] = seq
    drops += _add(identity, "time", body, TIME_BYTES_MAX)
    return _event(IDENTITY, "identity", did, identity, drops)


def _account(body: dict[str, Any], seq: int | None) -> Message:
    did, time, active = body.get("did"), body.get("time"), body.get("active")
    is_time = type(time) is str or time is DAMAGED
    if seq is None or type(did) is not str or not is_time or type(active) is not bool:
        return Message("account", seq, drops=("malformed",))
    if not is_did(did):
        return Message("account", seq, drops=("did",))
    account: dict[str, object] = {"active": active, "did": did, "seq": seq}
    drops = _add(account, "status", body, STATUS_BYTES_MAX)
    drops += _add(account, "time", body, TIME_BYTES_MAX)
    return _event(ACCOUNT, "account", did, account, drops)


def _add(about: dict[str, object], name: str, body: dict[str, Any], bytes_max: int) -> tuple[str, ...]:
    """Take over a text; return why not, if it is one that cannot be passed on."""
    value = body.get(name)
    if value is DAMAGED:
        return ("field_cbor",)
    if type(value) is str:
        if len(value) > bytes_max or len(value.encode()) > bytes_max:
            return ("field_size",)
        about[name] = value
    return ()


def _event(kind: bytes, name: str, did: str, about: dict[str, Any], drops: tuple[str, ...]) -> Message:
    event = Event(kind, did.encode(), b"", b"", b"", b"", orjson.dumps(about))
    return Message(name, about["seq"], (event,), drops, time=about.get("time", ""))
