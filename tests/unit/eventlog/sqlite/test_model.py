"""The log against a plain list: whatever happens in whatever order, both hold the same events."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.unit.eventlog.reading import END, Stamped, read_all
from tests.unit.eventlog.trimming import trim

from jetstream.eventlog import Changes, SourceCursor
from jetstream.eventlog.sqlite.reservation import FILE
from jetstream.eventlog.sqlite.rewrite import read_tombstones
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, SYNC, UPDATE, Event
from jetstream.model.filter import Filter

# Small enough for segments, batches, scans and checkpoints to end where a few hundred events have many ends.
SMALL = LogLimits(
    segment_events=12,
    trim_segments=2,
    wal_bytes=100_000,
    batch_events=5,
    hot_tail_events=20,
    erase_segments=2,
    scan_segments=2,
)
DIDS = [b"did:plc:a", b"did:plc:b", b"did:plc:c", b"did:web:d.example"]
COLLECTIONS = [b"app.bsky.feed.like", b"app.bsky.feed.post", b"com.example.rare"]
DELETED = b'{"active":false,"status":"deleted"}'
dids = st.sampled_from(DIDS)
shares = st.floats(0, 1)
collections = st.sampled_from(COLLECTIONS)
events = st.one_of(
    st.builds(
        lambda kind, did, collection, body: Event(kind, did, collection, b"rkey", b"rev", b"cid", body),
        st.sampled_from([CREATE, UPDATE]),
        dids,
        collections,
        st.sampled_from([b"{}", b'{"text":"long enough to matter"}']),
    ),
    st.builds(
        lambda did, collection: Event(DELETE, did, collection, b"rkey", b"rev", b"", b""), dids, collections
    ),
    st.builds(lambda did: Event(IDENTITY, did, b"", b"", b"", b"", b'{"handle":"a.example"}'), dids),
    st.builds(lambda did: Event(ACCOUNT, did, b"", b"", b"", b"", b'{"active":true}'), dids),
    st.builds(lambda did: Event(SYNC, did, b"", b"", b"", b"", b'{"rev":"3l3f6nzhvkl2g"}'), dids),
)
filters = st.builds(
    lambda names, prefixes, repos, kinds: Filter(
        frozenset(names), frozenset(prefixes), DidSet(repos), frozenset(kinds)
    ),
    st.lists(collections, max_size=2),
    st.lists(st.sampled_from([b"app.bsky.", b"com.nobody."]), max_size=1),
    st.lists(dids | st.just(b"did:plc:nobody"), max_size=2),
    st.lists(st.sampled_from([CREATE, DELETE, ACCOUNT, SYNC]), max_size=2),
)


def remembered(history: list[Stamped]) -> list[Stamped]:
    """Leave out what was to be erased."""
    gone = {event.did: time for time, event in history if event.body == DELETED}
    return [
        (time, event)
        for time, event in history
        if event.kind not in (CREATE, UPDATE, SYNC) or time > gone.get(event.did, 0)
    ]


def held(history: list[Stamped], floor: int) -> list[Stamped]:
    """Return what a log with this floor gives back."""
    return [stamped for stamped in remembered(history) if stamped[0] >= floor]


class LogAgainstList(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.runner = self.stack.enter_context(asyncio.Runner())
        self.history: list[Stamped] = []
        self.ends = {0}  # the tips that an append left
        self.floor = 0
        self.seq = 0
        self.generation = 0
        self.open()

    def open(self) -> None:
        self.log = self.runner.run(SqliteLog.open(self.directory / str(self.generation), limits=SMALL))

    def append_events(self, new: list[Event], gap: int) -> None:
        first = self.log.tip + gap
        times = range(first, first + 3 * len(new), 3)
        self.seq += 1
        self.runner.run(self.log.append(Batch.of(new, times), Changes({"relay:1": SourceCursor(self.seq)})))
        self.history += zip(times, new, strict=True)
        self.ends.add(self.log.tip)

    @rule(new=st.lists(events, max_size=9), gap=st.integers(1, 5), times=st.integers(1, 3))
    def append(self, new: list[Event], gap: int, times: int) -> None:
        for _ in range(times):
            self.append_events(new, gap)

    @rule()
    def maintain(self) -> None:
        self.runner.run(self.log.maintain())

    @rule(
        gone=st.lists(dids, min_size=1, max_size=3),
        others=st.lists(events, max_size=2),
        between=st.booleans(),
    )
    def delete_accounts(self, gone: list[bytes], others: list[Event], between: bool) -> None:
        for did in gone:
            self.append_events([*others, Event(ACCOUNT, did, b"", b"", b"", b"", DELETED)], 1)
            if between:
                self.maintain()
        self.settle()

    def settle(self) -> None:
        """Let upkeep erase all that is to be erased."""
        self.runner.run(self.log.maintain())
        while read_tombstones(self.log._state.writer):
            self.runner.run(self.log.maintain())

    # What is drawn does not depend on the log: how much survives a loss of power depends on what upkeep has
    # copied by then.
    @rule(share=shares)
    def trim(self, share: float) -> None:
        before = round(share * (self.log.tip + 2))
        before_trim = held(self.history, self.floor)
        gone = self.runner.run(trim(self.log, before))
        assert gone == sum(time < self.log.floor for time, _ in before_trim)
        assert self.floor <= self.log.floor <= max(before, self.floor)
        self.floor = self.log.floor

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.log.close())
        self.open()

    @rule()
    def crash(self) -> None:
        """Go on with the files as they are at this moment, as after `kill -9`."""
        tip = self.log.tip
        self.take_files()
        assert self.log.tip == tip

    @rule(share=shares)
    def lose_power(self, share: float) -> None:
        """Go on with a write-ahead log that is cut off somewhere, after another boot."""
        given_out = self.log.tip
        self.take_files(share)
        assert self.log.tip >= given_out
        self.settle()
        self.floor = self.log.floor
        kept = self.runner.run(read_all(self.log))
        self.history = next(
            history
            for end in sorted(self.ends, reverse=True)
            if held(history := [stamped for stamped in self.history if stamped[0] <= end], self.floor) == kept
        )

    def take_files(self, share: float | None = None) -> None:
        old = self.directory / str(self.generation)
        self.generation += 1
        new = self.directory / str(self.generation)
        self.runner.run(self.copy_files(old, new))
        self.runner.run(self.log.close())
        if share is not None:
            with (new / f"{DATABASE}-wal").open("r+b") as wal:
                wal.truncate(int(wal.seek(0, 2) * share))
            if (new / FILE).exists():
                _, until = (new / FILE).read_text().split()
                (new / FILE).write_text(f"another-boot {until}\n")
        self.open()

    async def copy_files(self, old: Path, new: Path) -> None:
        """Copy while no checkpoint is under way: what it has copied is on the disk, and cannot be cut off."""
        async with self.log._upkeep._running, self.log._state.writing:
            shutil.copytree(old, new, ignore=shutil.ignore_patterns("*-shm"))

    @rule(wanted=filters, start=shares, length=shares | st.none())
    def read(self, wanted: Filter, start: float, length: float | None) -> None:
        end = self.log.tip + 2
        position = self.floor + round(start * (end - self.floor))
        stop = END if length is None else position + round(length * (end + 1 - position))
        seen = self.runner.run(read_all(self.log, position, stop, wanted))
        assert seen == [
            (time, event)
            for time, event in remembered(self.history)
            if position <= time < stop and wanted.wants(event.kind, event.did, event.collection)
        ]

    @invariant()
    def statistics_agree(self) -> None:
        assert self.log.statistics().events == len(held(self.history, self.floor))
        assert self.log.floor == self.floor

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.runner.run(self.log.close())
        if hasattr(self, "stack"):
            self.stack.close()


TestLogAgainstList = LogAgainstList.TestCase
TestLogAgainstList.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
