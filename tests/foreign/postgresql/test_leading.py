"""One process leads, the others stand by; what the next one knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.foreign.postgresql.engine import PostgresEngine, new_engine
from tests.foreign.postgresql.proxy import proxied
from tests.foreign.postgresql.server import Server
from tests.unit.eventlog.reading import times_from

from jetstream.clock import unix_us
from jetstream.errors import Fenced, LogError, LogFormat
from jetstream.eventlog import Changes, Cursors, SourceCursor
from jetstream.eventlog.postgresql.leading import Candidate, lead
from jetstream.eventlog.postgresql.store import PostgresLog, PostgresOptions
from jetstream.eventlog.postgresql.term import AHEAD_US, Term
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch

BatchOf = Callable[[range], Batch]
BY_HAND = LogLimits(segment_events=100, upkeep_interval_s=3600.0)
HOUR_US = 3_600_000_000


async def standby(engine: PostgresEngine, **candidate: object) -> tuple[PostgresLog, asyncio.Task[Term]]:
    log = await PostgresLog.open(engine.address, PostgresOptions(limits=BY_HAND, primary=True))
    options = {"takeover_s": 0.8, "look_s": 0.05, **candidate}
    return log, asyncio.create_task(lead(log, Candidate(**options)))  # type: ignore[arg-type]


async def test_a_standby_waits_for_a_leader_that_lives_and_replaces_one_that_does_not(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    await leader.append(batch_of(range(1, 5)), Changes(cursor))
    log, leading = await standby(engine)
    beats: list[int] = []
    while len(beats) < 5:  # two seconds
        ((beat,),) = await engine.execute("SELECT beat FROM leader")
        if beats[-1:] != [beat]:
            beats.append(beat)
        await asyncio.sleep(0.05)
    assert not leading.done()
    await leader.abandon()
    term = await leading
    assert (term.tip, term.cursors) == (4, cursor)
    await term.append(batch_of(range(5, 7)), Changes(cursor))
    assert await times_from(log) == list(range(1, 7))
    await term.close()


async def test_a_leader_that_resigns_is_replaced_at_once(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    await leader.append(batch_of(range(1, 5)), Changes(cursor))
    _, leading = await standby(engine, takeover_s=3600.0)
    await leader.close()
    term = await leading
    await term.close()


async def test_of_many_standbys_one_leads(engine: PostgresEngine) -> None:
    await (await engine.open()).close()
    standbys = [await standby(engine, takeover_s=3600.0) for _ in range(5)]
    done, waiting = await asyncio.wait([task for _, task in standbys], return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(waiting)) == (1, 4)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await done.pop().result().resign()
    for log, _ in standbys:
        await log.close()


async def test_a_process_whose_clock_is_wrong_does_not_lead_and_says_why(engine: PostgresEngine) -> None:
    await (await engine.open()).close()
    offset_us = 2 * HOUR_US
    said: list[str | None] = []
    log, leading = await standby(engine, clock=lambda: unix_us() + offset_us, on_refusal=said.append)
    while not said:
        await asyncio.sleep(0.01)
    assert said == ["its clock is 7,200 s off the database's; set the clock right"]
    assert not leading.done()
    offset_us = 0
    term = await leading
    assert said[1:] == [None]
    await term.resign()
    await log.close()


async def test_a_process_of_other_upstreams_does_not_lead_and_says_why(
    engine: PostgresEngine, batch_of: BatchOf
) -> None:
    leader = await engine.open()
    await leader.append(batch_of(range(1, 3)), Changes({"a": SourceCursor(1), "b": SourceCursor(2)}))
    await leader.close()
    said: list[str | None] = []
    log, leading = await standby(engine, sources=["b", "c"], on_refusal=said.append)
    while not said:
        await asyncio.sleep(0.01)
    assert said[0] is not None
    assert "the log's upstreams are a, b, and its own are b, c" in said[0]
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    other, same = await standby(engine, sources=["b", "a"])
    await (await same).resign()
    await other.close()
    await log.close()


async def test_after_a_promotion_positions_continue_above_the_reserved_ones(
    own_server: Callable[..., Server], batch_of: BatchOf, cursor: Cursors
) -> None:
    primary = own_server(synchronous_standby_names="")
    replica = primary.standby()
    try:
        address = f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{replica.port}/postgres"
        engine = PostgresEngine(address)
        log = await engine.open(limits=BY_HAND)
        await log.append(batch_of(range(1, 5)), Changes(cursor))
        reader = await PostgresLog.open(replica.address)
        await reader.wait(4)
        replica.stop()  # what follows is lost: readers of the primary may have seen it
        await log.append(batch_of(range(5, 10)), Changes(cursor))
        primary.kill()
        replica.start()
        await log.abandon()
        replica.promote()
        log = await engine.open(limits=BY_HAND)
        assert log.tip >= 30_000_000  # positions up to there were reserved
        assert await times_from(log) == [1, 2, 3, 4]
        first = log.tip + 1
        await log.append(batch_of(range(first, first + 3)), Changes(cursor))
        assert (await times_from(log))[-3:] == list(range(first, first + 3))
        await reader.wait(first + 2)
        assert (await times_from(reader))[:4] == [1, 2, 3, 4]
        await reader.close()
        await log.close()
        again = await engine.open(limits=BY_HAND)
        assert again.tip == first + 2
        await again.close()
    finally:
        replica.kill()


@pytest.mark.parametrize("told", [40_000_000, 40_000_001])
async def test_the_next_term_gives_out_no_position_below_the_watermark(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors, told: int
) -> None:
    """The clock of its process may be behind that of the one before."""
    leader = await engine.open(limits=BY_HAND)
    await leader.append(batch_of(range(1, 5)), Changes(cursor))
    leader.term.next_position = lambda: told
    await leader.upkeep._transactions.beat()
    await leader.maintain()
    await leader.abandon()
    ((reserved_us,),) = await engine.execute("SELECT reserved_us FROM leader")
    assert reserved_us == told + AHEAD_US  # for a promotion, after which the heartbeat may be lost
    again = await engine.open(limits=BY_HAND)
    assert (again.tip, again.next_position()) == (39_999_999, 40_000_000)
    await again.append(batch_of(range(40_000_000, 40_000_002)), Changes(cursor))
    assert await times_from(again) == [1, 2, 3, 4, 40_000_000, 40_000_001]
    await again.close()


async def test_a_term_that_is_over_tells_nothing_more(engine: PostgresEngine) -> None:
    old = await engine.open(limits=BY_HAND)
    new = await engine.open(limits=BY_HAND)
    old.term.next_position = lambda: 10_000
    await old.upkeep._transactions.beat()
    with pytest.raises(Fenced):
        old.term.raise_failure()
    assert (await engine.execute("SELECT beat < 10000 - 10000 % 256 FROM leader"))[0][0]
    await new.close()
    await old.close()


async def test_leaders_that_count_their_heartbeats_are_followed_and_replaced(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    """As those of an earlier version do."""
    await (await engine.open(limits=BY_HAND)).abandon()
    await engine.execute("UPDATE leader SET beat = 4711")
    log, leading = await standby(engine)
    assert log.watermark == 4_608
    term = await leading
    await term.append(batch_of(range(5_000, 5_003)), Changes(cursor))
    assert term.tip == 5_002
    await term.close()


async def test_a_leader_whose_database_is_away_waits_for_answers(
    own_server: Callable[..., Server], batch_of: BatchOf, cursor: Cursors
) -> None:
    """As it does with an append: else an outage would end the term of a server with several upstreams."""
    server = own_server()
    leader = await PostgresEngine(server.address).open(limits=BY_HAND)
    did, state = bytes(15), bytes(24)
    batch = batch_of(range(1, 5))
    await leader.append(batch, Changes(cursor, {did: state}))
    first = batch.event(0)
    unknown = first._replace(rev=b"another").key
    server.kill()
    asked = [leader.load_repos([did, b"other" * 3]), leader.holds([unknown]), leader.keys_from(1, 5)]
    answers = [asyncio.create_task(each) for each in asked]
    await asyncio.wait(answers, timeout=1.0)
    server.start()
    _, found, keys = await asyncio.gather(*answers)
    assert found == {}
    assert first.key in keys
    assert (leader.repo(did), leader.repo(b"other" * 3)) == (state, None)
    await leader.append(batch_of(range(5, 7)), Changes(cursor))
    await leader.close()


async def test_with_a_synchronous_standby_a_promotion_loses_nothing(
    own_server: Callable[..., Server], batch_of: BatchOf, cursor: Cursors
) -> None:
    """The primary is lost while an append waits for the standby: its outcome is asked of the new primary."""
    primary = own_server()
    replica = primary.standby()
    try:
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{replica.port}"
        engine = PostgresEngine(f"postgresql://postgres@{hosts}/postgres")
        log = await engine.open(limits=BY_HAND)
        await engine.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await engine.execute("SELECT pg_reload_conf()")
        await log.append(batch_of(range(1, 5)), Changes(cursor))
        while await engine.execute("SELECT sync_state FROM pg_stat_replication") != [("sync",)]:
            await asyncio.sleep(0.02)
        replica.freeze()
        appending = asyncio.create_task(log.append(batch_of(range(5, 10)), Changes(cursor)))
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%INSERT INTO tail%'"
        )
        while not await engine.execute(waiting):
            await asyncio.sleep(0.02)
        assert not appending.done()
        primary.kill()
        replica.thaw()
        replica.promote()
        await appending
        await log.append(batch_of(range(10, 12)), Changes(cursor))
        assert await times_from(log) == list(range(1, 12))
        await log.close()
        again = await engine.open(limits=BY_HAND)
        assert await times_from(again) == list(range(1, 12))
        await again.close()
    finally:
        replica.kill()


async def test_an_append_whose_wait_was_ended_is_confirmed(
    own_server: Callable[..., Server], batch_of: BatchOf, cursor: Cursors
) -> None:
    """Somebody cancels the wait for a standby: the append returns only when a later commit is replicated."""
    primary = own_server()
    replica = primary.standby()
    try:
        engine = PostgresEngine(primary.address)
        log = await engine.open(limits=BY_HAND)
        await engine.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await engine.execute("SELECT pg_reload_conf()")
        while await engine.execute("SELECT sync_state FROM pg_stat_replication") != [("sync",)]:
            await asyncio.sleep(0.02)
        await log.append(batch_of(range(1, 5)), Changes(cursor))  # it has reserved positions now
        replica.freeze()
        appending = asyncio.create_task(log.append(batch_of(range(5, 7)), Changes(cursor)))
        waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE $1"
        while not await engine.execute(f"SELECT pg_cancel_backend(pid) {waiting}", "%INSERT INTO tail%"):
            await asyncio.sleep(0.02)
        while not await engine.execute(f"SELECT 1 {waiting}", "UPDATE leader SET beat = beat"):
            await asyncio.sleep(0.02)
        assert not appending.done()
        replica.thaw()
        await appending
        assert await times_from(log) == [1, 2, 3, 4, 5, 6]
        await log.close()
    finally:
        replica.thaw()
        replica.kill()


async def test_tables_of_another_version_are_refused(server: Server) -> None:
    engine = await new_engine(server.address, "other_version")
    await (await engine.open()).close()
    await engine.execute("UPDATE state SET version = 99")

    with pytest.raises(LogFormat, match="version 99"):
        await PostgresLog.open(engine.address)
    with pytest.raises(LogError, match="has no tables of a log"):
        await PostgresLog.open((await new_engine(server.address, "empty")).address)


async def test_a_term_begins_when_the_log_was_read_up_to_it(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    leader.term.notifies = False
    options = PostgresOptions(limits=BY_HAND, primary=True, poll_s=3600.0, fresh_s=3600.0)
    log = await PostgresLog.open(engine.address, options)
    for start in range(1, 1_001, 10):  # more than one look takes
        await leader.append(batch_of(range(start, start + 10)), Changes(cursor))
    assert log.tip < 1_000
    await leader.close()
    term = await lead(log, Candidate())
    assert (term.tip, log.tip) == (1_000, 1_000)
    await term.append(batch_of(range(1_001, 1_003)), Changes(cursor))
    assert log.tip == 1_002
    await term.close()


async def test_a_reader_of_a_term_that_was_replaced_waits_for_the_next_one(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    old = await engine.open(limits=BY_HAND)
    waiting = asyncio.create_task(old.term.wait(4))
    new = await engine.open(limits=BY_HAND)
    await new.append(batch_of(range(1, 5)), Changes(cursor))
    async with asyncio.timeout(20):
        await waiting
    assert await times_from(old) == [1, 2, 3, 4]
    await old.close()
    await new.close()


# Outages


class Clocks:
    """Of a standby: the monotonic one stands still, and the other one is asked twice at each look."""

    def __init__(self) -> None:
        self.now = 100.0
        self._asked = 0

    def monotonic(self) -> float:
        return self.now

    def clock(self) -> int:
        self._asked += 1
        return unix_us()

    async def looks(self, leading: asyncio.Task[Term], count: int = 3) -> None:
        """Return after some whole looks, or when the process leads."""
        until = self._asked + 2 * (count + 1)
        while self._asked < until and not leading.done():
            await asyncio.sleep(0.01)

    async def pass_until(self, leading: asyncio.Task[Term]) -> Term:
        """Let time pass until the process leads."""
        while not leading.done():
            self.now += 1.0
            await self.looks(leading, 1)
        return await leading


async def test_an_outage_of_the_database_is_no_silence_of_the_leader(
    own_server: Callable[..., Server], batch_of: BatchOf, cursor: Cursors
) -> None:
    """The standby is back first: the leader has as long for that as it may be silent."""
    server, clocks = own_server(), Clocks()
    engine = PostgresEngine(server.address)
    leader = await engine.open(limits=BY_HAND)
    await leader.append(batch_of(range(1, 5)), Changes(cursor))
    await leader.abandon()
    log, leading = await standby(engine, takeover_s=10.0, clock=clocks.clock, monotonic=clocks.monotonic)
    await clocks.looks(leading)
    await asyncio.to_thread(server.kill)
    clocks.now += 60.0
    await asyncio.to_thread(server.start)
    await clocks.looks(leading)
    assert not leading.done()
    clocks.now += 9.0
    await clocks.looks(leading)
    assert not leading.done()
    term = await clocks.pass_until(leading)  # it did not come back
    assert await times_from(log) == [1, 2, 3, 4]
    await term.close()


async def test_time_in_which_the_database_does_not_answer_is_no_silence_of_the_leader(
    engine: PostgresEngine, server: Server
) -> None:
    await (await engine.open(limits=BY_HAND)).abandon()
    clocks = Clocks()
    candidate = Candidate(10.0, 0.05, clock=clocks.clock, monotonic=clocks.monotonic)
    async with proxied(server.port) as proxy:
        address = engine.address.replace(f":{server.port}/", f":{proxy.port}/")
        never = PostgresOptions(limits=BY_HAND, primary=True, poll_s=3600.0, fresh_s=3600.0)
        log = await PostgresLog.open(address, never)
        leading = asyncio.create_task(lead(log, candidate))
        await clocks.looks(leading)
        proxy.to_client.clear()
        await proxy.held.wait()  # the answer of a look
        clocks.now += 60.0
        proxy.to_client.set()
        await clocks.looks(leading)
        assert not leading.done()
        await (await clocks.pass_until(leading)).close()
