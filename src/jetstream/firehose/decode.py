"""One frame to its events: pure, and never surprised.

`decode` returns a `Message` whatever it is given. What cannot be passed on is left out, the smallest part
of it that can be, and named in `drops` by a reason out of `DROP_REASONS` (`wire.md`, last table).
"""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from typing import Any, Final, NamedTuple

import orjson
from libipld import encode_cid

from jetstream.events import ACCOUNT, CREATE, DELETE, IDENTITY, UPDATE, Event
from jetstream.firehose import car, record
from jetstream.firehose.cbor import Unreadable, decode_pair
from jetstream.firehose.skim import skim
from jetstream.syntax import is_did, is_record_key, is_tid, nsid_bytes

FRAME_BYTES_MAX: Final = 5_000_000  # the protocol's limit for a frame
SEQ_MAX: Final = (1 << 63) - 1  # what a signed integer of the log can hold

# Most commits have one op: to search for its block is cheaper than to name them all. More are named.
_SEARCHES_MAX: Final = 2
_ACTIONS: Final = {"create": CREATE, "update": UPDATE, "delete": DELETE}

DROP_REASONS: Final = {
    "frame_cbor": "the frame is not two DAG-CBOR objects",
    "frame_header": "the header is no map or its op is unknown",
    "frame_size": "the frame is over 5,000,000 bytes",
    "frame_text": "a text message where frames are binary",
    "frame_type": "a message type that is unknown",
    "repeat": "the frame was taken before",
    "malformed": "a field that is required is missing or of the wrong type",
    "did": "the DID does not match the DID syntax",
    "rev": "the rev of a commit is no TID",
    "car": "the blocks of a commit are no readable CAR",
    "op_action": "an op that is neither create, update nor delete",
    "op_collection": "the collection of an op is no NSID",
    "op_rkey": "the rkey of an op is no record key",
    "block_missing": "the record of an op is not among the commit's blocks",
    "block_hash": "the record does not hash to the op's CID",
    "commit_size": "the ops of a commit name the same blocks again and again, for over 5,000,000 bytes",
    "record_cbor": "the record is not DAG-CBOR",
    "record_type": "the record is not a map",
    "record_size": "the record is over 1 MiB",
    "record_depth": "the record is nested deeper than 128",
    "record_float": "the record has a float that is not a whole number",
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
    if len(frame) > FRAME_BYTES_MAX:
        return _too_large(frame)
    try:
        header, body = decode_pair(frame)
    except Unreadable:
        return Message("unknown", drops=("frame_cbor",))
    if type(header) is not dict or type(body) is not dict:
        return Message("unknown", drops=("frame_header",))
    op, t = header.get("op"), header.get("t")
    if op == 1:
        return _commit(body, check_cid) if t == "#commit" else _message(t, body)
    if op == -1:
        return Message("error", name=_text(body.get("error")), text=_text(body.get("message")))
    return Message("unknown", _seq(body), drops=("frame_header",))


def _too_large(frame: bytes) -> Message:
    try:
        header, body = skim(frame)
    except Unreadable:
        header, body = {}, {}
    return Message(_type(header.get("t")), _seq(body), drops=("frame_size",))


def _message(t: object, body: dict[str, Any]) -> Message:
    kind = _type(t)
    seq = _seq(body)
    if kind == "identity":
        return _identity(body, seq)
    if kind == "account":
        return _account(body, seq)
    if kind == "info":
        return Message(kind, name=_text(body.get("name")), text=_text(body.get("message")))
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
    events: list[Event] = []
    drops: list[str] = []
    records = _Records(body.get("blocks"), check_cid)
    did_bytes, rev_bytes = did.encode(), rev.encode()
    for op in ops:
        try:
            events.append(_op(op, did_bytes, rev_bytes, records))
        except record.Refused as refused:
            drops.append(refused.reason)
    time = body.get("time")
    return Message(
        "commit", seq, events, drops, body.get("tooBig") is True, time if type(time) is str else ""
    )


def _op(op: object, did: bytes, rev: bytes, records: _Records) -> Event:
    """Return the event of one op of a commit. Raises Refused."""
    if type(op) is not dict:
        raise record.Refused("malformed")
    action, path = op.get("action"), op.get("path")
    if type(action) is not str or type(path) is not str:
        raise record.Refused("malformed")
    kind = _ACTIONS.get(action)
    if kind is None:
        raise record.Refused("op_action")
    collection_text, _, rkey_text = path.partition("/")
    collection = nsid_bytes(collection_text)
    if collection is None:
        raise record.Refused("op_collection")
    if not is_record_key(rkey_text):
        raise record.Refused("op_rkey")
    rkey = rkey_text.encode()
    if kind is DELETE:
        return Event(DELETE, did, collection, rkey, rev, b"", b"")
    cid = op.get("cid")
    raw = records.get(cid)
    return Event(kind, did, collection, rkey, rev, _cid_text(cid), record.to_json(raw))


class _Records:
    """The records of one commit, by their CID."""

    __slots__ = ("_blocks", "_car", "_check_cid", "_refusal", "_searches")

    def __init__(self, blocks: object, check_cid: bool) -> None:
        self._car = blocks
        self._check_cid = check_cid
        self._searches = 0
        self._blocks: car.Blocks | None = None
        self._refusal = ""  # why nothing more is given out

    def get(self, cid: object) -> bytes:
        """Return a record's DAG-CBOR. Raises Refused."""
        if self._check_cid and self._searches < _SEARCHES_MAX:
            self._searches += 1
            if type(cid) is bytes and type(self._car) is bytes:
                raw = car.proven(self._car, cid)
                if raw is not None:
                    return raw
        return self._walked_to(cid)

    def _walked_to(self, cid: object) -> bytes:
        if self._blocks is None and not self._refusal:
            self._walk()
        if self._refusal:
            raise record.Refused(self._refusal)
        assert self._blocks is not None
        if not isinstance(cid, bytes) or (raw := self._blocks.get(cid)) is None:
            raise record.Refused("block_missing")
        if self._blocks.overdrawn:
            self._refusal = "commit_size"
        if self._check_cid and cid != car.RECORD_CID_HEAD + sha256(raw).digest():
            raise record.Refused("block_hash")
        return raw

    def _walk(self) -> None:
        if type(self._car) is bytes:
            with suppress(Unreadable):
                self._blocks = car.Blocks(self._car)
        if self._blocks is None:
            self._refusal = "car"


def _cid_text(cid: Any) -> bytes:
    try:
        return encode_cid(cid).encode()
    except ValueError as error:
        raise record.Refused("block_hash") from error


def _identity(body: dict[str, Any], seq: int | None) -> Message:
    did, time, handle = body.get("did"), body.get("time"), body.get("handle")
    if seq is None or type(did) is not str or type(time) is not str:
        return Message("identity", seq, drops=("malformed",))
    if not is_did(did):
        return Message("identity", seq, drops=("did",))
    identity: dict[str, object] = {"did": did}
    if type(handle) is str:
        identity["handle"] = handle
    identity |= {"seq": seq, "time": time}
    return Message("identity", seq, (_about(IDENTITY, did, identity),), time=time)


def _account(body: dict[str, Any], seq: int | None) -> Message:
    did, time, active, status = body.get("did"), body.get("time"), body.get("active"), body.get("status")
    if seq is None or type(did) is not str or type(time) is not str or type(active) is not bool:
        return Message("account", seq, drops=("malformed",))
    if not is_did(did):
        return Message("account", seq, drops=("did",))
    account: dict[str, object] = {"active": active, "did": did, "seq": seq}
    if type(status) is str:
        account["status"] = status
    account["time"] = time
    return Message("account", seq, (_about(ACCOUNT, did, account),), time=time)


def _about(kind: bytes, did: str, body: dict[str, object]) -> Event:
    return Event(kind, did.encode(), b"", b"", b"", b"", orjson.dumps(body))
