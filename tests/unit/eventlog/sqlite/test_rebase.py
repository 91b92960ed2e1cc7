"""Positions in the future come back to the present, in order, and with all that refers to them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.eventlog.events import make_event
from tests.unit.eventlog.reading import read_all
from tests.unit.eventlog.trimming import trim

from jetstream.errors import LogLocked
from jetstream.eventlog import Changes, Gap, SourceCursor
from jetstream.eventlog.sqlite.check import check
from jetstream.eventlog.sqlite.rebase import Rebased, rebase
from jetstream.eventlog.sqlite.reservation import Machine, Reservation
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, Event
from jetstream.model.filter import EVERYTHING, Filter

BatchOf = Callable[[range], Batch]
NOW = 1_000_000
LIMITS = LogLimits(segment_events=20)
FAR = 10**15
CURSOR = {"a:1": SourceCursor(7)}


async def stored(directory: Path, *runs: range, now: int = NOW) -> list[Event]:
    """Store runs of events at these positions, most of them in segments, and give all in order."""
    log = await SqliteLog.open(directory, clock=lambda: now, limits=LIMITS)
    for run in runs:
        for start in range(run.start, run.stop, 7 * run.step):
            times = range(start, min(start + 7 * run.step, run.stop), run.step)
            await log.append(Batch.of([make_event(time) for time in times], times), Changes(CURSOR))
        await log.maintain()
    await log.close()
    return [make_event(time) for run in runs for time in run]


async def held(directory: Path, wanted: Filter = EVERYTHING) -> tuple[list[int], list[Event]]:
    log = await SqliteLog.open(directory, clock=lambda: NOW, limits=LIMITS)
    stamped = await read_all(log, log.floor, wanted=wanted)
    await log.close()
    return [time for time, _ in stamped], [event for _, event in stamped]


@pytest.mark.parametrize(
    "runs",
    [
        (range(1, 100), range(FAR, FAR + 100)),
        (range(FAR, FAR + 100),),
        (range(NOW - 50, NOW + 51),),
        (range(NOW - 30, NOW), range(FAR, FAR + 3_000, 3)),  # more than there is room for
        (range(1, 3), range(FAR, FAR + 1)),
    ],
)
async def test_what_is_ahead_ends_now_in_the_same_order(tmp_path: Path, runs: tuple[range, ...]) -> None:
    events = await stored(tmp_path, *runs)
    done = rebase(tmp_path, NOW)
    times, after = await held(tmp_path)
    assert after == events
    assert times[-1] == done.tip_us == NOW
    assert times == sorted(set(times))
    assert done.tip_before_us == runs[-1][-1]
    assert done.events >= sum(time > NOW for run in runs for time in run)
    assert check(tmp_path).problems == []
    assert Reservation(tmp_path).read()[1] == NOW


async def test_gaps_stay_with_their_events(tmp_path: Path) -> None:
    await stored(tmp_path, range(1, 100), range(FAR, FAR + 100))
    log = await SqliteLog.open(tmp_path, clock=lambda: NOW)
    # Two at one event, one at another, and one just after the newest.
    found = [(50, "a"), (FAR + 7, "a"), (FAR + 7, "b"), (FAR + 8, "a"), (FAR + 100, "a")]
    gaps = [Gap(time_us, did, "", "", "sync") for time_us, did in found]
    await log.append(Batch.of((), ()), Changes(CURSOR, gaps=gaps))
    await log.close()
    old, _ = await held(tmp_path)
    rebase(tmp_path, NOW)
    new, _ = await held(tmp_path)
    moved = dict(zip(old, new, strict=True)) | {FAR + 100: NOW + 1}
    log = await SqliteLog.open(tmp_path, clock=lambda: NOW)
    assert [(gap.time_us, gap.did) for gap in await log.gaps(0, 9)] == [(moved[at], did) for at, did in found]
    await log.close()


async def test_what_is_not_ahead_stays_where_it_is(tmp_path: Path) -> None:
    await stored(tmp_path, range(1, 100), range(FAR, FAR + 100))
    rebase(tmp_path, NOW)
    times, _ = await held(tmp_path)
    assert times[:99] == list(range(1, 100))


async def test_filters_find_their_events_at_the_new_positions(tmp_path: Path) -> None:
    await stored(tmp_path, range(1, 100), range(FAR, FAR + 300))
    wanted = Filter.parse(["com.example.nothing"], [])
    _, before = await held(tmp_path, wanted)
    rebase(tmp_path, NOW)
    times, after = await held(tmp_path, wanted)
    assert after == before
    assert len(after) > 20
    assert times[-1] <= NOW


async def test_nothing_ahead_changes_nothing(tmp_path: Path) -> None:
    await stored(tmp_path, range(1, 100))
    before = (tmp_path / DATABASE).read_bytes()
    assert rebase(tmp_path, NOW) == Rebased(0, 99, 99)
    assert (tmp_path / DATABASE).read_bytes() == before


async def test_an_empty_log_ahead_of_the_clock_comes_back_as_well(tmp_path: Path) -> None:
    await stored(tmp_path, range(FAR, FAR + 100))
    log = await SqliteLog.open(tmp_path, clock=lambda: NOW)
    await trim(log, FAR + 100)
    await log.close()
    assert rebase(tmp_path, NOW).tip_us == NOW
    log = await SqliteLog.open(tmp_path, clock=lambda: NOW)
    assert (log.tip, log.floor) == (NOW, NOW + 1)
    await log.append(Batch.of([make_event(1)], [NOW + 5]), Changes(CURSOR))
    assert (await log.read(0, FAR, EVERYTHING)) is not None
    await log.close()


async def test_the_floor_is_that_of_the_same_events(tmp_path: Path) -> None:
    await stored(tmp_path, range(1, 100), range(FAR, FAR + 100))
    log = await SqliteLog.open(tmp_path, clock=lambda: NOW)
    await trim(log, FAR + 50)
    await log.close()
    _, before = await held(tmp_path)
    rebase(tmp_path, NOW)
    _, after = await held(tmp_path)
    assert after == before


async def test_what_was_to_be_erased_still_is(tmp_path: Path) -> None:
    """An account went among positions that are ahead; its records before that go, and those after it stay."""
    did = b"did:plc:leaver"
    said = Event(CREATE, did, b"app.bsky.feed.post", b"k", b"r", b"bafy", b'{"a":1}')
    left = Event(ACCOUNT, did, b"", b"", b"", b"", b'{"active":false,"status":"deleted"}')
    log = await SqliteLog.open(tmp_path, clock=lambda: NOW)
    await log.append(Batch.of([said, left, said], [FAR, FAR + 1, FAR + 2]), Changes(CURSOR))
    await log.close()
    rebase(tmp_path, NOW)
    _, events = await held(tmp_path)
    assert events == [left, said]


async def test_each_account_keeps_its_own_erasure_though_one_moves_to_where_another_was(
    tmp_path: Path,
) -> None:
    """All positions move by 20: the end of the first account to that of the second."""
    moved, first, second = 20, b"did:plc:a", b"did:plc:b"
    times = range(NOW - 29, NOW + moved + 1)
    events = [make_event(time) for time in times]
    ended = Event(ACCOUNT, first, b"", b"", b"", b"", b'{"active":false,"status":"deleted"}')
    said = Event(CREATE, first, b"app.bsky.feed.post", b"k", b"r", b"bafy", b'{"a":1}')
    events[times.index(NOW + 5)] = said
    events[times.index(NOW + 10)] = ended
    events[times.index(NOW - 10)] = ended._replace(did=second)
    log = await SqliteLog.open(tmp_path, clock=lambda: NOW)
    await log.append(Batch.of(events, times), Changes(CURSOR))
    await log.close()
    rebase(tmp_path, NOW)
    _, after = await held(tmp_path)
    assert after == [event for event in events if event != said]


async def test_events_come_back_to_when_they_were_stored_as_far_as_that_is_known(tmp_path: Path) -> None:
    await stored(tmp_path, range(FAR, FAR + 100), now=NOW - 1_000)
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("INSERT OR REPLACE INTO stored VALUES (?, ?)", (FAR + 49, NOW - 500))
        connection.execute("INSERT OR REPLACE INTO stored VALUES (?, ?)", (FAR + 99, NOW - 100))
    connection.close()
    rebase(tmp_path, NOW)
    times, _ = await held(tmp_path)
    assert (times[49], times[99]) == (NOW - 500, NOW - 100)


async def test_a_transaction_that_fails_leaves_the_log_as_it_was(
    tmp_path: Path,
) -> None:
    events = await stored(tmp_path, range(1, 100), range(FAR, FAR + 100))

    def sync(_descriptor: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebase(tmp_path, NOW, Reservation(tmp_path, Machine("this-boot", sync=sync)))
    times, after = await held(tmp_path)
    assert after == events
    assert times[-1] == FAR + 99


async def test_no_server_may_be_running(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path)
    with pytest.raises(LogLocked):
        rebase(tmp_path, NOW)
    await log.close()
