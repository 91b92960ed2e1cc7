"""The faults of an upstream: how often each occurs, and what it does to a frame.

There are three kinds. An *added* fault comes beside the intact frames: a correct consumer loses nothing and
sees nothing twice. A *forged* commit is invalid in a way that only a consumer that verifies everything
detects. A *corrupted* frame replaces an intact one, and its events, or some of them, are lost. The ledger has
a line for each fault, with the events that are lost, and the level of checking that drops them:

- `frame`: every consumer loses them;
- `cid`: a consumer that checks the hashes of records drops them; others accept wrong data;
- `full`: only a consumer that verifies signatures, trees and the chain of revisions drops them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from random import Random
from typing import Final, NamedTuple

from jetstream.atproto.car import Block
from jetstream.atproto.cbor_encoder import cbor_head, encode_cbor
from jetstream.atproto.cid import LINK_HEAD, Cid, cid_of
from jetstream.atproto.keys import SIGNATURE_BYTES
from jetstream.atproto.tid import tid, tid_us
from jetstream.errors import SettingError
from jetstream.simulator import frames
from jetstream.simulator.frames import Commit, Message
from jetstream.simulator.repo import Revision
from jetstream.simulator.signing import SIGNATURE_FIELD, SigningKey, high_s, sign_commit

FRAME_BYTES_MAX: Final = 5_000_000  # the limit of the protocol
_DEPTH: Final = 10_000
_MALFORMED_DIDS: Final = ("did:plc:oracle!malformed", "did:PLC:upper", "did:plc:", "plc:none", "did:web:a b")
_MALFORMED_PATHS: Final = (
    "app.bsky.feed.like",
    "nodots/3kwemukb2222b",
    "app.bsky.feed.like/has space",
    "app.bsky.feed.like/..",
    "app.bsky.feed.like/a/b",
    "/3kwemukb2222b",
    "app.bsky.feed.like/" + "x" * 513,
)
_ERRORS: Final = ("ConsumerTooSlow", "InternalServerError", "UpstreamFailure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The rate of each fault: a share of the messages of the firehose, or of the requests, from 0 to 1.

    Raises SettingError for any other number.
    """

    drop: float = 0
    """The connection ends without a close frame."""
    stall: float = 0
    """The connection stays open and is silent from then on: no frame, no pong."""
    repeat: float = 0
    """The last 1 to 20 frames are sent again."""
    go_back: float = 0
    """Three frames from up to 1,000 frames ago are sent again."""
    garbage: float = 0
    """A message that is not a frame, or a frame of an unknown type."""
    truncated: float = 0
    """The last frame is sent again, truncated."""
    bit_flipped: float = 0
    """The last frame but one is sent again, with one bit changed."""
    oversized: float = 0
    """A frame longer than the 5,000,000 bytes that are allowed."""
    error_frame: float = 0
    """An error frame, and the end of the connection."""
    malformed_did: float = 0
    """An identity message with a malformed DID."""
    deep_record: float = 0
    """A commit whose record is 10,000 maps deep."""
    too_big: float = 0
    """A commit marked `tooBig` that is complete all the same."""
    bad_signature: float = 0
    """A commit with one bit of its signature changed."""
    high_s: float = 0
    """A commit whose signature is high-S, which the protocol forbids."""
    broken_chain: float = 0
    """A commit with wrong `prevData` and `since`."""
    rev_back: float = 0
    """A commit with a revision one hour older than the last one."""
    skip: float = 0
    """A frame that is never sent."""
    garbage_instead: float = 0
    """Garbage in place of a frame."""
    truncated_instead: float = 0
    """A truncated frame."""
    bit_flipped_instead: float = 0
    """A frame with one bit changed, in its header or in a record."""
    truncated_car: float = 0
    """A commit whose CAR ends in its first block."""
    missing_record: float = 0
    """A commit without the block of one of its records."""
    wrong_cid: float = 0
    """A commit with one of its records under another CID."""
    malformed_path: float = 0
    """A commit with an operation whose path is malformed."""
    directory_404: float = 0
    """The directory answers 404 to one request for a DID."""
    directory_429: float = 0
    """The directory answers 429."""
    directory_500: float = 0
    """The directory answers 500."""
    directory_slow: float = 0
    """The directory answers after five seconds."""
    repo_fails: float = 0
    """`getRepo` answers 500."""
    repo_redirects: float = 0
    """`getRepo` answers with a redirect, as relays do."""

    def __post_init__(self) -> None:
        for field in fields(self):
            rate = getattr(self, field.name)
            if not 0 <= rate <= 1:
                raise SettingError(f"fault.{field.name}", rate, "is not a share from 0 to 1")


class Effect(Enum):
    """What an item of the stream does to a connection that reaches it."""

    SEND = "send"
    """It is sent to every subscriber, and again to those that request it by cursor."""
    ONCE = "once"
    """It is sent to the first connection that reaches it, and to no other."""
    ERROR = "error"
    """As ONCE; then the connection is closed."""
    DROP = "drop"
    """The first connection that reaches it ends."""
    STALL = "stall"
    """The first connection that reaches it receives nothing more."""


class Corrupted(NamedTuple):
    """What a message becomes on the wire."""

    frame: bytes | None  # None: nothing is sent
    level: str  # of checking that drops the events
    lost: list[int]  # indexes of its events


Add = Callable[["Context"], list[tuple[Effect, bytes]]]
Forge = Callable[[Commit, SigningKey, Random], Commit]
Corrupt = Callable[[Message, int, Random], Corrupted]


class Context(NamedTuple):
    """What an added fault is made of."""

    recent: Sequence[tuple[int, bytes]]  # intact frames with their numbers, the newest last
    rng: Random


def deep_record() -> bytes:
    """Return the CBOR of 10,000 nested maps."""
    return b"\xa1\x61a" * _DEPTH + b"\xa0"


def malformed_did(rng: Random) -> str:
    """Return a malformed DID."""
    return rng.choice(_MALFORMED_DIDS)


def garbage(rng: Random) -> bytes:
    """Return a message without meaning: bytes that are not CBOR, or a frame of an unknown type.

    None has a `seq`, so none can move a cursor.
    """
    body = encode_cbor({"did": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "time": "2026-01-01T00:00:00.000Z"})
    return rng.choice(
        (
            b"",
            b"\xff" + rng.randbytes(rng.randrange(2000)),
            encode_cbor({"op": 1, "t": "#commit"}),
            encode_cbor({"op": 1, "t": "#commit"}) + encode_cbor({}),
            encode_cbor({"op": 1, "t": "#commit"}) + body + body,
            encode_cbor({"op": 1, "t": "#unheard"}) + body,
            encode_cbor({"op": 1, "t": "#handle"}) + body,
            encode_cbor({"op": 1, "t": "#tombstone"}) + body,
            encode_cbor({"op": 1}) + body,
            encode_cbor({"op": 7, "t": "#commit"}) + body,
            encode_cbor(1) + encode_cbor("#commit"),
            frames.encode_info("OutdatedCursor", "sent in the middle of the stream"),
        )
    )


def flip(frame: bytes, start: int, end: int, rng: Random) -> bytes:
    """Change one bit of `frame[start:end]`."""
    at = rng.randrange(start, end)
    return frame[:at] + bytes((frame[at] ^ 1 << rng.randrange(8),)) + frame[at + 1 :]


def _repeat(context: Context) -> list[tuple[Effect, bytes]]:
    start = max(0, len(context.recent) - context.rng.randrange(1, 21))
    return _again(context, start, len(context.recent))


def _go_back(context: Context) -> list[tuple[Effect, bytes]]:
    start = context.rng.randrange(len(context.recent))
    return _again(context, start, min(start + 3, len(context.recent)))


def _again(context: Context, start: int, end: int) -> list[tuple[Effect, bytes]]:
    return [(Effect.ONCE, context.recent[i][1]) for i in range(start, end)]


def _garbage(context: Context) -> list[tuple[Effect, bytes]]:
    return [(Effect.ONCE, garbage(context.rng))]


def _truncated(context: Context) -> list[tuple[Effect, bytes]]:
    _, frame = context.recent[-1]
    return [(Effect.ONCE, frame[: context.rng.randrange(1, len(frame))])]


def _bit_flipped(context: Context) -> list[tuple[Effect, bytes]]:
    """Change any bit outside the number: with another number it would be a new frame.

    The last frame but one is used. After a gap, a changed copy of the last frame could also be the missing
    frame with a changed number, and no consumer could tell the difference.
    """
    seq, frame = context.recent[-2]
    number = b"\x63seq" + cbor_head(0, seq)
    at = frame.index(number)
    after = at + len(number)
    if context.rng.randrange(len(frame)) < at:
        return [(Effect.ONCE, flip(frame, 0, at, context.rng))]
    return [(Effect.ONCE, flip(frame, after, len(frame), context.rng))]


def _oversized(_: Context) -> list[tuple[Effect, bytes]]:
    return [(Effect.ONCE, _OVERSIZED)]


def _error_frame(context: Context) -> list[tuple[Effect, bytes]]:
    name = context.rng.choice(_ERRORS)
    return [(Effect.ERROR, frames.encode_error(name, "injected by the simulator"))]


def _drop(_: Context) -> list[tuple[Effect, bytes]]:
    return [(Effect.DROP, b"")]


def _stall(_: Context) -> list[tuple[Effect, bytes]]:
    return [(Effect.STALL, b"")]


# One object for all of them, so that a window full of them does not fill the memory.
_OVERSIZED: Final = frames.header("#commit") + encode_cbor({"blocks": bytes(FRAME_BYTES_MAX + 1)})

ADDED: Final[dict[str, Add]] = {
    "drop": _drop,
    "stall": _stall,
    "repeat": _repeat,
    "go_back": _go_back,
    "garbage": _garbage,
    "truncated": _truncated,
    "bit_flipped": _bit_flipped,
    "oversized": _oversized,
    "error_frame": _error_frame,
}
_NEEDS_RECENT: Final = frozenset(("repeat", "go_back", "truncated", "bit_flipped"))
# Messages that are added. They take a number, so the stream makes them.
ADDED_MESSAGES: Final = ("malformed_did", "deep_record")


def _revised(message: Commit, **changes: object) -> Commit:
    return message._replace(revision=message.revision._replace(**changes))  # type: ignore[arg-type]


def _signed(message: Commit, change: Callable[[bytes], bytes]) -> Commit:
    """Replace the signature in the commit block, and its CID."""
    data = message.revision.commit.data
    at = data.index(SIGNATURE_FIELD) + len(SIGNATURE_FIELD)
    end = at + SIGNATURE_BYTES
    block = data[:at] + change(data[at:end]) + data[end:]
    return _revised(message, commit=Block(cid_of(block), block))


def _too_big(message: Commit, _key: SigningKey, _rng: Random) -> Commit:
    return message._replace(too_big=True)


def _bad_signature(message: Commit, _key: SigningKey, rng: Random) -> Commit:
    return _signed(message, lambda signature: flip(signature, 0, len(signature), rng))


def _high_s(message: Commit, key: SigningKey, _rng: Random) -> Commit:
    return _signed(message, lambda signature: high_s(signature, key.order))


def _broken_chain(message: Commit, _key: SigningKey, rng: Random) -> Commit:
    """Let the commit follow one that does not exist."""
    return _revised(message, prev_data=cid_of(rng.randbytes(8)), since=tid(rng.getrandbits(50), 0))


def _rev_back(message: Commit, key: SigningKey, _rng: Random) -> Commit:
    """Sign the same tree with a revision one hour older."""
    rev = tid(tid_us(message.revision.rev) - 3_600_000_000, 0)
    data = _data_of(message.revision.commit.data)
    return _revised(message, rev=rev, commit=sign_commit(message.did, rev, data, key))


def _data_of(commit: bytes) -> Cid:
    """Return the CID of the tree in a commit block."""
    at = commit.index(b"\x64data" + LINK_HEAD) + 5 + len(LINK_HEAD)
    return Cid(commit[at : at + 36])


FORGED: Final[dict[str, Forge]] = {
    "too_big": _too_big,
    "bad_signature": _bad_signature,
    "high_s": _high_s,
    "broken_chain": _broken_chain,
    "rev_back": _rev_back,
}


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
            flip(frame, start, start + len(block), rng), "cid", _events_with(message.revision, cid)
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
    return Corrupted(frames.encode(message._replace(car=car[:cut]), seq), "frame", lost)


def _missing_record(message: Message, seq: int, rng: Random) -> Corrupted:
    assert isinstance(message, Commit), "applies_to() checks it"
    revision = message.revision
    cid = rng.choice(revision.records).cid
    left = tuple(block for block in revision.records if block.cid != cid)
    return Corrupted(
        frames.encode(_revised(message, records=left), seq), "frame", _events_with(revision, cid)
    )


def _wrong_cid(message: Message, seq: int, rng: Random) -> Corrupted:
    """Change the CID of a record in its operation and in the CAR, so that only its hash reveals it."""
    assert isinstance(message, Commit), "applies_to() checks it"
    revision = message.revision
    cid, wrong = rng.choice(revision.records).cid, cid_of(rng.randbytes(8))
    ops = tuple(op._replace(cid=wrong) if op.cid == cid else op for op in revision.ops)
    blocks = tuple(Block(wrong, block.data) if block.cid == cid else block for block in revision.records)
    frame = frames.encode(_revised(message, ops=ops, records=blocks), seq)
    return Corrupted(frame, "cid", _events_with(revision, cid))


def _malformed_path(message: Message, seq: int, rng: Random) -> Corrupted:
    assert isinstance(message, Commit), "applies_to() checks it"
    ops = list(message.revision.ops)
    at = rng.randrange(len(ops))
    ops[at] = ops[at]._replace(path=rng.choice(_MALFORMED_PATHS))
    return Corrupted(frames.encode(_revised(message, ops=tuple(ops)), seq), "frame", [at])


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


def can_be_added(name: str, recent: Sequence[object]) -> bool:
    """Return whether a fault can be added after these frames."""
    return name in ADDED and (len(recent) > 1 or name not in _NEEDS_RECENT)


def applies_to(name: str, message: Message) -> bool:
    """Return whether a fault that forges or corrupts can be applied to a message."""
    if name in _NEEDS_COMMIT:
        return isinstance(message, Commit)
    if name in _NEEDS_OPS:
        return isinstance(message, Commit) and bool(message.revision.ops)
    if name in _NEEDS_RECORDS:
        return isinstance(message, Commit) and bool(message.revision.records)
    return name in CORRUPTED


_NEEDS_COMMIT: Final = frozenset((*FORGED, "truncated_car"))
_NEEDS_OPS: Final = frozenset(("malformed_path",))
_NEEDS_RECORDS: Final = frozenset(("missing_record", "wrong_cid"))
REQUEST_FAULTS: Final = (
    "directory_404",
    "directory_429",
    "directory_500",
    "directory_slow",
    "repo_fails",
    "repo_redirects",
)
STREAM_FAULTS: Final = (*ADDED, *ADDED_MESSAGES, *FORGED, *CORRUPTED)
assert {field.name for field in fields(Faults)} == {*STREAM_FAULTS, *REQUEST_FAULTS}
