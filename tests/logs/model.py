"""The log against a plain list: whatever happens in whatever order, both hold the same events.

A package of tests for an engine makes a subclass of `LogAgainstList`, with the rules that only it has.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.logs.engine import Engine
from tests.unit.eventlog.reading import END, Stamped, read_all

from jetstream.eventlog import Changes, SourceCursor
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
SETTINGS = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
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
    """A subclass makes the `engine`."""

    engine: Engine
    log: Any

    def make_engine(self, stack: ExitStack) -> Engine:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.runner = self.stack.enter_context(asyncio.Runner())
        self.engine = self.make_engine(self.stack)
        self.history: list[Stamped] = []
        self.ends = {0}  # the tips that an append left
        self.floor = 0
        self.seq = 0
        self.open()

    def open(self) -> None:
        self.log = self.runner.run(self.engine.open(limits=SMALL))

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

    @rule()
    def forget(self) -> None:
        self.engine.forget(self.log)

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
        self.runner.run(self.engine.settle(self.log))

    # What is drawn does not depend on the log: how much survives a loss of power depends on what upkeep has
    # copied by then.
    @rule(share=shares)
    def trim(self, share: float) -> None:
        before = round(share * (self.log.tip + 2))
        before_trim = held(self.history, self.floor)
        gone = self.runner.run(self.engine.trim(self.log, before))
        assert gone == sum(time < self.log.floor for time, _ in before_trim)
        assert self.floor <= self.log.floor <= max(before, self.floor)
        self.floor = self.log.floor

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.log.close())
        self.open()

    @rule()
    def crash(self) -> None:
        """Go on with what is stored at this moment, as after `kill -9`."""
        tip = self.log.tip
        self.runner.run(self.engine.abandon(self.log))
        self.open()
        assert self.log.tip == tip

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
        if not hasattr(self, "log"):
            return
        assert self.log.statistics().events == len(held(self.history, self.floor))
        assert self.log.floor == self.floor
        assert self.log.cursors == ({"relay:1": SourceCursor(self.seq)} if self.seq else {})

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.runner.run(self.log.close())
        if hasattr(self, "stack"):
            self.stack.close()
