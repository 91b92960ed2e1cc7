"""Faults that come beside the intact frames: a correct consumer loses nothing and sees nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from random import Random
from typing import Final, NamedTuple

from jetstream.atproto.cbor_encoder import cbor_head, encode_cbor
from jetstream.simulator import frames

FRAME_BYTES_MAX: Final = 5_000_000  # the limit of the protocol
_DEPTH: Final = 10_000
_MALFORMED_DIDS: Final = ("did:plc:oracle!malformed", "did:PLC:upper", "did:plc:", "plc:none", "did:web:a b")
_ERRORS: Final = ("ConsumerTooSlow", "InternalServerError", "UpstreamFailure")


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


Add = Callable[["Context"], list[tuple[Effect, bytes]]]


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
