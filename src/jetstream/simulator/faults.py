"""Everything that can go wrong upstream, on demand: how often, and what exactly it does to a frame.

A fault is one of three kinds. *Added* things come beside the good frames: a correct consumer loses nothing
and sees nothing twice. *Twisted* commits are wrong in a way that only a consumer which verifies everything
can tell. *Spoilt* ones replace a good frame, or a part of it, and their events are lost. The ledger has a
line for each, with the events concerned and the level of checking that drops them:

- `frame`: anybody who reads frames loses them;
- `cid`: who checks that a record hashes to its CID drops them, others are told something wrong;
- `full`: only who checks signatures, trees and the chain of revisions drops them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from random import Random
from typing import Final, NamedTuple

from jetstream.atproto import keys
from jetstream.atproto.car_writer import Block
from jetstream.atproto.cbor_encoder import LINK_HEAD, cbor_head, encode_cbor
from jetstream.atproto.cid import Cid, cid_of
from jetstream.atproto.keys import SigningKey
from jetstream.atproto.repo import sign_commit
from jetstream.atproto.tid import tid, tid_us
from jetstream.errors import SettingError
from jetstream.simulator import frames
from jetstream.simulator.frames import Commit, Message
from jetstream.simulator.repo import Revision

FRAME_BYTES_MAX: Final = 5_000_000  # what the protocol allows
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
    """How often each fault happens: a share of the firehose's events, or of the requests, from 0 to 1.

    Raises SettingError for any other number.
    """

    drop: float = 0
    """The connection ends without a word."""
    stall: float = 0
    """The connection stays and is silent from then on: no frame comes, no ping is answered."""
    repeat: float = 0
    """The last 1 to 20 frames come again."""
    go_back: float = 0
    """Three frames from up to 1,000 frames ago come again."""
    garbage: float = 0
    """A message that is no frame, or a frame that says nothing known."""
    truncated: float = 0
    """The last frame comes again, cut off."""
    bit_flipped: float = 0
    """The last frame but one comes again, with one bit changed."""
    oversized: float = 0
    """A frame above the 5,000,000 bytes that are allowed."""
    error_frame: float = 0
    """An error frame, and the end of the connection."""
    malformed_did: float = 0
    """An identity message about a DID that is none."""
    deep_record: float = 0
    """A commit whose record is 10,000 maps deep."""
    too_big: float = 0
    """A commit marked `tooBig`, with everything in it all the same."""
    bad_signature: float = 0
    """A commit with one bit of its signature changed."""
    high_s: float = 0
    """A commit whose signature is the forbidden one of the two possible."""
    broken_chain: float = 0
    """A commit with wrong `prevData` and `since`."""
    rev_back: float = 0
    """A commit with a revision an hour older than the last one."""
    skip: float = 0
    """A frame that never comes."""
    garbage_instead: float = 0
    """Garbage in place of a frame."""
    truncated_instead: float = 0
    """A frame cut off."""
    bit_flipped_instead: float = 0
    """A frame with one bit changed, in its header or in a record."""
    truncated_car: float = 0
    """A commit whose CAR ends in its first block."""
    missing_record: float = 0
    """A commit without the block of one of its records."""
    wrong_cid: float = 0
    """A commit with one of its records under the CID of something else."""
    malformed_path: float = 0
    """A commit with an operation whose path is no collection and record key."""
    directory_404: float = 0
    """The directory knows nothing of a DID, for one request."""
    directory_429: float = 0
    """The directory asks for patience."""
    directory_500: float = 0
    """The directory fails."""
    directory_slow: float = 0
    """The directory takes five seconds."""
    repo_fails: float = 0
    """`getRepo` fails."""
    repo_redirects: float = 0
    """`getRepo` sends the client elsewhere, as relays do."""

    def __post_init__(self) -> None:
        for field in fields(self):
            rate = getattr(self, field.name)
            if not 0 <= rate <= 1:
                raise SettingError(f"fault.{field.name}", rate, "is not a share from 0 to 1")


class Effect(Enum):
    """What a thing in the stream does to a connection that comes to it."""

    SEND = "send"
    """It is sent to everybody, and again to who asks for it by cursor."""
    ONCE = "once"
    """It is sent to the first connection that comes by, and to no other."""
    ERROR = "error"
    """As ONCE, and then the connection is closed."""
    DROP = "drop"
    """The first connection that comes by ends here."""
    STALL = "stall"
    """The first connection that comes by hears nothing more."""


class Spoilt(NamedTuple):
    """What a message becomes on the wire, and which of its events are lost."""

    frame: bytes | None
    level: str
    lost: list[int]


Add = Callable[["Surroundings"], list[tuple[Effect, bytes]]]
Twist = Callable[[Commit, SigningKey, Random], Commit]
Spoil = Callable[[Message, int, Random], Spoilt]


class Surroundings(NamedTuple):
    """What an added fault may draw on: two or more good frames with their numbers, the newest last."""

    earlier: Sequence[tuple[int, bytes]]
    rng: Random


def deep_record() -> bytes:
    """Write the CBOR of 10,000 maps, each in the one before."""
    return b"\xa1\x61a" * _DEPTH + b"\xa0"


def malformed_did(rng: Random) -> str:
    """Choose something that looks like a DID and is none."""
    return rng.choice(_MALFORMED_DIDS)


def garbage(rng: Random) -> bytes:
    """Make a message that says nothing: bytes that are no CBOR, or a frame of a kind that nobody knows.

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
            frames.encode_info("OutdatedCursor", "said in the middle of the stream"),
        )
    )


def flip(frame: bytes, start: int, end: int, rng: Random) -> bytes:
    """Change one bit of `frame[start:end]`."""
    at = rng.randrange(start, end)
    return frame[:at] + bytes((frame[at] ^ 1 << rng.randrange(8),)) + frame[at + 1 :]


def _repeat(around: Surroundings) -> list[tuple[Effect, bytes]]:
    start = max(0, len(around.earlier) - around.rng.randrange(1, 21))
    return _again(around, start, len(around.earlier))


def _go_back(around: Surroundings) -> list[tuple[Effect, bytes]]:
    start = around.rng.randrange(len(around.earlier))
    return _again(around, start, min(start + 3, len(around.earlier)))


def _again(around: Surroundings, start: int, end: int) -> list[tuple[Effect, bytes]]:
    return [(Effect.ONCE, around.earlier[i][1]) for i in range(start, end)]


def _garbage(around: Surroundings) -> list[tuple[Effect, bytes]]:
    return [(Effect.ONCE, garbage(around.rng))]


def _truncated(around: Surroundings) -> list[tuple[Effect, bytes]]:
    _, frame = around.earlier[-1]
    return [(Effect.ONCE, frame[: around.rng.randrange(1, len(frame))])]


def _bit_flipped(around: Surroundings) -> list[tuple[Effect, bytes]]:
    """Change any bit but those of the number: with another number it would be a new frame.

    The last frame but one is taken. Right after a gap, a changed copy of the very last one could as well be
    the missing frame with a changed number, and no consumer could tell.
    """
    seq, frame = around.earlier[-2]
    number = b"\x63seq" + cbor_head(0, seq)
    at = frame.index(number)
    after = at + len(number)
    if around.rng.randrange(len(frame)) < at:
        return [(Effect.ONCE, flip(frame, 0, at, around.rng))]
    return [(Effect.ONCE, flip(frame, after, len(frame), around.rng))]


def _oversized(_: Surroundings) -> list[tuple[Effect, bytes]]:
    return [(Effect.ONCE, _OVERSIZED)]


def _error_frame(around: Surroundings) -> list[tuple[Effect, bytes]]:
    name = around.rng.choice(_ERRORS)
    return [(Effect.ERROR, frames.encode_error(name, "injected by the simulator"))]


def _drop(_: Surroundings) -> list[tuple[Effect, bytes]]:
    return [(Effect.DROP, b"")]


def _stall(_: Surroundings) -> list[tuple[Effect, bytes]]:
    return [(Effect.STALL, b"")]


# One object for all: a window full of them must not fill the memory.
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
_OF_EARLIER: Final = frozenset(("repeat", "go_back", "truncated", "bit_flipped"))
# Whole messages that are added; the stream makes them, as they take a number.
MESSAGES: Final = ("malformed_did", "deep_record")


def _revised(message: Commit, **changes: object) -> Commit:
    return message._replace(revision=message.revision._replace(**changes))  # type: ignore[arg-type]


def _signed(message: Commit, change: Callable[[bytes], bytes]) -> Commit:
    """Put another signature into the commit block, and name the block anew."""
    data = message.revision.commit.data
    at = data.index(b"\x63sig\x58\x40") + 6
    end = at + keys.SIGNATURE_BYTES
    block = data[:at] + change(data[at:end]) + data[end:]
    return _revised(message, commit=Block(cid_of(block), block))


def _too_big(message: Commit, _key: SigningKey, _rng: Random) -> Commit:
    return message._replace(too_big=True)


def _bad_signature(message: Commit, _key: SigningKey, rng: Random) -> Commit:
    return _signed(message, lambda signature: flip(signature, 0, len(signature), rng))


def _high_s(message: Commit, key: SigningKey, _rng: Random) -> Commit:
    return _signed(message, lambda signature: keys.high_s(signature, key.order))


def _broken_chain(message: Commit, _key: SigningKey, rng: Random) -> Commit:
    """Let the commit come after one that never was."""
    return _revised(message, prev_data=cid_of(rng.randbytes(8)), since=tid(rng.getrandbits(50), 0))


def _rev_back(message: Commit, key: SigningKey, _rng: Random) -> Commit:
    """Sign the same tree under a revision of an hour before."""
    rev = tid(tid_us(message.revision.rev) - 3_600_000_000, 0)
    data = _data_of(message.revision.commit.data)
    return _revised(message, rev=rev, commit=sign_commit(message.did, rev, data, key))


def _data_of(commit: bytes) -> Cid:
    """Cut the tree's CID out of a commit block."""
    at = commit.index(b"\x64data" + LINK_HEAD) + 5 + len(LINK_HEAD)
    return Cid(commit[at : at + 36])


TWISTED: Final[dict[str, Twist]] = {
    "too_big": _too_big,
    "bad_signature": _bad_signature,
    "high_s": _high_s,
    "broken_chain": _broken_chain,
    "rev_back": _rev_back,
}


def _everything(message: Message) -> list[int]:
    return list(range(len(message.revision.ops))) if isinstance(message, Commit) else [0]


def _skip(message: Message, _seq: int, _rng: Random) -> Spoilt:
    return Spoilt(None, "frame", _everything(message))


def _garbage_instead(message: Message, _seq: int, rng: Random) -> Spoilt:
    return Spoilt(garbage(rng), "frame", _everything(message))


def _truncated_instead(message: Message, seq: int, rng: Random) -> Spoilt:
    frame = frames.encode(message, seq)
    return Spoilt(frame[: rng.randrange(1, len(frame))], "frame", _everything(message))


def _bit_flipped_instead(message: Message, seq: int, rng: Random) -> Spoilt:
    frame = frames.encode(message, seq)
    if isinstance(message, Commit) and message.revision.records and rng.random() < 0.7:
        cid, block = rng.choice(message.revision.records)
        start = frame.rindex(cid + block) + len(cid)
        return Spoilt(flip(frame, start, start + len(block), rng), "cid", _naming(message.revision, cid))
    start = frame.index(b"#")
    return Spoilt(flip(frame, start, start + 5, rng), "frame", _everything(message))


def _truncated_car(message: Message, seq: int, rng: Random) -> Spoilt:
    """Cut the CAR within its first block, which is a tree node: no record is left of it."""
    assert isinstance(message, Commit), "suits() said so"
    car = frames.commit_car(message.revision)
    start = car.index(message.revision.nodes[0][0])
    cut = rng.randrange(start, start + 36)
    lost = [i for i, op in enumerate(message.revision.ops) if op.cid is not None]
    return Spoilt(frames.encode(message._replace(car=car[:cut]), seq), "frame", lost)


def _missing_record(message: Message, seq: int, rng: Random) -> Spoilt:
    assert isinstance(message, Commit), "suits() said so"
    revision = message.revision
    cid = rng.choice(revision.records).cid
    left = tuple(block for block in revision.records if block.cid != cid)
    return Spoilt(frames.encode(_revised(message, records=left), seq), "frame", _naming(revision, cid))


def _wrong_cid(message: Message, seq: int, rng: Random) -> Spoilt:
    """Call a record something else, in its operation and in the CAR alike: only hashing it can tell."""
    assert isinstance(message, Commit), "suits() said so"
    revision = message.revision
    cid, wrong = rng.choice(revision.records).cid, cid_of(rng.randbytes(8))
    ops = tuple(op._replace(cid=wrong) if op.cid == cid else op for op in revision.ops)
    blocks = tuple(Block(wrong, block.data) if block.cid == cid else block for block in revision.records)
    frame = frames.encode(_revised(message, ops=ops, records=blocks), seq)
    return Spoilt(frame, "cid", _naming(revision, cid))


def _malformed_path(message: Message, seq: int, rng: Random) -> Spoilt:
    assert isinstance(message, Commit), "suits() said so"
    ops = list(message.revision.ops)
    at = rng.randrange(len(ops))
    ops[at] = ops[at]._replace(path=rng.choice(_MALFORMED_PATHS))
    return Spoilt(frames.encode(_revised(message, ops=tuple(ops)), seq), "frame", [at])


def _naming(revision: Revision, cid: Cid) -> list[int]:
    return [i for i, op in enumerate(revision.ops) if op.cid == cid]


SPOILT: Final[dict[str, Spoil]] = {
    "skip": _skip,
    "garbage_instead": _garbage_instead,
    "truncated_instead": _truncated_instead,
    "bit_flipped_instead": _bit_flipped_instead,
    "truncated_car": _truncated_car,
    "missing_record": _missing_record,
    "wrong_cid": _wrong_cid,
    "malformed_path": _malformed_path,
}


def can_be_added(name: str, earlier: Sequence[object]) -> bool:
    """Tell whether there is enough before the place where a fault is to be added."""
    return name in ADDED and (len(earlier) > 1 or name not in _OF_EARLIER)


def suits(name: str, message: Message) -> bool:
    """Tell whether a twist or a spoiling can be done to a message."""
    if name in _NEEDS_COMMIT:
        return isinstance(message, Commit)
    if name in _NEEDS_OPS:
        return isinstance(message, Commit) and bool(message.revision.ops)
    if name in _NEEDS_RECORDS:
        return isinstance(message, Commit) and bool(message.revision.records)
    return name in SPOILT


_NEEDS_COMMIT: Final = frozenset((*TWISTED, "truncated_car"))
_NEEDS_OPS: Final = frozenset(("malformed_path",))
_NEEDS_RECORDS: Final = frozenset(("missing_record", "wrong_cid"))
SERVED: Final = (
    "directory_404",
    "directory_429",
    "directory_500",
    "directory_slow",
    "repo_fails",
    "repo_redirects",
)
STREAMED: Final = (*ADDED, *MESSAGES, *TWISTED, *SPOILT)
assert {field.name for field in fields(Faults)} == {*STREAMED, *SERVED}
