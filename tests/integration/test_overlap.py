"""Relays that send history again which begins before the oldest event of the log."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.builders import LIKE, account, commit, delete, error, like
from tests.relay import Act, Connection, Relay, follow, send
from tests.serving import LOOPBACK, Start, cursor, published, quick, running, source, until
from tests.subscriber import subscribe
from tests.unit.eventlog.trimming import trim

from jetstream.app import Service
from jetstream.eventlog import SourceCursor
from jetstream.limits import LogLimits
from jetstream.settings import Settings

FRAMES = 10  # of one row of the log, at most
SEGMENT = 5  # events at least: with whole rows there are 5 to 14 in a segment
# Batches in memory are short, so that what is trimmed is not found there.
LIMITS = replace(quick(batch_frames_max=FRAMES), log=LogLimits(segment_events=SEGMENT, batch_events=FRAMES))


@pytest.fixture
def start(start: Start) -> Start:
    return partial(start, limits=LIMITS)


def commits(first: int, last: int) -> list[tuple[int, bytes]]:
    return [(seq, commit(seq)) for seq in range(first, last + 1)]


async def from_the_start(connection: Connection) -> None:
    """Serve all there is, whatever the cursor."""
    connection.cursor = 0
    await connection.accept()
    await follow(connection)


def the_start_and_no_more(count: int) -> Act:
    async def act(connection: Connection) -> None:
        connection.cursor = 0
        await connection.accept()
        await follow(connection, count)

    return act


async def trimmed(service: Service, count: int) -> int:
    """Seal all, and trim so many events, or up to 14 fewer; return how many are left."""
    await service.log.maintain()
    await trim(service.log, (await times(service))[count])
    return service.log.statistics().events


async def times(service: Service) -> list[int]:
    count = service.log.statistics().events
    async with subscribe(service.port, cursor=1) as subscriber:
        return [event["time_us"] for event in await subscriber.events(count)]


async def counts(service: Service) -> Counter[int]:
    """Return how often each commit is in the log, by its number, once all that was read is stored."""
    await until(lambda: [each.seq for each in service.log.cursors.values()] == [source(service).seq])
    async with subscribe(service.port, cursor=1) as subscriber:
        events = await subscriber.events(service.log.statistics().events)
    return Counter(int(event["commit"]["rkey"]) for event in events if "commit" in event)


@pytest.mark.parametrize("gone", [20, 100, 160])
async def test_history_from_before_the_log_is_recognised_where_the_log_begins(
    gone: int, relay: Relay, start: Start
) -> None:
    relay.publish(commits(1, 200))
    service = await start(upstream_cursor=0)
    await published(service, 200)
    left = await trimmed(service, gone)
    relay.script.append(from_the_start)
    await relay.cut()
    await relay.wait_accepted(2)
    relay.publish(commits(201, 230))
    await published(service, 230)
    await until(lambda: service.log.statistics().events == 230)
    found = await counts(service)
    assert 200 - gone <= left < 200 - gone + SEGMENT + FRAMES
    assert found == Counter(range(1, 231))
    assert cursor(service) == SourceCursor(230)


@pytest.mark.parametrize("killed_at", [3, 50, 99, 130])
async def test_a_restart_of_the_server_amid_such_history_changes_nothing(
    killed_at: int, relay: Relay, start: Start, tmp_path: Path
) -> None:
    relay.publish(commits(1, 200))
    settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=0)
    async with running(Service(settings, LIMITS)) as service:
        await published(service, 200)
        await trimmed(service, 100)
        relay.script += [the_start_and_no_more(killed_at)]
        await relay.cut()
        await relay.wait_asked(3)
    relay.publish(commits(201, 210))
    service = await start()
    await until(lambda: source(service).seq == 210)
    assert await counts(service) >= Counter(range(101, 211))
    assert max((await counts(service)).values()) == 1


async def test_history_from_before_a_live_start_is_recognised(relay: Relay, start: Start) -> None:
    relay.publish(commits(1, 100))
    service = await start()
    await relay.wait_accepted(1)
    relay.publish(commits(101, 101))
    await published(service, 101)
    relay.script += [from_the_start, from_the_start]
    await relay.cut()
    await until(lambda: service.log.statistics().events == 101)
    relay.publish(commits(102, 150))
    await until(lambda: service.log.statistics().events >= 150)
    await relay.cut()
    relay.publish(commits(151, 160))
    await until(lambda: source(service).seq == 160)
    assert await counts(service) == Counter(range(1, 161))


async def test_history_from_before_a_live_start_in_a_log_of_another_upstream(
    relay: Relay, start: Start, tmp_path: Path
) -> None:
    async with Relay() as other:
        other.publish(commits(9_001, 9_050))
        settings = Settings(upstream=other.url, listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=9_000)
        async with running(Service(settings, LIMITS)) as service:
            await published(service, 9_050)
    relay.publish(commits(1, 100))
    service = await start()
    await relay.wait_accepted(1)
    relay.publish(commits(101, 150))
    await published(service, 150)
    relay.script.append(from_the_start)
    await relay.cut()
    relay.publish(commits(151, 160))
    await until(lambda: source(service).seq == 160)
    assert await counts(service) == Counter([*range(1, 161), *range(9_001, 9_051)])


async def test_history_after_a_cursor_in_the_future_is_recognised(relay: Relay, start: Start) -> None:
    relay.publish(commits(1, 200))
    service = await start(upstream_cursor=0)
    await published(service, 200)
    await trimmed(service, 100)
    relay.script += [send(error("FutureCursor"), wait=False), from_the_start]
    await relay.cut()
    await relay.wait_accepted(3)
    relay.publish(commits(201, 210))
    await until(lambda: source(service).seq == 210)
    assert await counts(service) == Counter(range(1, 211))


async def test_records_that_were_forgotten_do_not_have_those_after_them_come_twice(
    relay: Relay, start: Start
) -> None:
    gone = "did:plc:" + "b" * 24
    relay.publish(commits(1, 50))
    relay.publish((seq, commit(seq, repo=gone)) for seq in range(51, 61))
    relay.publish([*commits(61, 100), (101, account(101, did=gone, active=False, status="deleted"))])
    relay.publish(commits(102, 140))
    service = await start(upstream_cursor=0)
    await published(service, 140)
    await service.log.maintain()
    await until(lambda: service.log.statistics().events == 130)
    relay.script.append(from_the_start)
    await relay.cut()
    relay.publish(commits(141, 150))
    await until(lambda: source(service).seq == 150)
    found = await counts(service)
    assert {seq: count for seq, count in found.items() if not 51 <= seq <= 60} == dict.fromkeys(
        [*range(1, 51), *range(61, 101), *range(102, 151)], 1
    )


async def test_a_log_that_is_trimmed_meanwhile_is_looked_at_again(relay: Relay, start: Start) -> None:
    relay.publish(commits(1, 200))
    service = await start(upstream_cursor=0)
    await published(service, 200)
    await trimmed(service, 60)
    trims: list[int] = []

    async def slowly(connection: Connection) -> None:
        connection.cursor = 0
        await connection.accept()
        for seq, raw in relay.history[:50]:
            await connection.send(raw)
            assert seq
        await until(lambda: service.log.statistics().events >= 190)
        trims.append(await trimmed(service, 100))
        for _, raw in relay.history[50:]:
            await connection.send(raw)
        await connection.over.wait()

    relay.script.append(slowly)
    await relay.cut()
    await until(lambda: trims and source(service).seq == 200)
    assert await counts(service) <= Counter(range(1, 201))


async def test_a_true_restart_ends_the_search_once_retention_has_passed_it(
    relay: Relay, start: Start
) -> None:
    relay.publish(commits(901, 1_000))
    service = await start(upstream_cursor=900)
    await published(service, 1_000)
    relay.history = [(seq, commit(seq, [like(5_000 + seq)])) for seq in range(1, 101)]
    relay.script.append(from_the_start)
    await relay.cut()
    await until(lambda: source(service).seq == 100)
    tracker = source(service)._pipeline.tracker
    assert (tracker.may_recur, len(source(service)._pipeline.history_keys) >= 100) == (True, True)
    assert await trimmed(service, 160) <= 80
    relay.publish([(101, commit(101, [delete(f"{LIKE}/1")]))])
    await until(lambda: source(service).seq == 101)
    assert not tracker.may_recur
    assert await counts(service) <= Counter([*range(5_001, 5_101), 1])


async def test_a_frame_that_an_inclusive_relay_resends_after_a_restart_brings_no_old_cursor_back(
    start: Start,
) -> None:
    async with Relay(inclusive=True) as relay:
        relay.publish(commits(901, 1_000))
        service = await start(upstream=relay.url, upstream_cursor=900)
        await published(service, 1_000)
        relay.history = [(seq, commit(seq, [like(5_000 + seq)])) for seq in range(1, 4)]
        relay.script.append(from_the_start)  # its numbers begin at 1 again
        await relay.cut()
        await until(lambda: source(service).seq == 3)
        await relay.cut()
        await relay.wait_accepted(3)  # from here on it follows cursors
        relay.history += [(seq, commit(seq, [like(5_000 + seq)])) for seq in range(4, 11)]
        await relay.cut()
        relay.publish([(11, commit(11, [like(5_011)]))])
        await until(lambda: source(service).seq == 11)
        assert await counts(service) == Counter([*range(901, 1_001), *range(5_001, 5_012)])
        assert [asked.cursor for asked in relay.asked[2:]] == [3, 3]
