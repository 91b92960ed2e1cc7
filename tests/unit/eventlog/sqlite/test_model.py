"""The log against a plain list: whatever happens in whatever order, both hold the same events."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jetstream.eventlog import SourceCursor
from jetstream.eventlog import hot_tail as recent
from jetstream.eventlog.sqlite import reader as stored
from jetstream.eventlog.sqlite import store as sqlite
from jetstream.eventlog.sqlite import upkeep as maintenance
from jetstream.eventlog.sqlite.reservation import FILE
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, UPDATE, Event
from jetstream.model.filter import EVERYTHING, Filter

# Small enough for blocks, batches, scans and checkpoints to end where a few hundred events have many ends.
SMALL = [
    (maintenance, "BLOCK_EVENTS", 12),
    (maintenance, "TRIM_BLOCKS", 2),
    (maintenance, "WAL_BYTES", 100_000),
    (recent, "BATCH_EVENTS", 5),
    (recent, "EVENTS_MAX", 20),
    (sqlite, "FORGET_STEPS", 2),
    (stored, "SCAN_BLOCKS", 2),
    (stored, "READ_EVENTS", 7),
]
DIDS = [b"did:plc:a", b"did:plc:b", b"did:plc:c", b"did:web:d.example"]
COLLECTIONS = [b"app.bsky.feed.like", b"app.bsky.feed.post", b"com.example.rare"]
DELETED = b'{"active":false,"status":"deleted"}'
END = 1 << 62

Stamped = tuple[int, Event]

dids = st.sampled_from(DIDS)
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
)
filters = st.builds(
    lambda names, prefixes, repos: Filter(frozenset(names), frozenset(prefixes), frozenset(repos)),
    st.lists(collections, max_size=2),
    st.lists(st.sampled_from([b"app.bsky.", b"com.nobody."]), max_size=1),
    st.lists(dids | st.just(b"did:plc:nobody"), max_size=2),
)


def remembered(history: list[Stamped]) -> list[Stamped]:
    """Leave out what was to be forgotten."""
    gone = {event.did: time for time, event in history if event.body == DELETED}
    return [
        (time, event)
        for time, event in history
        if event.kind not in (CREATE, UPDATE) or time > gone.get(event.did, 0)
    ]


def held(history: list[Stamped], floor: int) -> list[Stamped]:
    """Return what a log with this floor gives back."""
    return [stamped for stamped in remembered(history) if stamped[0] >= floor]


async def read_all(log: SqliteLog, position: int, stop: int, wanted: Filter) -> list[Stamped]:
    """Read as a subscriber does, and hold the log to what it promises of each batch."""
    seen: list[Stamped] = []
    while (batch := await log.read(position, stop, wanted)) is not None:
        first, last = batch.index(position), batch.index(stop)
        assert first < last
        seen += [(batch.times[i], batch.event(i)) for i in wanted.select(batch, first, last)]
        position = batch.times[last - 1] + 1
    return seen


class LogAgainstList(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        for module, name, value in SMALL:
            self.stack.enter_context(patch.object(module, name, value))
        self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.runner = self.stack.enter_context(asyncio.Runner())
        self.history: list[Stamped] = []
        self.ends = {0}  # the tips that an append left
        self.floor = 0
        self.seq = 0
        self.generation = 0
        self.open()

    def open(self) -> None:
        self.log = self.runner.run(SqliteLog.open(self.directory / str(self.generation)))

    def append_events(self, new: list[Event], gap: int) -> None:
        first = self.log.tip + gap
        times = range(first, first + 3 * len(new), 3)
        self.seq += 1
        self.runner.run(self.log.append(Batch.of(new, times), {"relay:1": SourceCursor(self.seq)}))
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
        """Let the background forget all that is to be forgotten."""
        self.runner.run(self.log.maintain())
        while self.runner.run(self.log._in_maintenance(self.log._maintenance.gone)):
            self.runner.run(self.log.maintain())

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        before = data.draw(st.integers(0, self.log.tip + 2))
        before_trim = held(self.history, self.floor)
        gone = self.runner.run(self.log.trim(before))
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

    @rule(share=st.floats(0, 1))
    def lose_power(self, share: float) -> None:
        """Go on with a write-ahead log that is cut off somewhere, after another boot."""
        given_out = self.log.tip
        self.take_files(share)
        assert self.log.tip >= given_out
        self.settle()
        self.floor = self.log.floor
        kept = self.runner.run(read_all(self.log, 0, END, EVERYTHING))
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
        async with self.log._upkeep, self.log._writing:
            shutil.copytree(old, new, ignore=shutil.ignore_patterns("*-shm"))

    @rule(wanted=filters, data=st.data())
    def read(self, wanted: Filter, data: st.DataObject) -> None:
        position = data.draw(st.integers(self.floor, self.log.tip + 2))
        stop = data.draw(st.integers(position, self.log.tip + 3) | st.just(END))
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
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
