"""Odd numbers of an upstream, in every mode: each commit is passed on once, in order, whatever its number.

A case is what a relay sends on its connections, as pairs of a number and a commit. The commits are those of
one repository, in order, so one that is lost, repeated or out of order shows. Jumps go up and down, by 1,001
to 10^9: once, twice, for good, as the first frame of a connection, beside a gap, beside a repeat.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial

import pytest
from tests.signed import DID, TIME, Account
from tests.unit.admission.fakes import OWN, FakeLog, Server

from jetstream.eventlog import Changes, SourceCursor
from jetstream.limits import UpstreamLimits
from jetstream.simulator import frames
from jetstream.simulator.repo import Revision
from jetstream.upstream.pipeline import Pipeline
from jetstream.upstream.seq_tracker import SeqTracker

BASE = 3_000_000_000
JUMPS = (1_001, 10_001, 1_000_000_000)
Sent = tuple[int, int]  # the number of a frame, and which commit it is
Connections = list[list[Sent]]


@cache
def revisions() -> list[Revision]:
    account = Account()
    return [account.create(str(number)) for number in range(60)]


@cache
def frame(sent: Sent) -> bytes:
    seq, number = sent
    return frames.encode(frames.Commit(DID, TIME, revisions()[number]), seq)


def run(start: int, first: int, count: int) -> list[Sent]:
    """Return frames whose numbers follow each other, of commits that do."""
    return [(start + step, first + step) for step in range(count)]


BEFORE = run(BASE, 0, 10)
NEXT = BASE + 10
# What comes around a frame with an odd number, given the jump. The commits are numbered as they come.
CASES: dict[str, Callable[[int], Connections]] = {
    "none": lambda _: [BEFORE + run(NEXT, 10, 20)],
    "once": lambda jump: [[*BEFORE, (NEXT + jump, 10), *run(NEXT, 11, 20)]],
    "twice": lambda jump: [[*BEFORE, (NEXT + jump, 10), (NEXT + 2 * jump, 11), *run(NEXT, 12, 20)]],
    "twice, in a row": lambda jump: [[*BEFORE, *run(NEXT + jump, 10, 2), *run(NEXT, 12, 20)]],
    "twice, apart": lambda jump: [
        [*BEFORE, (NEXT + jump, 10), *run(NEXT, 11, 3), (NEXT + jump, 14), *run(NEXT + 3, 15, 20)]
    ],
    "for good": lambda jump: [[*BEFORE, *run(NEXT + jump, 10, 20)]],
    "first frame": lambda jump: [BEFORE, [(NEXT + jump, 10), *run(NEXT, 11, 20)]],
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
    "swapped neighbours": lambda _: [[*BEFORE, (NEXT + 1, 10), (NEXT, 11), *run(NEXT + 2, 12, 20)]],
}


class Source:
    """What reads one relay, and resumes after the cursor that the log has."""

    def __init__(self, server: Server, name: str, offset: int = 0) -> None:
        self.server = server
        self.name = name
        self.offset = offset  # of its numbers from those of the case
        self.resume()

    def resume(self) -> None:
        """Begin again, as a process does that was started on the same log."""
        stored = self.server.log.cursors.get(self.name)
        tracker = SeqTracker(None) if stored is None else SeqTracker(*stored, resumed=True)
        self.pipeline = Pipeline(tracker, lambda: 0.0, knows=self.server.admission.knows)

    async def read(self, connection: Sequence[Sent]) -> None:
        """Read the frames of one connection, in batches of a few."""
        self.pipeline.tracker.connected()
        left = [frame((seq + self.offset, number)) for seq, number in connection]
        while left:
            batch = self.pipeline.read(left[:7])
            if batch.lookups:
                self.pipeline.resolve(batch, await self.server.admission.holds(batch.lookups))
            del left[: batch.frames]
            await self.server.stores[self.name](batch, 0.0)
        await self.server.settle()


class Untracked(Source):
    """The same with one upstream that is not verified: events are stored as they come."""

    def resume(self) -> None:
        stored = self.server.log.cursors.get(self.name)
        tracker = SeqTracker(None) if stored is None else SeqTracker(*stored, resumed=True)
        self.pipeline = Pipeline(tracker, lambda: 0.0)

    async def read(self, connection: Sequence[Sent]) -> None:
        log = self.server.log
        self.pipeline.tracker.connected()
        left = list(map(frame, connection))
        while left:
            batch = self.pipeline.read(left[:7])
            if batch.lookups:
                self.pipeline.resolve(batch, await log.holds(batch.lookups))
            del left[: batch.frames]
            if batch.seq is not None:
                cursor = SourceCursor(batch.seq, batch.provisional, batch.fell_from)
                await log.append(batch.events, partial(_changes, cursor), None)


def _changes(cursor: SourceCursor, _first_us: int) -> Changes:
    return Changes({"a": cursor})


@asynccontextmanager
async def reading(mode: str, log: FakeLog) -> AsyncIterator[list[Source]]:
    """Yield the sources of a server in a mode. With two, the numbers of the second are others."""
    if mode == "cid":
        yield [Untracked(Server("cid", log=log), "a")]
        return
    server = Server(mode.split(maxsplit=1)[0], log=log, upstreams=("a", "b") if "two" in mode else ("a",))
    server.keys.known[DID] = OWN
    async with server.running():
        sources = [Source(server, "a")]
        yield [*sources, Source(server, "b", 5_000_000_000)] if "two" in mode else sources


MODES = ("cid", "cid two upstreams", "signature", "full", "full two upstreams")


def jumps(mode: str, case: str) -> list[int]:
    ups: tuple[int, ...] = (0,) if case in {"none", "swapped neighbours"} else JUMPS
    if mode == "cid" and case == "of a repeat":
        # Without states, a repeat whose number may well be the next one passes for an event.
        ups = tuple(jump for jump in ups if jump > UpstreamLimits().near_gap)
    return [*ups, *(-jump for jump in ups if jump)]


def wanted(connections: Connections) -> list[str]:
    """Return the records that must come: each commit once, in the order in which they come first."""
    return [str(number) for number in dict.fromkeys(number for each in connections for _, number in each)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", MODES)
async def test_each_commit_is_passed_on_once(mode: str, case: str) -> None:
    for jump in jumps(mode, case):
        connections, log = CASES[case](jump), FakeLog()
        async with reading(mode, log) as sources:
            for connection, source in itertools.product(connections, sources):
                await source.read(connection)
            assert log.rkeys == wanted(connections), (jump, "sent once")
            last = connections[-1][-1][0]
            assert all(each.pipeline.tracker.cursor == last + each.offset for each in sources), (
                jump,
                "cursor",
            )
            for source in sources:
                await source.read(connections[-1][-8:])
            assert log.rkeys == wanted(connections), (jump, "an overlap")
            count = len(wanted(connections))
            more = run(last + 1, count, 5)
            for source in sources:
                await source.read(more)
            assert log.rkeys == wanted([*connections, more]), (jump, "what follows")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", MODES)
async def test_a_restart_in_between_changes_nothing(mode: str, case: str) -> None:
    """The relay sends again what it has above the cursor."""
    for jump, cut in itertools.product(jumps(mode, case)[::4], (9, 12)):
        sent, log = list(itertools.chain(*CASES[case](jump))), FakeLog()
        async with reading(mode, log) as sources:
            for source in sources:
                await source.read(sent[:cut])
        async with reading(mode, log) as sources:
            for source in sources:
                cursor = source.pipeline.tracker.cursor
                assert cursor is not None
                rest = [each for each in sent[:cut] if each[0] + source.offset > cursor] + sent[cut:]
                await source.read(rest)
        assert log.rkeys == wanted([sent]), (jump, cut)


def test_a_batch_ends_when_its_messages_may_become_too_many_events() -> None:
    account = Account()
    sent = [
        frames.encode(frames.Commit(DID, TIME, account.create(*(f"{number}{op}" for op in range(3)))), number)
        for number in range(1, 6)
    ]
    limits = UpstreamLimits(batch_ops_max=4)
    pipeline = Pipeline(SeqTracker(0), lambda: 0.0, limits=limits, knows=lambda _: None)
    batch = pipeline.read(sent)
    assert (batch.frames, batch.seq, batch.ops) == (2, 2, 6)
    assert pipeline.read(sent[2:]).seq == 4
