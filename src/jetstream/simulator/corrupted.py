"""Faults that replace an intact frame: its events, or some of them, are lost."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final, NamedTuple

from jetstream.atproto.car import Block
from jetstream.atproto.cid import Cid, cid_of
from jetstream.simulator import frames
from jetstream.simulator.added import flip, garbage
from jetstream.simulator.forged import can_be_undone, revised
from jetstream.simulator.frames import Commit, Message
from jetstream.simulator.repo import DELETE, Revision

_MALFORMED_PATHS: Final = (
    "app.bsky.feed.like",
    "nodots/3kwemukb2222b",
    "app.bsky.feed.like/has space",
    "app.bsky.feed.like/..",
    "app.bsky.feed.like/a/b",
    "/3kwemukb2222b",
    "app.bsky.feed.like/" + "x" * 513,
)


class Corrupted(NamedTuple):
    """What a message becomes on the wire."""

    frame: bytes | None  # None: nothing is sent
    level: str  # of checking that drops the events
    lost: list[int]  # indexes of its events
    # Why a consumer that verifies everything refuses the commit; None: it cannot be read as one.
    reason: str | None = None


Corrupt = Callable[[Message, int, Random], Corrupted]


def _all_events(message: Message) -> list[int]:
    return list(range(len(message.revision.ops))) if isinstance(message, Commit) else [0]


def _skip(message: Message, _seq: int, _rng: Random) -> Corrupted:
    return Corrupted(None, "frame", _all_events(message))


def _garbage_instead(message: Message, _seq: int, rng: Random) -> Corrupted:
    return Corrupted(garbage(rng), "frame", _all_events(message))


def _truncated_instead(message: Message, seq: int, rng: Random) -> Corrupted:
    frame = frames.encode(message, seq)
    return Corrupted(frame[: rng.randrange(1, len(frame))], "frame", _all_events(message))


def _bit_flipped_instead(message: Message, seq: int, rng: Random) -> Corrupted:
    frame = frames.encode(message, seq)
    if isinstance(message, Commit) and message.revision.records and rng.random() < 0.7:
        cid, block = rng.choice(message.revision.records)
        start = frame.rindex(cid + block) + len(cid)
        return Corrupted(
            flip(frame, start, start + len(block), rng), "cid", _events_with(message.revision, cid), "hash"
        )
    start = frame.index(b"#")
    return Corrupted(flip(frame, start, start + 5, rng), "frame", _all_events(message))


def _truncated_car(message: Message, seq: int, rng: Random) -> Corrupted:
    """Cut the CAR inside its first block, which is a tree node, so that it has no record."""
    assert isinstance(message, Commit), "applies_to() checks it"
    car = frames.commit_car(message.revision)
    start = car.index(message.revision.nodes[0][0])
    cut = rng.randrange(start, start + 36)
    lost = [i for i, op in enumerate(message.revision.ops) if op.cid is not None]
    return Corrupted(frames.encode(message._replace(car=car[:cut]), seq), "frame", lost, "car")


def _missing_record(message: Message, seq: int, rng: Random) -> Corrupted:
    assert isinstance(message, Commit), "applies_to() checks it"
    revision = message.revision
    cid = rng.choice(revision.records).cid
    left = tuple(block for block in revision.records if block.cid != cid)
    return Corrupted(
        frames.encode(revised(message, records=left), seq), "frame", _events_with(revision, cid), "record"
    )


def _wrong_cid(message: Message, seq: int, rng: Random) -> Corrupted:
    """Change the CID of a record in its operation and in the CAR, so that only its hash reveals it."""
    assert isinstance(message, Commit), "applies_to() checks it"
    revision = message.revision
    cid, wrong = rng.choice(revision.records).cid, cid_of(rng.randbytes(8))
    ops = tuple(op._replace(cid=wrong) if op.cid == cid else op for op in revision.ops)
    blocks = tuple(Block(wrong, block.data) if block.cid == cid else block for block in revision.records)
    frame = frames.encode(revised(message, ops=ops, records=blocks), seq)
    return Corrupted(frame, "cid", _events_with(revision, cid), "hash")


def _malformed_path(message: Message, seq: int, rng: Random) -> Corrupted:
    assert isinstance(message, Commit), "applies_to() checks it"
    at = rng.randrange(len(message.revision.ops))
    chosen = _with_path(message, at, rng.choice(_MALFORMED_PATHS))
    op = message.revision.ops[at]
    if op.action == DELETE and not can_be_undone(chosen.revision):
        # The commit lacks the nodes around this path, which would refute it. It has those around its own.
        chosen = _with_path(message, at, f"{op.path} ")
    return Corrupted(frames.encode(chosen, seq), "frame", [at], "proof")


def _with_path(message: Commit, at: int, path: str) -> Commit:
    ops = list(message.revision.ops)
    ops[at] = ops[at]._replace(path=path)
    return revised(message, ops=tuple(ops))


def _events_with(revision: Revision, cid: Cid) -> list[int]:
    return [i for i, op in enumerate(revision.ops) if op.cid == cid]


CORRUPTED: Final[dict[str, Corrupt]] = {
    "skip": _skip,
    "garbage_instead": _garbage_instead,
    "truncated_instead": _truncated_instead,
    "bit_flipped_instead": _bit_flipped_instead,
    "truncated_car": _truncated_car,
    "missing_record": _missing_record,
    "wrong_cid": _wrong_cid,
    "malformed_path": _malformed_path,
}
