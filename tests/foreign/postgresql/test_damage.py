"""What is damaged is skipped and reported, as in a file: edges, the writer and its upkeep go on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs
from tests.foreign.postgresql.engine import Leading, PostgresEngine
from tests.foreign.postgresql.server import Server
from tests.unit.eventlog.reading import times_from

from jetstream.conditions import Conditions
from jetstream.eventlog import Changes, Cursors, SourceCursor
from jetstream.eventlog.postgresql.leading import Candidate, lead
from jetstream.eventlog.postgresql.store import PostgresLog, PostgresOptions
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, Event
from jetstream.model.filter import Filter

BatchOf = Callable[[range], Batch]
BY_HAND = LogLimits(segment_events=100, hot_tail_events=150, batch_events=30, upkeep_interval_s=3600.0)
NEVER_S = 3600.0
GARBAGE = "decode('1234', 'hex')"


async def filled(engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors, last: int) -> Leading:
    log = await engine.open(limits=BY_HAND)
    for start in range(1, last, 10):
        await log.append(batch_of(range(start, start + 10)), Changes(cursor))
    await log.maintain()
    return log


@pytest.mark.parametrize("column", ["times", "kinds", "dids", "bodies"])
async def test_a_damaged_segment_is_skipped_and_reported_once(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors, column: str
) -> None:
    leader = await filled(engine, batch_of, cursor, 350)
    await engine.execute(f"UPDATE segment SET {column} = {GARBAGE} WHERE last_us = 200")
    conditions = Conditions()
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, conditions=conditions))
    with capture_logs() as lines:
        for _ in range(3):
            assert await times_from(edge) == [*range(1, 101), *range(201, 351)]
            assert await times_from(edge, 150) == list(range(201, 351))
    assert edge.statistics().damaged == 1
    assert "1 damaged part(s), the first from position 101 to 200" in conditions.reasons["damage"]
    assert "restore the database from a backup" in conditions.reasons["damage"]
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == [
        "log: skipped a damaged part",
        "degraded: the log has a damaged part",
    ]
    await engine.trim(leader, 250)
    await edge.looked_again()
    assert conditions.reasons == {}
    assert edge.statistics().damaged == 1
    await edge.close()
    await leader.close()


@pytest.mark.parametrize("column", ["collection_set", "accounts", "did_bits"])
async def test_what_a_segment_says_of_itself_may_be_damaged_and_its_events_are_whole(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors, column: str
) -> None:
    leader = await filled(engine, batch_of, cursor, 350)
    wanted = Filter.parse(["app.bsky.feed.post"], ["did:plc:repo3"])
    whole = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND))
    expected = await times_from(whole, wanted=wanted)
    await whole.close()
    await engine.execute(f"UPDATE segment SET {column} = {GARBAGE} WHERE last_us = 200")
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND))
    assert await times_from(edge, wanted=wanted) == expected
    assert edge.statistics().damaged == 0
    await edge.close()
    await leader.close()


async def test_a_damaged_row_of_the_tail_is_skipped_by_all_that_read_it(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    leader.term.notifies = False
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, poll_s=NEVER_S, fresh_s=NEVER_S))
    for start in range(1, 51, 10):
        await leader.append(batch_of(range(start, start + 10)), Changes(cursor))
    await engine.execute(f"UPDATE tail_a SET data = {GARBAGE} WHERE last_us = 20")
    expected = [*range(1, 11), *range(21, 51)]
    await edge.looked_again()  # it follows
    assert (edge.tip, await times_from(edge)) == (50, expected)
    late = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND))  # it reads what is not sealed
    assert (late.tip, await times_from(late)) == (50, expected)
    late.hot_tail.drop_before(51)  # it reads rows in a thread
    assert await times_from(late) == expected
    assert edge.statistics().damaged == late.statistics().damaged == 1
    await edge.close()
    await late.close()
    await leader.close()


async def test_upkeep_leaves_out_what_is_damaged_and_the_term_goes_on(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    for start in range(1, 151, 10):
        await leader.append(batch_of(range(start, start + 10)), Changes(cursor))
    await engine.execute(f"UPDATE tail_a SET data = {GARBAGE} WHERE last_us = 50")
    await leader.maintain()
    await leader.upkeep.rotate()
    await leader.append(batch_of(range(151, 161)), Changes(cursor))
    engine.forget(leader)
    assert await times_from(leader) == [*range(1, 41), *range(51, 161)]
    assert not leader.term.ended.is_set()
    assert leader.statistics().damaged == 1
    await leader.close()


async def test_a_log_whose_cursors_are_damaged_is_not_continued(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    await leader.append(batch_of(range(1, 5)), Changes(cursor))
    await leader.close()
    before = await engine.execute("SELECT * FROM term")
    await engine.execute("UPDATE tail_a SET cursors = '[[' WHERE cursors IS NOT NULL")
    log = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, primary=True))
    said: list[str | None] = []
    leading = asyncio.create_task(lead(log, Candidate(look_s=0.02, on_refusal=said.append)))
    while not said:
        await asyncio.sleep(0.01)
    assert said[0] is not None
    assert "the cursors of a row of the tail are damaged" in said[0]
    assert await engine.execute("SELECT * FROM term") == before
    await engine.execute("UPDATE tail_a SET cursors = '[[\"a\",5,null,null,null,null]]' WHERE cursors <> ''")
    term = await leading
    assert term.cursors == {"a": SourceCursor(5)}
    await term.close()


async def test_what_the_database_finds_damaged_is_skipped(
    own_server: Callable[..., Server], cursor: Cursors
) -> None:
    """A page of a file is lost, on which parts of a segment are."""
    server = own_server()
    engine = PostgresEngine(server.address)
    leader = await engine.open(limits=BY_HAND)
    dice = random.Random(1)
    for start in range(1, 1_000, 100):
        events = [
            Event(CREATE, b"did:plc:a", b"a.b.c", b"k", b"r", b"c", dice.randbytes(500).hex().encode())
            for _ in range(100)
        ]
        await leader.append(Batch.of(events, range(start, start + 100)), Changes(cursor))
    await leader.maintain()
    ((path,),) = await engine.execute(
        "SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = 'segment'::regclass"
    )
    await leader.close()
    await asyncio.to_thread(server.stop)
    with (server.data / path).open("r+b") as file:
        file.seek(8_192 * 20)
        file.write(b"\xff" * 8_192)
    await asyncio.to_thread(server.start)
    edge = await PostgresLog.open(server.address, PostgresOptions(BY_HAND))
    found = await times_from(edge)
    assert 700 <= len(found) < 1_000
    damaged = edge.statistics().damaged
    assert len(found) == 1_000 - 100 * damaged
    await edge.close()
