from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from tests.builders import event
from tests.unit.delivery.encodings import CLASSIC
from tests.unit.eventlog.reading import END, Stamped, read_all
from tests.unit.model.asking import ANN, BOB, GOOD, LIKE, POST, Asked

from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.index import Groups
from jetstream.delivery.subscriber import Group, SubscriberOptions
from jetstream.eventlog import Changes
from jetstream.eventlog.sqlite.connection import open_reader
from jetstream.eventlog.sqlite.reader import FileReader
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, SYNC, UPDATE, Event
from jetstream.model.filter import Filter
from jetstream.steps import finish

SMALL = LogLimits(segment_events=10, batch_events=5, hot_tail_events=1, scan_segments=3, journal_bytes=0)
# Some segments have one collection, one repo or no accounts, so that each can be skipped by some filter.
RUNS = [
    (
        [CREATE, UPDATE, DELETE, IDENTITY, ACCOUNT, SYNC],
        [ANN, BOB, "did:plc:dan"],
        [POST, LIKE, "com.example.a.b"],
    ),
    ([CREATE], [ANN], [POST]),
    ([IDENTITY], [BOB], [""]),
    ([ACCOUNT, DELETE], ["did:plc:dan"], [LIKE]),
    ([UPDATE], [ANN, BOB], ["app.other.thing", "com.example.a"]),
]


class Stored:
    """A log whose events are all in sealed segments."""

    def __init__(self, runner: asyncio.Runner, log: SqliteLog, events: list[Event]) -> None:
        self.runner = runner
        self.log = log
        self.batch = Batch.of(events, range(1, len(events) + 1))

    def read(self, asked: Asked) -> list[Stamped]:
        return self.runner.run(read_all(self.log, wanted=asked.parse()))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    random = Random(1)
    events = [
        event(random.choice(kinds), random.choice(dids), random.choice(names))
        for kinds, dids, names in RUNS * 2
        for _ in range(20)
    ]
    with asyncio.Runner() as runner:
        log = runner.run(SqliteLog.open(tmp_path_factory.mktemp("log"), limits=SMALL))
        held = Stored(runner, log, [*events, event()])  # the last one is in the hot tail
        for at, one in enumerate(events, 1):
            runner.run(log.append(Batch.of([one], [at]), Changes({})))
        runner.run(log.maintain())
        runner.run(log.append(Batch.of([event()], [len(events) + 1]), Changes({})))
        yield held
        runner.run(log.close())


@given(GOOD)
@settings(max_examples=300, deadline=None)
def test_all_that_judge_events_agree(stored: Stored, asked: Asked) -> None:
    """One event, a batch, the index of the subscribers at the tip, and the log."""
    batch, wanted = stored.batch, asked.parse()
    expected = [i for i in range(len(batch)) if asked.wants(batch.event(i))]

    def wants(i: int) -> bool:
        return wanted.wants(batch.kinds[i], batch.dids[i], batch.collections[i])

    assert [i for i in range(len(batch)) if wants(i)] == expected
    assert list(wanted.select(batch, 0, len(batch))) == expected
    groups = Groups(10, finish, FeatureCache(1 << 20))
    finish(groups.index(Group(CLASSIC, SubscriberOptions(wanted))))
    assert [list(found) for found in groups.wanted(batch, 0, len(batch)).values()] == (
        [expected] if expected else []
    )
    assert stored.read(asked) == [(batch.times[i], batch.event(i)) for i in expected]


def loaded(stored: Stored, **asked: Any) -> int:
    """Return how many segments are decompressed for a reader of the whole log."""
    with closing(open_reader(stored.log._state.path)) as connection:
        reader, position, segments = FileReader(connection, SMALL, strict=True), 0, 0
        while position < len(stored.batch):
            position, found = reader.scan(position, END, Asked(**asked).parse())
            segments += isinstance(found, int)
        return segments


def test_segments_without_wanted_kinds_or_collections_are_not_decompressed(stored: Stored) -> None:
    assert loaded(stored) == 20
    assert loaded(stored, kinds=["identity"]) == 0
    assert loaded(stored, kinds=["account", "sync"]) == 0
    assert loaded(stored, kinds=["commit"], collections=["org.example.absent"]) == 0
    assert loaded(stored, exclude_collections=["app.bsky.*"]) == 8
    assert loaded(stored, collections=["app.*"], exclude_collections=["app.bsky.*"]) == 4
    assert loaded(stored, kinds=["commit"], dids=["did:plc:dan"], collections=[LIKE]) == 8


async def test_a_run_of_large_syncs_is_read_in_parts(tmp_path: Path) -> None:
    """A scan collects the events without a collection of many segments: by their bytes, too."""
    body = b'{"blocks":{"$bytes":"%b"}}' % (b"x" * 13_000)
    limits = replace(SMALL, batch_events=1_000, batch_bytes=100_000, scan_segments=64)
    log = await SqliteLog.open(tmp_path, limits=limits)
    for at in range(1, 61):
        await log.append(Batch.of([event(SYNC, body=body)], [at]), Changes({}))
    await log.maintain()
    await log.append(Batch.of([event()], [61]), Changes({}))
    wanted, sizes, position = Filter.parse([LIKE], []), [], 0
    with closing(open_reader(log._state.path)) as connection:
        reader = FileReader(connection, limits, strict=True)
        while position <= 60:
            position, found = reader.scan(position, 61, wanted)
            assert isinstance(found, Batch)
            sizes.append(found.text_bytes())
    await log.close()
    assert sum(sizes) > 60 * 13_000
    assert max(sizes) < 100_000 + 10 * 13_100  # no more than a segment above the limit
