"""Frames as relays send them, valid or not: DAG-CBOR, CARs and messages.

This is a second implementation of the encoders in `jetstream.atproto`: it shares no code with what it tests,
and can also encode what DAG-CBOR forbids.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from jetstream.model.event import CREATE, Event

DID = "did:plc:stk5dhwhpcjxtlwnhbknmfgx"
REV = "3l3f6nzhvkl2g"
TIME = "2024-09-05T06:11:04.870Z"
LIKE = "app.bsky.feed.like"


class Cid(bytes):
    """A binary CID, encoded as a link; plain `bytes` are a byte string."""


class Raw(bytes):
    """CBOR that is written as it is."""


def head(major: int, number: int, width: int | None = None) -> bytes:
    """Return the head of a CBOR item, minimal unless `width` gives the bytes of the number."""
    if width is None:
        width = next(w for w in (0, 1, 2, 4, 8) if number < (24 if w == 0 else 1 << (8 * w)))
    if width == 0:
        return bytes((major << 5 | number,))
    return bytes((major << 5 | 24 + (1, 2, 4, 8).index(width),)) + number.to_bytes(width, "big")


def dag_cbor(value: object) -> bytes:
    """Encode a value as DAG-CBOR; floats have 64 bits."""
    match value:
        case Raw():
            return bytes(value)
        case Cid():
            return head(6, 42) + dag_cbor(b"\0" + bytes(value))
        case list():
            return head(4, len(value)) + b"".join(map(dag_cbor, value))
        case dict():
            # Encoded keys sort as DAG-CBOR wants: their heads put the shorter first.
            return cbor_map(sorted(value.items(), key=lambda item: dag_cbor(item[0])))
    return _scalar(value)


def _scalar(value: object) -> bytes:
    match value:
        case None | bool():
            return {None: b"\xf6", True: b"\xf5", False: b"\xf4"}[value]
        case int():
            return head(0, value) if value >= 0 else head(1, -1 - value)
        case float():
            return b"\xfb" + struct.pack(">d", value)
        case str():
            return head(3, len(value.encode())) + value.encode()
        case bytes():
            return head(2, len(value)) + value
    raise TypeError(f"no CBOR for {value!r}")


def cbor_map(items: Iterable[tuple[object, object]]) -> Raw:
    """Encode a map with its keys in the given order: unsorted, repeated, of any type."""
    items = list(items)
    return Raw(head(5, len(items)) + b"".join(dag_cbor(key) + dag_cbor(value) for key, value in items))


def from_json(value: Any) -> Any:
    """Convert `{"$link"}` and `{"$bytes"}` into what they stand for."""
    match value:
        case {"$bytes": str(text), **more} if not more:
            return base64.b64decode(text + "==")
        case {"$link": str(text), **more} if not more:
            return Cid(base64.b32decode(text[1:].upper() + "=" * (-len(text[1:]) % 8)))
        case dict():
            return {key: from_json(item) for key, item in value.items()}
        case list():
            return [from_json(item) for item in value]
    return value


def nested(levels: int) -> Raw:
    """Encode nested maps, `levels` deep."""
    return Raw(b"\xa1\x61a" * (levels - 1) + b"\xa0")


def cid_of(block: bytes, codec: int = 0x71) -> Cid:
    """Return the CID of a block: version 1, SHA-256."""
    return Cid(bytes((1, codec, 0x12, 0x20)) + sha256(block).digest())


def uvarint(number: int) -> bytes:
    """Encode an unsigned varint."""
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes((*parts, number))


ROOT = cid_of(b"the commit")


def car(blocks: Iterable[tuple[bytes, bytes]], header: object = None) -> bytes:
    """Return a CAR of version 1, with blocks under the given CIDs."""
    start = dag_cbor({"roots": [ROOT], "version": 1} if header is None else header)
    sections = [start, *(cid + data for cid, data in blocks)]
    return b"".join(uvarint(len(section)) + section for section in sections)


class Op(NamedTuple):
    """An op with its record for the CAR. A record in `Raw` is used as it is."""

    action: str
    path: str
    record: object = None

    @property
    def block(self) -> bytes:
        return dag_cbor(self.record)


def create(path: str, record: object) -> Op:
    """Create a record."""
    return Op("create", path, record)


def like(number: int = 0) -> Op:
    """Create a like, identified by a number."""
    return create(f"{LIKE}/{number}", {"$type": LIKE, "n": number})


def delete(path: str) -> Op:
    """Delete a record."""
    return Op("delete", path)


def op_body(op: Op) -> dict[str, Any]:
    """Return an op as a commit lists it."""
    cid = None if op.action == "delete" else cid_of(op.block)
    return {"action": op.action, "path": op.path, "cid": cid}


def commit_body(seq: object, writes: Sequence[Op], /, **fields: object) -> dict[str, Any]:
    """Return the body of a commit whose CAR has the records of its ops, and a tree node to skip."""
    blocks = [(cid_of(op.block), op.block) for op in writes if op.action != "delete"]
    node = dag_cbor({"e": [{"k": op.path.encode(), "v": cid_of(op.block)} for op in writes], "l": None})
    return {
        "seq": seq,
        "repo": DID,
        "rev": REV,
        "since": None,
        "commit": ROOT,
        "ops": [op_body(op) for op in writes],
        "blocks": car([(cid_of(node), node), *blocks]),
        "blobs": [],
        "time": TIME,
        "rebase": False,
        "tooBig": False,
        **fields,
    }


def frame(kind: str, body: object) -> bytes:
    """Return a frame as relays send it: `t` before `op`."""
    return dag_cbor({"t": kind, "op": 1}) + dag_cbor(body)


def commit(seq: object, writes: Sequence[Op] | None = None, /, **fields: object) -> bytes:
    """Return the frame of a commit: of one like by default."""
    writes = [like(seq if isinstance(seq, int) else 0)] if writes is None else writes
    return frame("#commit", commit_body(seq, writes, **fields))


def identity(seq: object, **fields: object) -> bytes:
    """Return the frame of an identity."""
    return frame("#identity", {"seq": seq, "did": DID, "time": TIME, **fields})


def account(seq: object, **fields: object) -> bytes:
    """Return the frame of an account."""
    return frame("#account", {"seq": seq, "did": DID, "time": TIME, "active": True, **fields})


def sync(seq: object, **fields: object) -> bytes:
    """Return the frame of a sync."""
    blocks = car([(ROOT, b"the commit")])
    return frame("#sync", {"seq": seq, "did": DID, "rev": REV, "time": TIME, "blocks": blocks, **fields})


def error(name: object, **fields: object) -> bytes:
    """Return an error frame."""
    return dag_cbor({"op": -1}) + dag_cbor({"error": name, **fields})


def event(
    kind: bytes = CREATE, did: str = DID, collection: str = LIKE, rkey: str = "1", body: bytes = b"{}"
) -> Event:
    """Return an event. Fields that its kind does not have are empty."""
    if kind in {b"i", b"a", b"s"}:
        return Event(kind, did.encode(), b"", b"", b"", b"", body)
    cid, body = (b"", b"") if kind == b"d" else (b"bafyrei", body)
    return Event(kind, did.encode(), collection.encode(), rkey.encode(), REV.encode(), cid, body)
