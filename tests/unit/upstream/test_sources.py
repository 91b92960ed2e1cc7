"""All sources of a server: which are there, in which order, and which are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from itertools import pairwise
from typing import cast

import pytest
from structlog.testing import capture_logs
from tests.serving import until

from jetstream.conditions import Conditions
from jetstream.errors import Fenced, JetstreamError, LogCorrupt, LogUnreachable, NotStored
from jetstream.limits import SourceLimits
from jetstream.status import UpstreamState
from jetstream.upstream.reconnecting import Link
from jetstream.upstream.source import Source
from jetstream.upstream.sources import Applied, Sources, Turns
from jetstream.upstreams import Upstream, UpstreamKind


def upstreams(*names: str, kind: UpstreamKind = "relay", url: str = "ws://{}") -> list[Upstream]:
    return [Upstream(name, url.format(name), kind) for name in names]


class FakeSource:
    """A source whose connection is what the test says."""

    def __init__(self, upstream: Upstream, link: Link) -> None:
        self.name, self.url, self.kind = upstream
        self.link = link
        self.gone_s = 0.0
        self.problem = ""
        self.runs = 0
        self.ended = False
        self.error: Exception | None = None
        self.seq: int | None = None
        self.reads = 0  # what it takes, and does not store, before it raises
        self.faults = 0
        self.before: FakeSource | None = None
        self.is_connected = False
        self.last_frame_age_s: float | None = None

    @property
    def state(self) -> UpstreamState:
        return "connected" if self.is_connected else "reconnecting"

    def count_fault(self) -> None:
        self.faults += 1

    def take_over(self, before: FakeSource) -> None:
        self.before = before

    def connect(self) -> None:
        self.is_connected, self.gone_s = True, 0.0
        self.link.changed()

    def lose(self, gone_s: float = 0.0, problem: str = "") -> None:
        self.problem = problem
        self.is_connected, self.gone_s = False, gone_s
        self.link.changed()

    async def run(self) -> None:
        self.runs += 1
        try:
            if self.error is not None:
                self.seq = (self.seq or 0) + self.reads
                raise self.error
            await asyncio.Event().wait()
        finally:
            self.ended = True


class Stage:
    """Sources that are fakes, and what they were told to forget."""

    def __init__(self, **limits: float) -> None:
        self.now_s = 0.0
        self.conditions = Conditions()
        self.built: list[FakeSource] = []
        self.forgotten: list[list[str]] = []
        self.changes = 0
        # What each source that is built raises, the cursor that it begins at, how far it comes, and what it
        # takes and does not store.
        self.error: Exception | None = None
        self.stored = self.progress = self.reads = 0
        limits = {"fault_pause_s": 0.0, "fault_pause_max_s": 0.0} | limits
        self.sources = Sources(
            self.build,
            self.forget,
            self.conditions,
            SourceLimits(named_max=2, gone_s=60.0, **limits),  # type: ignore[arg-type]
            on_change=self.count,
            clock=lambda: self.now_s,
        )

    def build(self, upstream: Upstream, link: Link) -> Source:
        self.built.append(FakeSource(upstream, link))
        self.built[-1].error, self.built[-1].seq = self.error, self.stored
        self.built[-1].reads = self.reads
        self.stored += self.progress
        return cast(Source, self.built[-1])

    async def forget(self, names: Collection[str]) -> None:
        assert all(each.ended or not each.runs for each in self.built if each.name in names)
        self.forgotten.append(list(names))

    def count(self) -> None:
        self.changes += 1

    def __getitem__(self, name: str) -> FakeSource:
        (found,) = [cast(FakeSource, each) for each in self.sources if each.name == name]
        return found

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.sources]


async def test_many_sources_are_ended_in_several_turns() -> None:
    stage = Stage(ends_per_turn=2)
    await stage.sources.apply(upstreams(*"abcdef"))
    async with asyncio.TaskGroup() as tasks:
        stage.sources.start(tasks)
        await asyncio.sleep(0)
        ending = tasks.create_task(stage.sources.apply([]))
        ended = []
        while not ending.done():
            await asyncio.sleep(0)
            ended.append(sum(each.ended for each in stage.built))
    assert max(after - before for before, after in pairwise([0, *ended])) == 2
    assert ended[-1] == 6


async def test_sources_are_added_removed_replaced_and_ordered_while_they_run() -> None:
    stage = Stage()
    assert await stage.sources.apply(upstreams("a", "b")) == Applied(["a", "b"], [], [], [])
    assert [each.runs for each in stage.built] == [0, 0]
    async with asyncio.TaskGroup() as tasks:
        stage.sources.start(tasks)
        await asyncio.sleep(0)
        a, b = stage["a"], stage["b"]
        moved = upstreams("b", url="ws://elsewhere")
        assert await stage.sources.apply([*upstreams("c"), *moved, *upstreams("a")]) == Applied(
            ["c"], [], ["b"], ["a"]
        )
        assert stage.names == ["c", "b", "a"]
        assert (stage["a"] is a, stage["b"] is b, b.ended, a.ended) == (True, False, True, False)
        assert stage.forgotten == []  # one that is replaced keeps its cursor
        assert await stage.sources.apply(moved) == Applied([], ["c", "a"], [], ["b"])
        assert stage.forgotten == [["c", "a"]]
        assert (len(stage.sources), stage["b"].runs) == (1, 1)
        assert await stage.sources.apply(moved) == Applied([], [], [], ["b"])
        assert await stage.sources.apply([]) == Applied([], ["b"], [], [])
        assert all(each.ended for each in stage.built)


ON_PURPOSE = [LogCorrupt("log", "x"), LogUnreachable("log", "x"), Fenced("log", "x"), NotStored("x")]


@pytest.mark.parametrize("error", ON_PURPOSE, ids=lambda error: type(error).__name__)
async def test_an_error_that_is_raised_on_purpose_ends_the_group(error: JetstreamError) -> None:
    stage = Stage()
    await stage.sources.apply(upstreams("a", "b"))
    stage["b"].error = error
    caught: list[BaseException] = []
    try:
        async with asyncio.TaskGroup() as tasks:
            stage.sources.start(tasks)
    except* JetstreamError as group:
        caught += group.exceptions
    assert caught == [error]
    assert stage["a"].ended
    assert [each.faults for each in stage.built] == [0, 0]


async def test_an_error_of_the_server_itself_ends_one_source_and_another_takes_its_place() -> None:
    stage = Stage()
    await stage.sources.apply(upstreams("a", "b"))
    failing = stage["b"]
    failing.error = OverflowError("a bug")
    async with asyncio.TaskGroup() as tasks:
        stage.sources.start(tasks)
        await until(lambda: stage["b"].runs == 1)
        assert stage.names == ["a", "b"]
        assert (failing.faults, stage["b"].faults, stage["b"].before) == (1, 0, failing)
        assert (stage["a"].runs, stage["a"].ended) == (1, False)
        stage.sources.check()
        assert stage.conditions.reasons == {}  # it may have been the only one
        await stage.sources.apply([])
    assert all(each.ended for each in stage.built if each is not failing)


async def test_an_upstream_that_causes_an_error_at_the_same_cursor_again_and_again_is_stuck() -> None:
    stage = Stage()
    stage.error, stage.stored = OverflowError("a bug"), 7
    await stage.sources.apply(upstreams("a"))
    async with asyncio.TaskGroup() as tasks:
        stage.sources.start(tasks)
        await until(lambda: len(stage.built) >= 5)
        stage.sources.check()
        (reason,) = stage.conditions.reasons.items()
        assert reason[0] == "upstream_stuck a"
        assert reason[1].startswith(
            "a: nothing after 7 is taken: an error of the server itself (OverflowError)"
        )
        stage.error = None
        await until(lambda: stage["a"].error is None and stage["a"].runs == 1)
        stage.sources.check()
        assert stage.conditions.names == {"upstream_stuck"}  # nothing after it has come yet
        stage["a"].seq = 8
        stage.sources.check()
        assert stage.conditions.names == {"upstream_stuck"}  # it was read, and its connection has failed
        stage["a"].connect()
        stage.sources.check()
        assert stage.conditions.names == set()
        await stage.sources.apply([])


async def stuck_and_mended(stage: Stage, tasks: asyncio.TaskGroup) -> FakeSource:
    """Return a source that no error ends any more, after some that were stuck at 7 and had taken 9."""
    stage.error, stage.stored, stage.reads = OverflowError("a bug"), 7, 2
    await stage.sources.apply(upstreams("a"))
    stage.sources.start(tasks)
    await until(lambda: stage.conditions.names == {"upstream_stuck"})
    stage.error = None
    await until(lambda: stage["a"].error is None and stage["a"].runs == 1)
    return stage["a"]


async def test_what_comes_again_before_the_error_does_not_end_that_an_upstream_is_stuck() -> None:
    stage = Stage()
    async with asyncio.TaskGroup() as tasks:
        source = await stuck_and_mended(stage, tasks)
        source.connect()
        for seq, is_stuck in (7, True), (8, True), (9, True), (10, False):
            source.seq = seq
            stage.sources.check()
            assert (stage.conditions.names == {"upstream_stuck"}) == is_stuck
        await stage.sources.apply([])


async def test_a_connection_that_lasts_ends_that_an_upstream_is_stuck() -> None:
    stage = Stage(unstuck_s=60.0)
    async with asyncio.TaskGroup() as tasks:
        source = await stuck_and_mended(stage, tasks)
        source.connect()
        source.seq = 3  # its sequence has begun again
        for now_s, is_connected in (0.0, True), (59.0, True), (60.0, False), (61.0, True), (120.0, True):
            stage.now_s, source.is_connected = now_s, is_connected
            stage.sources.check()
            assert stage.conditions.names == {"upstream_stuck"}
        stage.now_s = 121.0
        stage.sources.check()
        assert stage.conditions.names == set()
        await stage.sources.apply([])


async def test_errors_at_other_cursors_are_no_stuck_upstream() -> None:
    stage = Stage()
    stage.error, stage.progress = OverflowError("a bug"), 1
    await stage.sources.apply(upstreams("a"))
    async with asyncio.TaskGroup() as tasks:
        stage.sources.start(tasks)
        await until(lambda: len(stage.built) >= 5)
        assert stage.conditions.names == set()
        await stage.sources.apply([])


async def test_an_upstream_can_be_removed_while_it_is_waited_for_after_an_error() -> None:
    stage = Stage(fault_pause_s=3_600.0, fault_pause_max_s=3_600.0)
    await stage.sources.apply(upstreams("a"))
    stage["a"].error = OverflowError("a bug")
    async with asyncio.TaskGroup() as tasks:
        stage.sources.start(tasks)
        await until(lambda: stage["a"].faults == 1)
        await stage.sources.apply([])
    assert stage.built[0].faults == len(stage.built) == 1


async def test_the_connected_are_in_the_order_of_the_list() -> None:
    stage = Stage()
    await stage.sources.apply(upstreams("a", "b", "c"))
    assert stage.sources.connected == []
    for name in "cab":
        stage[name].connect()
    assert stage.sources.connected == ["a", "b", "c"]
    stage["a"].lose()
    assert stage.sources.connected == ["b", "c"]
    await stage.sources.apply(upstreams("c", "b"))
    assert stage.sources.connected == ["c", "b"]
    assert stage.changes == 6


# What is gone


async def test_a_relay_that_is_gone_while_others_deliver_is_named() -> None:
    stage = Stage()
    await stage.sources.apply(upstreams("a", "b"))
    stage["a"].connect()
    stage["b"].lose(59.0)
    stage.sources.check()
    assert stage.conditions.reasons == {}
    stage["b"].lose(60.0, "HTTP 503")
    stage.sources.check()
    assert stage.conditions.reasons == {
        "upstream_gone b": "b (ws://b) has been gone for 60 s; 1 of 2 upstreams are connected; b: HTTP 503"
    }
    stage["b"].connect()
    stage.sources.check()
    assert stage.conditions.reasons == {}


async def test_all_that_are_gone_are_one_condition() -> None:
    stage = Stage()
    await stage.sources.apply(upstreams("a", "b", "c"))
    for name, gone_s in ("a", 60.0), ("b", 70.0), ("c", 59.0):
        stage[name].lose(gone_s)
    stage.sources.check()
    assert stage.conditions.names == {"upstream_gone"}
    stage["b"].lose(71.0, "no address")
    stage["c"].lose(60.0)
    stage.sources.check()
    assert stage.conditions.reasons == {
        "upstreams_gone": "no upstream is connected, for 60 s and more: a, b and 1 more; b: no address"
    }
    stage["c"].connect()
    stage.sources.check()
    assert sorted(stage.conditions.reasons) == ["upstream_gone a", "upstream_gone b"]


async def test_the_conditions_of_a_source_go_with_it() -> None:
    stage = Stage()
    await stage.sources.apply(upstreams("a", "b"))
    for name in "ab":
        stage.conditions.of(name).begin("frames_not_taken", "why")
    with capture_logs() as lines:
        await stage.sources.apply(upstreams("b"))
    assert list(stage.conditions.reasons) == ["frames_not_taken b"]
    assert lines == []  # nothing has recovered


# Hundreds of PDSes


async def test_pdses_are_counted_and_no_condition_each() -> None:
    stage = Stage()
    assert stage.sources.pds() is None
    await stage.sources.apply([*upstreams("relay"), *upstreams("a", "b", "c", "d", kind="pds")])
    stage["relay"].connect()
    stage["b"].connect()
    for name in "acd":
        stage[name].lose(1_000.0)
    stage.sources.check()
    pds = stage.sources.pds()
    assert pds is not None
    assert (pds.states, pds.gone) == ({"connected": 1, "reconnecting": 3}, ("a", "c"))
    assert stage.sources.pds() is pds  # for a second
    assert stage.conditions.reasons == {}
    stage["relay"].lose(60.0)
    stage.sources.check()
    assert stage.conditions.names == {"upstream_gone"}
    stage["b"].lose(60.0)
    stage.sources.check()
    assert stage.conditions.names == {"upstreams_gone"}


async def test_pdses_that_are_gone_are_one_log_line_a_minute() -> None:
    stage = Stage()
    await stage.sources.apply(upstreams("a", "b", "c", kind="pds"))
    with capture_logs() as lines:
        for now_s in 0.0, 59.0, 60.0, 61.0, 119.0, 120.0:
            stage.now_s = now_s
            stage.sources.check()
        for each in stage.built:
            each.connect()
        stage.now_s = 180.0
        stage.sources.check()
    assert [(line["not_connected"], line["of"], line["such_as"]) for line in lines] == [(3, 3, "a, b")] * 2


async def test_hundreds_of_pdses_that_fail_share_their_log_lines_and_relays_do_not() -> None:
    stage = Stage()
    pds = [f"p{number}" for number in range(300)]
    await stage.sources.apply([*upstreams("a", "b"), *upstreams(*pds, kind="pds")])
    with capture_logs() as lines:
        for _ in range(3):
            for each in stage.built:
                each.link.logger.warning("upstream: cannot connect", url=each.url)
    assert [line["upstream"] for line in lines] == ["a", "b", "p0"]


async def test_relays_connect_at_once_and_pdses_one_after_another() -> None:
    stage = Stage(pds_connects_per_s=0.001)
    await stage.sources.apply([*upstreams("a", "b"), *upstreams("c", "d", kind="pds")])
    for name in "abc":
        await stage[name].link.turn()
    waiting = asyncio.ensure_future(stage["d"].link.turn())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


def test_turns_come_at_a_rate_with_jitter() -> None:
    now_s = 0.0
    turns = Turns(20.0, lambda: now_s)
    times = [turns.take() for _ in range(1_000)]
    steps = [after - before for before, after in pairwise(times)]
    assert times[0] == 0.0
    assert 45.0 < times[-1] < 55.0
    assert all(0.025 <= step <= 0.0751 for step in steps)
    assert len(set(steps)) > 100
    now_s = 1_000.0  # turns that nobody took are not saved up
    assert turns.take() == 0.0
    assert turns.take() >= 0.025
