"""Odd numbers of an upstream: what a relay sends on its connections, as pairs of a number and a commit.

The commits are those of one repository, in order, so one that is lost, repeated or out of order shows.
Jumps go up and down, by 1,001 to 10^9: once, twice, for good, as the first frame of a connection, beside a
gap, beside a repeat, beside swapped neighbours. A sequence may also begin again at 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

from tests.signed import DID, TIME, Account

from jetstream.simulator import frames
from jetstream.simulator.repo import Revision

BASE: Final = 3_000_000_000
JUMPS: Final = (1_001, 10_001, 300_000, 1_000_000, 1_000_000_000)
Sent = tuple[int, int]  # the number of a frame, and which commit it is
Connections = list[list[Sent]]


@cache
def revisions(did: str) -> list[Revision]:
    account = Account(did=did)
    return [account.create(str(number)) for number in range(60)]


@cache
def frame(sent: Sent, did: str = DID) -> bytes:
    seq, number = sent
    return frames.encode(frames.Commit(did, TIME, revisions(did)[number]), seq)


def run(start: int, first: int, count: int) -> list[Sent]:
    """Return frames whose numbers follow each other, of commits that do."""
    return [(start + step, first + step) for step in range(count)]


def wanted(connections: Connections) -> list[str]:
    """Return the records that must come: each commit once, in the order in which they come first."""
    return [str(number) for number in dict.fromkeys(number for each in connections for _, number in each)]


BEFORE: Final = run(BASE, 0, 10)
NEXT: Final = BASE + 10
# What comes, given the jump. The commits are numbered as they come.
CASES: Final[dict[str, Callable[[int], Connections]]] = {
    "once": lambda jump: [[*BEFORE, (NEXT + jump, 10), *run(NEXT, 11, 20)]],
    "twice": lambda jump: [[*BEFORE, (NEXT + jump, 10), (NEXT + 2 * jump, 11), *run(NEXT, 12, 20)]],
    "twice, in a row": lambda jump: [[*BEFORE, *run(NEXT + jump, 10, 2), *run(NEXT, 12, 20)]],
    "twice, apart": lambda jump: [
        [*BEFORE, (NEXT + jump, 10), *run(NEXT, 11, 3), (NEXT + jump, 14), *run(NEXT + 3, 15, 20)]
    ],
    "there and back": lambda jump: [[*BEFORE, (NEXT + jump, 10), (NEXT - jump, 11), *run(NEXT, 12, 20)]],
    "for good": lambda jump: [[*BEFORE, *run(NEXT + jump, 10, 20)]],
    "first frame": lambda jump: [BEFORE, [(NEXT + jump, 10), *run(NEXT, 11, 20)]],
    "first two frames": lambda jump: [BEFORE, [*run(NEXT + jump, 10, 2), *run(NEXT, 12, 20)]],
    "first frame, twice": lambda jump: [BEFORE, [(NEXT + jump, 10)], [(NEXT + jump, 10), *run(NEXT, 11, 20)]],
    "first frame, for good": lambda jump: [BEFORE, run(NEXT + jump, 10, 20)],
    "first frame of all": lambda jump: [[(BASE + jump, 0), *run(BASE, 1, 20)]],
    "after a gap": lambda jump: [[*BEFORE, *run(NEXT + 5, 10, 2), (NEXT + jump, 12), *run(NEXT + 7, 13, 20)]],
    "before a gap": lambda jump: [[*BEFORE, (NEXT + jump, 10), *run(NEXT + 5, 11, 20)]],
    "in a gap of the same size": lambda jump: [
        [*BEFORE, (NEXT + abs(jump), 10), (NEXT + 2 * abs(jump), 11), *run(NEXT + 2 * abs(jump) + 1, 12, 20)]
    ],
    "after a repeat": lambda jump: [[*BEFORE, BEFORE[5], (NEXT + jump, 10), *run(NEXT, 11, 20)]],
    "before a repeat": lambda jump: [[*BEFORE, (NEXT + jump, 10), *BEFORE[7:], *run(NEXT, 11, 20)]],
    "of a repeat": lambda jump: [[*BEFORE, (NEXT + jump, 5), *run(NEXT, 10, 20)]],
    "repeated": lambda jump: [[*BEFORE, (NEXT + jump, 10), (NEXT + jump, 10), *run(NEXT, 11, 20)]],
    "repeated on the next connection": lambda jump: [
        [*BEFORE, (NEXT + jump, 10), *run(NEXT, 11, 3)],
        [(NEXT + jump, 10), *run(NEXT + 2, 13, 20)],
    ],
    "beside swapped neighbours": lambda jump: [
        [*BEFORE, (NEXT + jump, 10), (NEXT + 1, 11), (NEXT, 12), *run(NEXT + 2, 13, 20)]
    ],
}
# The same without a jump.
STEADY: Final[dict[str, Connections]] = {
    "in order": [BEFORE + run(NEXT, 10, 20)],
    "swapped neighbours": [[*BEFORE, (NEXT + 1, 10), (NEXT, 11), *run(NEXT + 2, 12, 20)]],
    "swapped neighbours, first": [BEFORE, [(NEXT + 1, 10), (NEXT, 11), *run(NEXT + 2, 12, 20)]],
    "at 1 again": [BEFORE, run(1, 10, 20)],
    "at 1 again, on the same connection": [BEFORE + run(1, 10, 20)],
    "at 1 again, after small numbers": [run(4_991, 0, 10), run(1, 10, 20)],
    "at 1 again, up to the same numbers": [run(1, 0, 10), run(1, 10, 20)],
    "at 1 again, after a jump": [[*BEFORE, (NEXT + 300_000, 10)], run(1, 11, 20)],
}


def case(name: str, jump: int) -> Connections:
    """Return what comes in a case. One without a jump has 0."""
    return STEADY[name] if name in STEADY else CASES[name](jump)


def jumps(name: str) -> list[int]:
    """Return the jumps of a case, up and down."""
    return [0] if name in STEADY else [*JUMPS, *(-jump for jump in JUMPS)]
