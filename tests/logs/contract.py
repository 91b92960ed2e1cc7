"""What each log promises, whatever it is stored in.

A package of tests for an engine imports all of this, and has a fixture `engine`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import pytest
from tests.builders import event
from tests.logs.engine import AnyLog, Engine
from tests.unit.eventlog.events import make_event
from tests.unit.eventlog.reading import times_from

from jetstream.eventlog import Changes, Cursors, Gap, LogReader, SourceCursor
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, SYNC, Event, Key
from jetstream.model.filter import EVERYTHING, Filter

BatchOf = Callable[[range], Batch]
LIMITS = LogLimits()
BY_HAND = LogLimits(segment_events=100, journal_bytes=0, upkeep_interval_s=3600.0, gap_rows=10)
NOTHING = Batch.of((), ())
LEAVER = b"did:plc:leaver"
ALL_OF_LEAVER = Filter(dids=DidSet({LEAVER}))
SECRET = b'{"text":"what only this account said"}'
DELETED = b'{"active":false,"status":"deleted"}'


def wanted_times(wanted: Filter, batch: Batch) -> list[int]:
    return [batch.times[i] for i in wanted.select(batch, 0, len(batch))]


def account_deleted() -> Event:
    return Event(ACCOUNT, LEAVER, b"", b"", b"", b"", DELETED)


async def filled(engine: Engine, batch_of: BatchOf, cursor: Cursors, last: int, **options: object) -> AnyLog:
    """Open a log of events from 1 to `last`, sealed but for the end."""
    log: AnyLog = await engine.open(**{"limits": BY_HAND, **options})
    for start in range(1, last, 50):
        await log.append(batch_of(range(start, start + 50)), Changes(cursor))
    await log.maintain()
    return log


# Appending and reading


async def test_an_empty_log_has_nothing(engine: Engine) -> None:
    log = await engine.open()
    interface: LogReader = log
    assert (interface.floor, interface.tip, log.cursors) == (0, 0, {})
    statistics = log.statistics()
    assert (statistics.events, statistics.oldest_us, statistics.newest_us) == (0, None, None)
    assert await log.read(0, 100, EVERYTHING) is None
    await log.close()


async def test_what_was_appended_is_read(engine: Engine, batch_of: BatchOf, cursor: Cursors) -> None:
    log = await engine.open()
    await log.append(batch_of(range(10, 20)), Changes(cursor))
    await log.append(batch_of(range(20, 25)), Changes(cursor))
    assert await times_from(log) == list(range(10, 25))
    assert await times_from(log, 17, stop=22) == [17, 18, 19, 20, 21]
    assert await log.read(25, 100, EVERYTHING) is None
    assert log.tip == 24
    await log.close()


async def test_everything_survives_reopening(engine: Engine, batch_of: BatchOf, cursor: Cursors) -> None:
    first = await engine.open(limits=replace(BY_HAND, segment_events=1000))
    for start in range(1, 3000, 7):
        await first.append(batch_of(range(start, start + 7)), Changes(cursor))
    before = first.statistics(), await times_from(first)
    await first.close()
    again = await engine.open()
    after = again.statistics(), await times_from(again)
    assert (again.tip, again.cursors) == (3003, cursor)
    await again.close()
    assert after[1] == before[1] == list(range(1, 3004))
    assert after[0].events == before[0].events == 3003
    assert (after[0].oldest_us, after[0].newest_us) == (1, 3003)


async def test_a_filter_reads_what_it_wants_from_store_and_memory(
    engine: Engine, batch_of: BatchOf, cursor: Cursors
) -> None:
    everything = batch_of(range(1, 5001))
    wanted = Filter.parse(["app.bsky.feed.post"], ["did:plc:repo3", "did:plc:repo4"])
    log = await engine.open(limits=replace(BY_HAND, segment_events=1000))
    await log.append(batch_of(range(1, 2501)), Changes(cursor))
    await log.maintain()
    await log.close()
    log = await engine.open()
    await log.append(batch_of(range(2501, 5001)), Changes(cursor))
    assert await times_from(log, wanted=wanted) == wanted_times(wanted, everything)
    engine.forget(log)
    assert await times_from(log, wanted=wanted) == wanted_times(wanted, everything)
    assert await times_from(log, wanted=Filter.parse([], ["did:plc:nobody"])) == [
        time for time in range(1, 5001) if everything.dids[time - 1] == b"did:plc:nobody"
    ]
    await log.close()


async def test_positions_between_batches_have_nothing(
    engine: Engine, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await engine.open(limits=BY_HAND)
    for start in (100, 200, 300, 400):
        await log.append(batch_of(range(start, start + 60)), Changes(cursor))
    for _ in range(2):
        engine.forget(log)
        for empty in (0, 160, 260, 360):
            assert await log.read(empty + 5, empty + 20, EVERYTHING) is None
        assert await times_from(log, 155, stop=205) == [*range(155, 160), *range(200, 205)]
        await log.maintain()
    await log.close()


async def test_a_cursor_moves_without_events(engine: Engine) -> None:
    log = await engine.open()
    await log.append(NOTHING, Changes({"a:1": SourceCursor(5)}))
    assert log.cursors == {"a:1": SourceCursor(5)}
    assert log.tip == 0
    await log.close()
    log = await engine.open()
    assert (log.cursors, log.tip) == ({"a:1": SourceCursor(5)}, 0)
    await log.close()


async def test_the_cursors_of_many_sources_survive_whichever_of_them_move(
    engine: Engine, batch_of: BatchOf
) -> None:
    cursors = {f"s{number}": SourceCursor(number) for number in range(300)}
    log = await engine.open()
    await log.append(batch_of(range(1, 3)), Changes(cursors))
    for time_us, moved in (3, "s7"), (4, "s299"), (5, None), (6, "s7"):
        if moved is not None:
            cursors = cursors | {moved: SourceCursor(1_000 + time_us)}
        await log.append(batch_of(range(time_us, time_us + 1)), Changes(cursors))
        await log.close()
        log = await engine.open()
        assert (log.cursors, log.tip, log.statistics().events) == (cursors, time_us, time_us)
    del cursors["s8"]
    await log.append(NOTHING, Changes(cursors))
    await log.close()
    log = await engine.open()
    assert log.cursors == cursors
    await log.close()


async def test_the_numbers_beside_the_confirmed_one_are_stored(engine: Engine) -> None:
    log = await engine.open()
    cursor = {"relay.example:443": SourceCursor(7, 300_007, 9_000, 20, (9, 12, 19))}
    await log.append(Batch.of([event()], [1]), Changes(cursor))
    await log.close()
    log = await engine.open()
    assert log.cursors == cursor
    await log.close()


async def test_waiting_ends_when_the_position_is_there(
    engine: Engine, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await engine.open()
    waiter = asyncio.create_task(log.wait(15))
    await log.append(batch_of(range(10, 12)), Changes(cursor))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiter.done()
    await log.append(batch_of(range(12, 16)), Changes(cursor))
    await waiter
    await log.wait(3)
    await log.close()


async def test_readers_share_a_segment(engine: Engine, batch_of: BatchOf, cursor: Cursors) -> None:
    log = await filled(engine, batch_of, cursor, 1000)
    await log.close()
    log = await engine.open()
    first, second = await asyncio.gather(log.read(1, 1000, EVERYTHING), log.read(50, 1000, EVERYTHING))
    assert first is not None
    assert first is second
    assert (first.first, first.last) == (1, 100)
    await log.close()


async def test_a_large_append_is_whole_yet_no_reader_need_take_all_of_it(
    engine: Engine, cursor: Cursors
) -> None:
    sizes = [900_000, 10, 700_000, 2_000_000, 400_000, 400_000, 1]
    events = [Event(CREATE, b"did:plc:a", b"a.b.c", b"k", b"r", b"", b"x" * size) for size in sizes]
    log = await engine.open()
    await log.append(Batch.of(events, range(1, 8)), Changes(cursor))
    engine.forget(log)
    read: list[int] = []
    while (batch := await log.read(len(read) + 1, 8, EVERYTHING)) is not None:
        first = batch.index(len(read) + 1)
        assert batch.text_bytes() < LIMITS.batch_bytes + max(LIMITS.batch_bytes, *sizes) + 1_000
        read += map(len, batch.bodies[first:])
    await log.close()
    assert read == sizes
    reopened = await engine.open()
    assert (reopened.tip, reopened.statistics().events, reopened.cursors) == (7, 7, cursor)
    await reopened.close()


async def test_small_appends_of_large_events_are_read_a_few_at_a_time(
    engine: Engine, cursor: Cursors
) -> None:
    large = Event(CREATE, b"did:plc:a", b"a.b.c", b"k", b"r", b"", b"x" * 100_000)
    log = await engine.open()
    for time in range(1, 31):
        await log.append(Batch.of([large], [time]), Changes(cursor))
    engine.forget(log)
    batch = await log.read(1, 31, EVERYTHING)
    assert batch is not None
    assert len(batch) == LIMITS.batch_bytes // 100_000 + 1
    await log.close()


async def test_a_killed_process_leaves_all_that_it_has_stored(
    engine: Engine, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await engine.open(limits=BY_HAND)
    for start in range(1, 500, 3):
        await log.append(batch_of(range(start, start + 3)), Changes(cursor))
        if start % 200 == 1:
            await log.maintain()
    await engine.abandon(log)
    log = await engine.open(limits=BY_HAND)
    assert (log.tip, log.cursors) == (501, cursor)
    assert await times_from(log) == list(range(1, 502))
    await log.close()


# Gaps, accounts and states


def gap(time_us: int, did: str = "did:plc:a") -> Gap:
    return Gap(time_us, did, "3l3qo2vutsw2b", "3l3qo2vuowo2b", "sync")


async def test_gaps_come_back_with_events_and_without(
    engine: Engine, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await engine.open()
    await log.append(batch_of(range(10, 13)), Changes(cursor, gaps=[gap(12), gap(10, "did:web:b.example")]))
    await log.append(NOTHING, Changes(cursor, gaps=[gap(13)]))
    expected = [gap(10, "did:web:b.example"), gap(12), gap(13)]
    assert await log.gaps(0, 9) == expected
    assert await log.gaps(11, 9) == expected[1:]
    assert await log.gaps(14, 9) == []
    await log.close()
    log = await engine.open()
    assert await log.gaps(0, 2) == expected[:2]
    await log.close()


async def test_gaps_of_one_time_come_together(engine: Engine, cursor: Cursors) -> None:
    log = await engine.open()
    gaps = [gap(1 + number // 3, f"did:plc:{number}") for number in range(9)]
    await log.append(NOTHING, Changes(cursor, gaps=gaps))
    assert sorted(await log.gaps(0, 1)) == gaps[:3]
    assert sorted(await log.gaps(2, 4)) == gaps[3:]
    await log.close()


async def test_gaps_are_trimmed_with_the_events(engine: Engine, batch_of: BatchOf, cursor: Cursors) -> None:
    log = await engine.open(limits=BY_HAND)
    for start in range(1, 500, 100):
        await log.append(batch_of(range(start, start + 100)), Changes(cursor, gaps=[gap(start + 99)]))
        await log.maintain()
    await engine.trim(log, 350)
    assert log.floor == 301
    assert [each.time_us for each in await log.gaps(0, 100)] == [400, 500]
    await log.close()


async def test_the_oldest_gaps_above_their_bound_go(engine: Engine, cursor: Cursors) -> None:
    log = await engine.open(limits=BY_HAND)
    for time_us in range(1, 26):
        await log.append(NOTHING, Changes(cursor, gaps=[gap(time_us)]))
    await log.maintain()
    assert [each.time_us for each in await log.gaps(0, 100)] == list(range(16, 26))
    await log.close()


async def test_accounts_come_back(engine: Engine, cursor: Cursors) -> None:
    log = await engine.open()
    first = {("a", "did:plc:a"): b"1", ("b", "did:plc:a"): b"2", ("a", "did:plc:b"): b"3"}
    await log.append(NOTHING, Changes(cursor, accounts=first))
    await log.append(NOTHING, Changes(cursor, accounts={("b", "did:plc:a"): b"4", ("a", "did:plc:b"): None}))
    expected = {("a", "did:plc:a"): b"1", ("b", "did:plc:a"): b"4"}
    assert log.accounts() == expected
    await log.close()
    log = await engine.open()
    assert log.accounts() == expected
    await log.close()


async def repos_of(log: Any, dids: Collection[bytes]) -> dict[bytes, bytes | None]:
    """Return the states of repositories, which a log in a database must load."""
    if hasattr(log, "load_repos"):
        await log.load_repos(dids)
    return {did: log.repo(did) for did in dids}


async def test_states_come_back_and_can_be_forgotten(
    engine: Engine, batch_of: BatchOf, cursor: Cursors
) -> None:
    dids = [number.to_bytes(15, "big") for number in range(1, 41)]
    log = await engine.open(limits=replace(BY_HAND, repo_changes=8, fold_repos=3))
    expected: dict[bytes, bytes | None] = {}
    for step, did in enumerate([*dids, *dids[::3]]):
        state = None if step % 7 == 3 else (step + 1).to_bytes(24, "big")
        expected[did] = state
        await log.append(batch_of(range(step + 1, step + 2)), Changes(cursor, {did: state}))
        if step % 10 == 5:
            await log.maintain()
    for reopen in (False, True, False):
        if reopen:
            await engine.abandon(log)
            log = await engine.open(limits=BY_HAND)
        assert await repos_of(log, dids) == expected
    unknown = b"\1" * 15
    assert await repos_of(log, [unknown]) == {unknown: None}
    await log.close()


# Looking up

LOOKED_UP = LogLimits(
    segment_events=20,
    batch_events=7,
    hot_tail_events=40,
    scan_segments=2,
    lookup_keys=40,
    journal_bytes=0,
    upkeep_interval_s=3600.0,
)
UNSEALED = replace(LOOKED_UP, segment_events=10_000)


def commit(number: int, did: bytes = b"did:plc:a", kind: bytes = CREATE) -> Event:
    return Event(
        kind, did, b"x.y.z", b"%d" % number, b"rev%d" % number, b"", b"" if kind == DELETE else b"{}"
    )


def about(number: int, kind: bytes = IDENTITY) -> Event:
    blocks = b'"blocks":{"$bytes":"%b"},' % (b"x" * 2_000) if kind == SYNC else b""
    return Event(kind, b"did:plc:a", b"", b"", b"", b"", b'{%b"seq":%d}' % (blocks, number))


EVENTS = [
    each
    for number in range(0, 300, 4)
    for each in (
        commit(number),
        commit(number + 1, b"did:plc:%d" % number, DELETE),
        about(number + 2),
        about(number + 3, ACCOUNT if number % 8 else SYNC),
    )
]
ABSENT: set[Key] = {
    commit(1).key,  # another's
    commit(7_000).key,
    (b"did:plc:a", b"x.y.z", b"0", b"rev4"),
    (b"did:plc:a", b"x.y.w", b"0", b"rev0"),
    about(7_000).key,
    commit(1, b"did:plc:nobody").key,
}


async def with_events(engine: Engine, cursor: Cursors, *, sealed: bool) -> AnyLog:
    log: AnyLog = await engine.open(limits=LOOKED_UP if sealed else UNSEALED)
    for at in range(0, len(EVENTS), 10):
        events = EVENTS[at : at + 10]
        await log.append(Batch.of(events, range(at + 1, at + 1 + len(events))), Changes(cursor))
    if sealed:
        await log.maintain()
    return log


@pytest.mark.parametrize("sealed", [False, True])
async def test_every_event_is_found_and_no_other(engine: Engine, cursor: Cursors, sealed: bool) -> None:
    log = await with_events(engine, cursor, sealed=sealed)
    keys = {event.key for event in EVENTS}
    found = await log.holds(keys | ABSENT)
    assert found.keys() == keys
    assert all(place <= found[each.key] - 1 < place + 20 for place, each in enumerate(EVENTS))
    assert await log.holds(ABSENT) == {}
    assert await log.holds(()) == {}
    for each in EVENTS[::17]:
        assert (await log.holds([each.key])).keys() == {each.key}
    await log.close()


@pytest.mark.parametrize("sealed", [False, True])
async def test_the_keys_from_a_position_on(engine: Engine, cursor: Cursors, sealed: bool) -> None:
    log = await with_events(engine, cursor, sealed=sealed)
    for start in (0, 1, 30, 151, 295):
        keys = await log.keys_from(start, len(EVENTS) + 1)
        assert {event.key for event in EVENTS[max(start - 1, 0) :][:20]} <= keys
        assert len({event.key for event in EVENTS} & keys) <= 40 + 20
        assert await log.keys_from(start, start) <= keys
    await log.close()


async def test_what_was_trimmed_is_not_found(engine: Engine, cursor: Cursors) -> None:
    log = await with_events(engine, cursor, sealed=True)
    await engine.trim(log, 200)
    kept = {event.key for event in EVENTS[200:]}
    found = await log.holds({event.key for event in EVENTS})
    assert kept <= found.keys()
    assert EVENTS[0].key not in found
    await log.close()


# Retention


async def test_trimmed_events_are_gone_for_good(engine: Engine, batch_of: BatchOf, cursor: Cursors) -> None:
    limits = replace(BY_HAND, segment_events=1000)
    log = await engine.open(limits=limits)
    await log.append(batch_of(range(1, 1001)), Changes(cursor))
    await log.maintain()
    await log.append(batch_of(range(1001, 1011)), Changes(cursor))
    assert await engine.trim(log, 1005) == 1000
    assert (log.floor, log.statistics().events, log.statistics().oldest_us) == (1001, 10, 1001)
    assert await times_from(log) == list(range(1001, 1011))
    assert await engine.trim(log, 5000) == 10
    await log.close()
    log = await engine.open(limits=limits)
    assert (log.floor, log.tip, log.statistics().events) == (1011, 1010, 0)
    assert await log.read(0, 5000, EVERYTHING) is None
    await log.append(batch_of(range(2001, 2011)), Changes(cursor))
    assert await times_from(log) == list(range(2001, 2011))
    assert log.statistics().oldest_us == 2001
    await log.close()


async def test_age_trims_by_the_clock_given(engine: Engine, batch_of: BatchOf, cursor: Cursors) -> None:
    log = await filled(engine, batch_of, cursor, 1000, retention_s=0.0005, clock=lambda: 1050)
    assert log.floor == 501
    assert await times_from(log, log.floor) == list(range(501, 1001))
    assert log.statistics().oldest_us == 501
    await log.close()


# Erasing


async def test_a_deleted_accounts_records_are_in_no_store_and_no_memory(
    engine: Engine, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await filled(engine, batch_of, cursor, 500)
    said = Event(CREATE, LEAVER, b"app.bsky.feed.post", b"k", b"r", b"bafy", SECRET)
    for time in range(1001, 1300):
        await log.append(Batch.of([said, make_event(time)], [2 * time, 2 * time + 1]), Changes(cursor))
    await log.maintain()
    assert await times_from(log, wanted=ALL_OF_LEAVER)
    await log.append(Batch.of([account_deleted(), said], [3000, 3001]), Changes(cursor))
    assert (await times_from(log, 2600, wanted=ALL_OF_LEAVER))[-2:] == [3000, 3001]
    await engine.settle(log)
    for _ in range(2):
        assert await times_from(log, wanted=ALL_OF_LEAVER) == [3000, 3001]
        assert len(await times_from(log)) == log.statistics().events == 500 + 299 + 2
        engine.forget(log)
    await log.close()
    again = await engine.open()
    assert len(await times_from(again)) == again.statistics().events == 500 + 299 + 2
    await again.close()


async def test_a_segment_of_which_all_was_erased_hides_nothing(engine: Engine, cursor: Cursors) -> None:
    log = await engine.open(limits=BY_HAND)
    said = Event(CREATE, LEAVER, b"app.bsky.feed.post", b"k", b"r", b"bafy", SECRET)
    for start, did in (1, b"did:plc:a"), (101, LEAVER), (201, b"did:plc:b"):
        events = [said._replace(did=did)] * 100
        await log.append(Batch.of(events, range(start, start + 100)), Changes(cursor))
        await log.maintain()
    await log.append(Batch.of([account_deleted()], [301]), Changes(cursor))
    await engine.settle(log)
    engine.forget(log)
    expected = [*range(1, 101), *range(201, 302)]
    assert await times_from(log) == expected
    assert await times_from(log, 120) == expected[100:]
    assert await log.read(110, 190, EVERYTHING) is None
    await log.close()


async def test_erasing_can_be_turned_off(engine: Engine, cursor: Cursors) -> None:
    log = await engine.open(erase=frozenset())
    await log.append(
        Batch.of([make_event(1)._replace(did=LEAVER), account_deleted()], [1, 2]), Changes(cursor)
    )
    await log.maintain()
    assert await times_from(log) == [1, 2]
    await log.close()


# Many readers


async def test_readers_see_every_event_once_while_it_is_sealed_trimmed_and_erased(
    engine: Engine, batch_of: BatchOf, cursor: Cursors
) -> None:
    limits = LogLimits(
        segment_events=60, batch_events=20, hot_tail_events=100, trim_segments=2, upkeep_interval_s=3600.0
    )
    log = await engine.open(limits=limits)
    last = 3_000

    async def write() -> None:
        for start in range(1, last, 10):
            events = [make_event(time) for time in range(start, start + 10)]
            if start % 200 == 101:
                events[-1] = account_deleted()
            await log.append(Batch.of(events, range(start, start + 10)), Changes(cursor))
            if start % 50 == 1:
                await log.maintain()
            if start == 2_001:
                await engine.trim(log, 900)

    async def read(begin: int, wanted: Filter) -> list[int]:
        seen: list[int] = []
        position = begin
        while position <= last:
            await log.wait(position)
            stop = log.tip + 1
            seen += await times_from(log, position, stop, wanted)
            position = stop
        return seen

    filters = [EVERYTHING, Filter.parse(["app.bsky.feed.post"], []), Filter.parse([], ["did:plc:repo3"])]
    readers = [asyncio.create_task(read(1, wanted)) for wanted in filters * 3]
    await write()
    whole = Batch.of([make_event(time) for time in range(1, last + 1)], range(1, last + 1))
    for reader, wanted in zip(readers, filters * 3, strict=True):
        seen = await reader
        expected = [time for time in wanted_times(wanted, whole) if time % 200 != 110]
        assert [time for time in seen if time % 200 != 110] == expected
    await log.close()
