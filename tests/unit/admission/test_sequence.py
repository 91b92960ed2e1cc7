"""Odd numbers of an upstream, in every mode: each commit is passed on once, in order, whatever its number."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial

import pytest
from tests.sequences import CASES, STEADY, Sent, case, frame, jumps, revisions, run, wanted
from tests.signed import DID, TIME, Account
from tests.unit.admission.fakes import OWN, FakeLog, FarLog, Server, measured

from jetstream.admission.examiners.examination import Finding, Task, examine
from jetstream.atproto.encoded_key import EncodedKey
from jetstream.eventlog import Changes, SourceCursor
from jetstream.limits import UpstreamLimits
from jetstream.simulator import frames
from jetstream.simulator.signing import K256Key
from jetstream.upstream.pipeline import Pipeline
from jetstream.upstream.seq_tracker import SeqTracker
from jetstream.verify_modes import Mode


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
        self.pipeline = Pipeline(tracker, lambda: 0.0, check_cid=self.server.mode != "off")

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


# To make metrics takes longer than to run a case, and nothing here looks at them.
MEASURED = cache(measured)
FOUND: dict[tuple[bytes, tuple[EncodedKey, ...], Mode], Finding] = {}


def examined(task: Task, mode: Mode) -> Finding:
    """Examine each commit once in each mode: its finding is the same, whatever its number is."""
    commit = bytes(task.fields["commit"]), task.keys, mode
    if commit not in FOUND:
        FOUND[commit] = examine(task, mode)
    return FOUND[commit]


UNTRACKED = {"off", "cid"}
MODES = [verify + more for verify in ("off", "cid", "signature", "full") for more in ("", ", two upstreams")]
# The same with states in a database.
FAR = ["full, far", "full, two upstreams, far"]


@asynccontextmanager
async def reading(mode: str, log: FakeLog) -> AsyncIterator[list[Source]]:
    """Yield the sources of a server in a mode. With two, the numbers of the second are others."""
    if mode in UNTRACKED:
        yield [Untracked(Server(mode, log=log), "a")]
        return
    two = "two upstreams" in mode
    upstreams = ("a", "b") if two else ("a",)
    server = Server(
        mode.partition(",")[0], log=log, upstreams=upstreams, measured=MEASURED, examine_one=examined
    )
    server.keys.known[DID] = OWN
    if isinstance(log, FarLog):
        log.at_hand = set()  # as in a new process
    async with server.running():
        sources = [Source(server, "a")]
        yield [*sources, Source(server, "b", 5_000_000_000)] if two else sources


def jumps_in(mode: str, name: str) -> list[int]:
    """Return the jumps of a case, in a mode in which it must come out."""
    if mode in UNTRACKED and name == "of a repeat":
        # Without states, a repeat whose number may well be the next one passes for an event.
        return [jump for jump in jumps(name) if abs(jump) > UpstreamLimits().near_gap]
    return jumps(name)


def few_jumps_in(mode: str, name: str) -> list[int]:
    """Return all jumps of a case, or the least and the greatest, up and down.

    The least and the greatest do where the state of the repository decides, whatever the number is. The mode
    `full` is tried with all, for all such modes.
    """
    found = jumps_in(mode, name)
    return found if mode in UNTRACKED or mode == "full" else [*found[::5], *found[4::5]]


@pytest.mark.parametrize("name", [*STEADY, *CASES])
@pytest.mark.parametrize("mode", MODES)
async def test_each_commit_is_passed_on_once(mode: str, name: str) -> None:
    for jump in few_jumps_in(mode, name):
        connections, log = case(name, jump), FakeLog()
        async with reading(mode, log) as sources:
            for connection, source in itertools.product(connections, sources):
                await source.read(connection)
            assert log.rkeys == wanted(connections), (jump, "sent once")
            last = connections[-1][-1][0]
            cursors = [each.pipeline.tracker.cursor for each in sources]
            assert cursors == [last + each.offset for each in sources], (jump, "cursor")
            for source in sources:
                await source.read(connections[-1][-8:])
            assert log.rkeys == wanted(connections), (jump, "an overlap")
            count = len(wanted(connections))
            more = run(last + 1, count, 5)
            for source in sources:
                await source.read(more)
            assert log.rkeys == wanted([*connections, more]), (jump, "what follows")


@pytest.mark.parametrize("name", [*STEADY, *CASES])
@pytest.mark.parametrize("mode", [*MODES, *FAR])
async def test_a_restart_in_between_changes_nothing(mode: str, name: str) -> None:
    """The relay sends again what it has above the cursor."""
    for jump, cut in itertools.product(jumps_in(mode, name)[1::5] or [0], (10, 11, 12)):
        sent, log = list(itertools.chain(*case(name, jump))), FarLog() if mode in FAR else FakeLog()
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


@pytest.mark.parametrize("together", [True, False])
async def test_a_forged_message_that_waits_does_not_have_the_authentic_one_taken_for_a_repeat(
    together: bool,
) -> None:
    server = Server()
    forged = Account(K256Key(b"\x09" * 32)).create("0")
    assert forged.rev == revisions(DID)[0].rev
    sent = [
        frames.encode(frames.Commit(DID, TIME, revision), number)
        for number, revision in enumerate((forged, revisions(DID)[0]), 5)
    ]
    async with server.running() as admission:
        pipeline = Pipeline(SeqTracker(4, stored_to=10, resumed=True), lambda: 0.0, knows=admission.knows)
        for run in [sent] if together else [sent[:1], sent[1:]]:
            left = list(run)
            while left:
                batch = pipeline.read(left)
                if batch.lookups:
                    pipeline.resolve(batch, await admission.holds(batch.lookups))
                del left[: batch.frames]
                await server.stores["a"](batch, 0.0)
            await server.settle()
        server.keys.bring(DID)
        await server.settle()
    assert server.log.rkeys == ["0"]
