"""The messages of `com.atproto.sync.subscribeRepos`, and their encoding as frames.

A frame is two DAG-CBOR objects, header and body, in one binary WebSocket message. Source: the event stream
page of the AT Protocol specification, "Wire protocol (v0)", and the lexicon.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from jetstream.atproto.car import Block, write_car
from jetstream.atproto.cbor_encoder import cbor_head, encode_cbor, encode_text
from jetstream.atproto.cid import LINK_HEAD
from jetstream.simulator.repo import Op, Revision


class Commit(NamedTuple):
    """A repository has changed."""

    did: str
    time: str
    revision: Revision
    too_big: bool = False
    car: bytes | None = None  # for `blocks`, instead of the CAR of the revision


class Sync(NamedTuple):
    """The present commit of a repository, whatever was announced before."""

    did: str
    time: str
    rev: str
    commit: Block


class Identity(NamedTuple):
    """The identity of an account may have changed."""

    did: str
    time: str
    handle: str | None


class Account(NamedTuple):
    """The hosting status of an account has changed, or is confirmed."""

    did: str
    time: str
    active: bool
    status: str | None


Message: TypeAlias = Commit | Sync | Identity | Account


def encode(message: Message, seq: int) -> bytes:
    """Return the frame of a message with its number."""
    match message:
        case Commit():
            return _encode_commit(message, seq)
        case Sync(did, time, rev, commit):
            blocks = write_car(commit.cid, (commit,))
            return _SYNC + encode_cbor(
                {"seq": seq, "did": did, "rev": rev, "time": time, "blocks": blocks},
            )
        case Identity(did, time, handle):
            body = {"seq": seq, "did": did, "time": time}
            return _IDENTITY + encode_cbor(body if handle is None else body | {"handle": handle})
        case Account(did, time, active, status):
            body = {"seq": seq, "did": did, "time": time, "active": active}
            return _ACCOUNT + encode_cbor(body if status is None else body | {"status": status})


def encode_error(name: str, message: str) -> bytes:
    """Return an error frame, which is the last frame of a connection."""
    return encode_cbor({"op": -1}) + encode_cbor({"error": name, "message": message})


def encode_info(name: str, message: str) -> bytes:
    """Return an `#info` frame, which has no number."""
    return header("#info") + encode_cbor({"name": name, "message": message})


def header(kind: str) -> bytes:
    """Return the header of a message type, such as `#commit`."""
    return encode_cbor({"op": 1, "t": kind})


_COMMIT: Final = header("#commit")
_SYNC: Final = header("#sync")
_IDENTITY: Final = header("#identity")
_ACCOUNT: Final = header("#account")


def commit_car(revision: Revision) -> bytes:
    """Return the CAR of a commit: nodes, records, and last the commit, as most of the network does."""
    return write_car(revision.commit.cid, (*revision.nodes, *revision.records, revision.commit))


def commit_body(message: Commit, seq: int) -> dict[str, object]:
    """Return the body of a `#commit`."""
    revision = message.revision
    body: dict[str, object] = {
        "ops": [_op_body(op) for op in revision.ops],
        "rev": revision.rev,
        "seq": seq,
        "repo": message.did,
        "time": message.time,
        "blobs": [],
        "since": revision.since,
        "blocks": _car(message),
        "commit": revision.commit.cid,
        "rebase": False,
        "tooBig": message.too_big,
    }
    return body if revision.prev_data is None else body | {"prevData": revision.prev_data}


def _op_body(op: Op) -> dict[str, object]:
    body: dict[str, object] = {"cid": op.cid, "path": op.path, "action": op.action}
    return body if op.prev is None else body | {"prev": op.prev}


def _car(message: Commit) -> bytes:
    return commit_car(message.revision) if message.car is None else message.car


def _encode_commit(message: Commit, seq: int) -> bytes:
    """Return the frame with the body `commit_body`, assembled by hand in a third of the time."""
    revision = message.revision
    car = _car(message)
    parts = [
        _COMMIT,
        b"\xab\x63ops" if revision.prev_data is None else b"\xac\x63ops",
        cbor_head(4, len(revision.ops)),
    ]
    for op in revision.ops:
        parts += _op_parts(op)
    parts += (
        b"\x63rev",
        encode_text(revision.rev),
        b"\x63seq",
        cbor_head(0, seq),
        b"\x64repo",
        encode_text(message.did),
        b"\x64time",
        encode_text(message.time),
        b"\x65blobs\x80\x65since",
        b"\xf6" if revision.since is None else encode_text(revision.since),
        b"\x66blocks",
        cbor_head(2, len(car)),
        car,
        b"\x66commit" + LINK_HEAD,
        revision.commit.cid,
        b"\x66rebase\xf4\x66tooBig\xf5" if message.too_big else b"\x66rebase\xf4\x66tooBig\xf4",
    )
    if revision.prev_data is not None:
        parts += (b"\x68prevData" + LINK_HEAD, revision.prev_data)
    return b"".join(parts)


def _op_parts(op: Op) -> tuple[bytes, ...]:
    return (
        b"\xa3\x63cid" if op.prev is None else b"\xa4\x63cid",
        b"\xf6" if op.cid is None else LINK_HEAD + op.cid,
        b"\x64path",
        encode_text(op.path),
        b"" if op.prev is None else b"\x64prev" + LINK_HEAD + op.prev,
        b"\x66action",
        encode_text(op.action),
    )
