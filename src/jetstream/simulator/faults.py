"""The faults of an upstream: how often each occurs, and to which messages it applies.

There are three kinds, each in a module of its own: `added`, `forged`, `corrupted`. The ledger has a line for
each fault, with the events that are lost, and the level of checking that drops them:

- `frame`: every consumer loses them;
- `cid`: a consumer that checks the hashes of records drops them; others accept wrong data;
- `full`: only a consumer that verifies signatures, trees and the chain of revisions drops them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

from jetstream.errors import SettingError
from jetstream.simulator.added import ADDED, FRAME_BYTES_MAX, Effect, deep_record, malformed_did
from jetstream.simulator.corrupted import CORRUPTED
from jetstream.simulator.forged import FORGED, nodes_to_undo
from jetstream.simulator.frames import Commit, Message

__all__ = [
    "ADDED",
    "CORRUPTED",
    "FORGED",
    "FRAME_BYTES_MAX",
    "Effect",
    "Faults",
    "deep_record",
    "malformed_did",
]


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
    future_rev: float = 0
    """A commit with a revision a hundred years ahead."""
    no_prev_data: float = 0
    """A commit without `prevData`, as servers sent them until 2025."""
    missing_node: float = 0
    """A commit without a tree node that is needed to undo its operations."""
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


def can_be_added(name: str, recent: Sequence[object]) -> bool:
    """Return whether a fault can be added after these frames."""
    return name in ADDED and (len(recent) > 1 or name not in _NEEDS_RECENT)


def applies_to(name: str, message: Message, *, follows: bool = True) -> bool:
    """Return whether a fault that forges or corrupts can be applied to a message.

    `follows` says whether a consumer of the stream knows the state of the account before the message.
    """
    if not isinstance(message, Commit):
        return name in _ANY_MESSAGE
    if name in _NEEDS_STATE and not follows:
        return False
    if name == "missing_node":
        return bool(nodes_to_undo(message.revision))
    if name == "malformed_path":
        return bool(message.revision.ops)
    if name in _NEEDS_RECORDS:
        return bool(message.revision.records)
    return name in FORGED or name in CORRUPTED


_NEEDS_RECENT: Final = frozenset(("repeat", "go_back", "truncated", "bit_flipped"))
_NEEDS_STATE: Final = frozenset(("rev_back", "no_prev_data", "missing_node"))
_NEEDS_RECORDS: Final = frozenset(("missing_record", "wrong_cid"))
_ANY_MESSAGE: Final = frozenset(("skip", "garbage_instead", "truncated_instead", "bit_flipped_instead"))
# Messages that are added. They take a number, so the stream makes them.
ADDED_MESSAGES: Final = ("malformed_did", "deep_record")
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
