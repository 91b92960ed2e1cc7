"""The first stage: the bytes of a frame to its `Envelope`, with nothing in it decoded further.

A frame is two DAG-CBOR objects: a header, which names the type, and a body, which has the fields (AT Protocol
specification, "Event Stream"). The envelope keeps the body's fields as they came, for the stages after this
one: `seq_tracker` needs the number, verification needs `since`, `prevData` and the blocks, `extract` makes
events of the ops. The blocks stay bytes, and no record is decoded. `docs/architecture.md` lists where a new
message type is added.

`read_envelope` never raises, whatever it is given. A frame that cannot be used as a whole has a `drop`, a
reason out of `drops.DROP_REASONS`; its number still counts wherever it can be read. A frame that could hold
the event loop for more than about 20 ms is not decoded: its items are counted first.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from jetstream.atproto.cbor import Unreadable, decode_pair
from jetstream.atproto.cbor_scan import item_heads
from jetstream.limits import UpstreamLimits
from jetstream.model.syntax import is_did, is_tid
from jetstream.upstream.lenient import DAMAGED, read_lenient

# Limits that `docs/api.md` and the protocol set: of a frame, of the ops and blocks of a commit, of the blocks
# of a #sync. The protocol allows 200 ops.
FRAME_BYTES_MAX: Final = 5_000_000
OPS_MAX: Final = 1_000
COMMIT_BLOCKS_BYTES_MAX: Final = 2_000_000
SYNC_BLOCKS_BYTES_MAX: Final = 10_000
SEQ_MAX: Final = (1 << 63) - 1  # what a signed integer of the log can hold

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
_TYPES: Final = {f"#{name}": name for name in MESSAGE_TYPES if name not in {"error", "unknown"}}
# What a message needs beside its number, DID and time to be an event, by its type.
_REQUIRED: Final[Mapping[str, Mapping[str, type]]] = {
    "identity": {},
    "account": {"active": bool},
    "sync": {"rev": str, "blocks": bytes},
}
# What `Envelope(…)` calls, which is a function in Python and takes twice as long.
_new: Final = tuple.__new__
_NO_FIELDS: Final[Mapping[str, Any]] = MappingProxyType({})


class Envelope(NamedTuple):
    """What one frame says, before its records are looked at.

    `type` is one of `MESSAGE_TYPES`. `seq` is None when the frame has no number that can be read. `drop` is
    the reason why the frame as a whole makes no event, empty if it may. `fields` is the body, by its own
    names. What the producer wrote is there as far as it could be read, else it is `lenient.DAMAGED`:

        commit      seq, repo, rev, since, prevData, commit (its CID), ops, blocks (a CAR), time, tooBig
        sync        seq, did, rev, blocks, time
        identity    seq, did, handle, time
        account     seq, did, active, status, time
        info        name, message
        error       error, message

    Without a `drop`, the fields that an event needs are of the right type, and DID and rev match their
    syntax. Those are: repo, rev and ops of a commit, which has at most `OPS_MAX` ops and
    `COMMIT_BLOCKS_BYTES_MAX` bytes of blocks; rev and blocks of a sync, at most `SYNC_BLOCKS_BYTES_MAX`
    bytes; did, time and active of the others. Any other field may be missing, or anything.
    """

    type: str
    seq: int | None = None
    fields: Mapping[str, Any] = _NO_FIELDS
    drop: str = ""

    @property
    def name(self) -> str:
        """The name of an error or of an info message."""
        return shortened(self.fields.get("error" if self.type == "error" else "name"))

    @property
    def text(self) -> str:
        """What an error or an info message says to a person."""
        return shortened(self.fields.get("message"))


def read_envelope(frame: bytes, items_max: int = UpstreamLimits().frame_items_max) -> Envelope:
    """Read one frame as far as its fields. `items_max` is `UpstreamLimits.frame_items_max`."""
    # A frame of fewer bytes cannot have more items: 99 % of real frames are not measured.
    if len(frame) > items_max and (reason := _too_costly(frame, items_max)):
        header, body, _ = read_lenient(frame)
        return Envelope(_type(header.get("t")), _seq(body), drop=reason)
    try:
        header, body = decode_pair(frame)
    except Unreadable:
        header, body, complete = read_lenient(frame, items_max)
        if not complete:
            return Envelope("unknown", _seq(body), drop="frame_cbor")
    if type(header) is not dict or type(body) is not dict:
        return Envelope("unknown", drop="frame_header")
    op, t = header.get("op"), header.get("t")
    if op == 1:
        return _commit(body) if t == "#commit" else _message(_type(t), body)
    if op == -1:
        return Envelope("error", None, body)
    return Envelope("unknown", _seq(body), drop="frame_header")


def _too_costly(frame: bytes, items_max: int) -> str:
    if len(frame) > FRAME_BYTES_MAX:
        return "frame_size"
    return "frame_items" if len(item_heads(frame, items_max + 1)) > items_max else ""


def _commit(fields: dict[str, Any]) -> Envelope:
    """Judge the fields of a commit that its events need, and its size."""
    seq = _seq(fields)
    did, rev, ops, blocks = fields.get("repo"), fields.get("rev"), fields.get("ops"), fields.get("blocks")
    if seq is None or type(did) is not str or type(rev) is not str or type(ops) is not list:
        drop = "malformed"
    elif not is_did(did):
        drop = "did"
    elif not is_tid(rev):
        drop = "rev"
    elif len(ops) > OPS_MAX:
        drop = "commit_ops"
    elif type(blocks) is bytes and len(blocks) > COMMIT_BLOCKS_BYTES_MAX:
        drop = "commit_size"
    else:
        drop = ""
    return _new(Envelope, ("commit", seq, fields, drop))


def _message(kind: str, fields: dict[str, Any]) -> Envelope:
    """Judge the fields of a message that is no commit."""
    seq, drop = None if kind == "info" else _seq(fields), ""
    if kind == "unknown":
        drop = "frame_type"
    elif kind in _REQUIRED:
        drop = _event_drop(kind, seq, fields)
    return Envelope(kind, seq, fields, drop)


def _event_drop(kind: str, seq: int | None, fields: dict[str, Any]) -> str:
    """Judge the fields of a message that is one event."""
    did, time, blocks = fields.get("did"), fields.get("time"), fields.get("blocks")
    if kind == "sync" and type(blocks) is bytes and len(blocks) > SYNC_BLOCKS_BYTES_MAX:
        return "sync_size"
    complete = all(type(fields.get(name)) is wanted for name, wanted in _REQUIRED[kind].items())
    has_time = type(time) is str or time is DAMAGED
    if seq is None or type(did) is not str or not complete or not has_time:
        return "malformed"
    if not is_did(did):
        return "did"
    return "rev" if kind == "sync" and not is_tid(fields["rev"]) else ""


def _type(t: object) -> str:
    """Return the type of a message out of `MESSAGE_TYPES`, by the `t` of its header."""
    return _TYPES.get(t, "unknown") if type(t) is str else "unknown"


def _seq(fields: dict[str, Any]) -> int | None:
    """Return the number of a message; None if it is no positive integer of 63 bits."""
    seq = fields.get("seq")
    return seq if type(seq) is int and 0 < seq <= SEQ_MAX else None


def shortened(value: object) -> str:
    """Return what a peer says of itself, short enough for a log line."""
    return value[:200] if isinstance(value, str) else ""
