"""The first and the last step: what a message is, given the state of its repository.

The state is the rev and the tree root of the newest message that was passed on. A message moves it only if it
is passed on itself, so a refused one cannot. `screen` recognises repeats by the rev alone, before any work.
`judge` compares the message with the state:

    state      message                              verdict        the state after it, if it is passed on
    ─────────────────────────────────────────────────────────────────────────────────────────────────────
    rev above  any                                  replay         the same
    rev equal  the commit of a #sync                as below       the message's, if it is passed on
    rev equal  the same root, or no key at hand     replay         the same
    rev equal  another root                         refused        the same (equivocation)
    any        incomplete; prevData is not          refused        the same (proof)
               the root that we hold
    none       no key at hand                       unverified     the message's
    none       any                                  ok, legacy     the message's
    rev below  no key at hand                       unverified     the message's
    rev below  since and prevData, as far as the    ok, legacy,    the message's
               message has them, are those we hold  incomplete
    rev below  one of them is not, or neither is    gap            the message's
               there
    rev below  #sync with the same root             ok             the message's
    rev below  #sync with another root              gap            the message's

A #sync may come before the commit of its rev, which another source brings, or a source that is late. So the
state says whether it is that of a #sync. Then the commit of the same rev and root is no repeat.

A gap is passed on and adopted: the message is authentic, and holding its repository back until somebody
fetches it as a whole lost more good commits than the fault did.

Source: the sync page of the AT Protocol specification, "Commit validation".
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from jetstream.atproto.cid import CID_BYTES
from jetstream.atproto.tid import CLOCK_IDS, tid, tid_number, tid_of
from jetstream.verify.commit import Before, Evidence
from jetstream.verify.verdict import (
    GAP,
    INCOMPLETE,
    LEGACY,
    OK,
    REPLAY,
    UNVERIFIED,
    Verdict,
    refused,
)

_DIGEST_BYTES: Final = 32
# Bytes of a digest that a state keeps: enough to tell two trees of one owner apart.
ROOT_BYTES: Final = 16
_STATE_BYTES: Final = 8 + ROOT_BYTES
# All bits of a TID: the highest of 64 is always 0.
_TID_MASK: Final = (1 << 63) - 1
_INCOMPLETE: Final = "tree nodes are missing, and prevData is not the root we hold"
_AHEAD_US: Final = 300_000_000  # how far a rev may be ahead of the clock: five minutes


class State(NamedTuple):
    """The newest rev of a repository, and the first `ROOT_BYTES` of its tree's digest."""

    rev: str
    root: bytes
    by_sync: bool = False  # whether a #sync has said so, and the commit of that rev has not come

    def packed(self) -> bytes:
        """Return the state in 24 bytes. The highest bit of a TID is 0; here it is `by_sync`."""
        return (tid_number(self.rev) | self.by_sync << 63).to_bytes(8, "big") + self.root

    @classmethod
    def unpacked(cls, data: bytes) -> State:
        """Return the state of 24 bytes: the inverse of `packed`."""
        assert len(data) == _STATE_BYTES, "only `packed` makes them"
        number = int.from_bytes(data[:8], "big")
        return cls(tid_of(number & _TID_MASK), data[8:], bool(number >> 63))


class Judgement(NamedTuple):
    """What becomes of a message, and of its repository."""

    verdict: Verdict
    # The state if the message is passed on, and the present one if it is not.
    state: State | None
    # The rev after which messages are missing; empty if none are. Also set beside `unverified`.
    missing_after: str = ""


def latest_rev(now_us: int) -> str:
    """Return the highest rev that is acceptable at a time, in unix microseconds."""
    return tid(now_us + _AHEAD_US, CLOCK_IDS - 1)


def screen(state: State | None, rev: str, blocks: Any, latest: str, *, is_sync: bool) -> Verdict | None:
    """Return what the rev of a message says by itself, None if the message must be examined.

    Of one rev, only a message with another tree is examined, and the commit of a #sync. `blocks` is its
    CAR, which has the digest of its tree in the commit block. `latest` is that of `latest_rev`. It costs
    a comparison of texts and, of one rev, a search in the CAR. Nothing is checked yet: what it calls a
    repeat may be forged, and is dropped all the same.
    """
    if state is not None and rev <= state.rev:
        if rev == state.rev and state.by_sync and not is_sync:
            return None
        known = rev < state.rev or (type(blocks) is bytes and state.root in blocks)
        return REPLAY if known else None
    return None if rev <= latest else refused("future_rev", f"the rev {rev} is after {latest}")


def judge(state: State | None, evidence: Evidence, *, signed: bool) -> Judgement:
    """Judge a message that was screened and examined. `signed` is False if no key was at hand.

    A message whose signature is wrong is refused by the caller. The state may have moved since the message
    was screened.
    """
    before = None if state is not None and _is_of_sync(state, evidence) else state
    if before is not None and evidence.rev <= before.rev:
        return Judgement(_judge_known(before, evidence, signed=signed), state)
    if evidence.before is Before.INCOMPLETE and (before is None or not _has_root(before, evidence.prev_root)):
        return Judgement(refused("proof", _INCOMPLETE), state)
    missing_after = "" if before is None or _follows(before, evidence) else before.rev
    passed = GAP if missing_after else _FOLLOWING[evidence.before]
    verdict = passed if signed else UNVERIFIED
    by_sync = evidence.before is Before.SYNC
    return Judgement(verdict, State(evidence.rev, root_of(evidence.root), by_sync), missing_after)


def root_of(cid: bytes) -> bytes:
    """Return what a state has of the CID of a tree's root."""
    return cid[CID_BYTES - _DIGEST_BYTES :][:ROOT_BYTES]


# The verdict of a message that follows the state, by what is known of the tree before it.
_FOLLOWING: Final = {
    Before.PROVEN: OK,
    Before.FOUND: OK,
    Before.CLAIMED: OK,
    Before.SYNC: OK,
    Before.LEGACY: LEGACY,
    Before.INCOMPLETE: INCOMPLETE,
}


def _is_of_sync(state: State, evidence: Evidence) -> bool:
    """Return whether a message is the commit of the #sync that a state is of."""
    is_commit = evidence.before is not Before.SYNC
    return state.by_sync and is_commit and evidence.rev == state.rev and _has_root(state, evidence.root)


def _judge_known(state: State, evidence: Evidence, *, signed: bool) -> Verdict:
    """Judge a message whose rev is not above that of the state: a repeat, or another tree of one rev.

    Without a key, a message of another tree is a repeat: it may be forged, and must not count against its
    owner.
    """
    if evidence.rev < state.rev or not signed or _has_root(state, evidence.root):
        return REPLAY
    return refused("equivocation", f"{evidence.did} signed another tree at {evidence.rev}")


def _follows(state: State, evidence: Evidence) -> bool:
    """Return whether a message agrees with the state before it, as far as it names that."""
    if evidence.before is Before.SYNC:
        return _has_root(state, evidence.root)
    since, prev_root = evidence.since, evidence.prev_root
    if prev_root is None:
        return since == state.rev
    return _has_root(state, prev_root) and (not since or since == state.rev)


def _has_root(state: State, cid: bytes | None) -> bool:
    """Return whether the CID of a tree's root is that of the state; False for None."""
    return cid is not None and root_of(cid) == state.root
