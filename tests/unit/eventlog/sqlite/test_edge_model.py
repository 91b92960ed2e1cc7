"""Edges against a plain list: readers that change edges with nothing but a cursor see everything once.

Edges look at the log at moments of their own, so that one is behind another. The writer appends, seals,
erases, trims and starts again meanwhile.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tests.logs.model import DELETED, SMALL, dids, events, remembered, shares
from tests.unit.eventlog.reading import Stamped, read_all
from tests.unit.eventlog.trimming import trim

from jetstream.eventlog import Changes, SourceCursor
from jetstream.eventlog.sqlite.edge import EdgeLog
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, Event

EDGES, READERS = 2, 3
numbers_of_edges, numbers_of_readers = st.integers(0, EDGES - 1), st.integers(0, READERS - 1)


@dataclass
class Reader:
    """A client: its cursor, which is all that it takes along."""

    position: int = 0


class EdgesAgainstList(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.runner = self.stack.enter_context(asyncio.Runner())
        self.history: list[Stamped] = []
        self.seq = 0
        self.log = self.runner.run(SqliteLog.open(self.directory, limits=SMALL))
        self.edges = [self.opened() for _ in range(EDGES)]
        self.readers = [Reader() for _ in range(READERS)]

    def opened(self) -> EdgeLog:
        # A clock that stands still: the edge looks when a rule says so.
        return self.runner.run(EdgeLog.open(self.directory, limits=SMALL, clock=lambda: 0.0))

    def append_events(self, new: list[Event], gap: int) -> None:
        first = self.log.tip + gap
        times = range(first, first + 3 * len(new), 3)
        self.seq += 1
        self.runner.run(self.log.append(Batch.of(new, times), Changes({"relay:1": SourceCursor(self.seq)})))
        self.history += zip(times, new, strict=True)

    @rule(new=st.lists(events, max_size=9), gap=st.integers(1, 5), times=st.integers(1, 3))
    def append(self, new: list[Event], gap: int, times: int) -> None:
        for _ in range(times):
            self.append_events(new, gap)

    @rule(gone=dids, others=st.lists(events, max_size=2))
    def delete_account(self, gone: bytes, others: list[Event]) -> None:
        self.append_events([*others, Event(ACCOUNT, gone, b"", b"", b"", b"", DELETED)], 1)

    @rule()
    def maintain(self) -> None:
        self.runner.run(self.log.maintain())

    @rule(share=shares)
    def trim(self, share: float) -> None:
        self.runner.run(trim(self.log, round(share * (self.log.tip + 2))))

    @rule()
    def start_the_writer_again(self) -> None:
        self.runner.run(self.log.close())
        self.log = self.runner.run(SqliteLog.open(self.directory, limits=SMALL))

    @rule(edge=numbers_of_edges)
    def look(self, edge: int) -> None:
        self.runner.run(self.edges[edge].look())
        assert self.edges[edge].tip == self.log.tip

    @rule(edge=numbers_of_edges)
    def start_an_edge_again(self, edge: int) -> None:
        self.runner.run(self.edges[edge].close())
        self.edges[edge] = self.opened()

    @rule(reader=numbers_of_readers, edge=numbers_of_edges)
    def read(self, reader: int, edge: int) -> None:
        """Let a reader go on at an edge, from its cursor to what the edge has."""
        self.runner.run(self.read_all(self.readers[reader], self.edges[edge]))

    async def read_all(self, reader: Reader, edge: EdgeLog) -> None:
        position = reader.position
        if position > edge.newest + 1:
            await edge.look()
            assert position <= edge.newest + 1
        tip = max(edge.tip, position - 1)
        seen = await read_all(edge, max(position, edge.floor), tip + 1)
        # What is below the floor that the edge has now may be missing: the reader is told.
        must = [each for each in remembered(self.history) if max(position, edge.floor) <= each[0] <= tip]
        may = [each for each in self.history if position <= each[0] <= tip]
        known = remembered([each for each in self.history if each[0] <= edge.tip])
        assert [each for each in seen if each in must] == must
        assert [each for each in may if each in seen] == seen
        assert all(each in known for each in seen)
        reader.position = tip + 1

    def teardown(self) -> None:
        if hasattr(self, "readers"):
            for reader, edge in zip(self.readers, [*self.edges, *self.edges], strict=False):
                self.runner.run(edge.look())
                self.runner.run(self.read_all(reader, edge))
                assert reader.position == self.log.tip + 1
        if hasattr(self, "edges"):
            for edge in self.edges:
                self.runner.run(edge.close())
            self.runner.run(self.log.close())
        if hasattr(self, "stack"):
            self.stack.close()


TestEdgesAgainstList = EdgesAgainstList.TestCase
TestEdgesAgainstList.settings = settings(
    max_examples=8, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
