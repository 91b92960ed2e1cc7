"""Gaps and accounts are stored with the events, read back, and bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.errors import LogUnwritable
from jetstream.eventlog import Changes, Gap, SourceCursor
from jetstream.eventlog.sqlite import schema
from jetstream.eventlog.sqlite.connection import open_writer
from jetstream.eventlog.sqlite.gaps import insert_gaps, read_gaps
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch

BatchOf = Callable[[range], Batch]
NOTHING = Batch.of((), ())
LIMITS = LogLimits(segment_events=100, upkeep_interval_s=3600.0, gap_rows=10)


def gap(time_us: int, did: str = "did:plc:a") -> Gap:
    return Gap(time_us, did, "3l3qo2vutsw2b", "3l3qo2vuowo2b", "sync")


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(0, 9), st.integers(1, 9))
def test_those_of_one_time_come_together(times: list[int], since_us: int, count_max: int) -> None:
    connection = open_writer(Path(":memory:"))
    gaps = sorted(gap(time_us, f"did:plc:{number}") for number, time_us in enumerate(times))
    insert_gaps(connection, gaps)
    found = sorted(read_gaps(connection, since_us, count_max))
    connection.close()
    wanted = [each for each in gaps if each.time_us >= since_us]
    last = wanted[count_max - 1].time_us if len(wanted) >= count_max else 10
    assert found == [each for each in wanted if each.time_us <= last]


async def test_a_full_disk_stores_none_of_the_changes(tmp_path: Path, batch_of: BatchOf) -> None:
    log = await SqliteLog.open(tmp_path, limits=replace(LIMITS, gap_rows=1_000))
    changes = Changes(
        {"a": SourceCursor(1)},
        {number.to_bytes(15, "big"): bytes(23) + b"s" for number in range(500)},
        [gap(time_us) for time_us in range(500)],
        {("a", f"did:plc:{number}"): b"x" for number in range(500)},
    )
    (pages,) = log._state.writer.execute("PRAGMA page_count").fetchone()
    for more in (1, 4, 7):
        log._state.writer.execute(f"PRAGMA max_page_count = {pages + more}")
        with pytest.raises(LogUnwritable, match="full"):
            await log.append(batch_of(range(1, 50)), changes)
        assert (log.tip, log.cursors, log.accounts(), await log.gaps(0, 9)) == (0, {}, {}, [])
        assert log.repo((1).to_bytes(15, "big")) is None
    log._state.writer.execute("PRAGMA max_page_count = 100000")
    await log.maintain()
    await log.append(batch_of(range(1, 50)), changes)
    assert (log.tip, log.cursors, log.accounts()) == (49, changes.cursors, changes.accounts)
    assert (await log.gaps(0, 1_000), log.repo((1).to_bytes(15, "big"))) == (changes.gaps, bytes(23) + b"s")
    await log.close()


# Cursors

seqs = st.integers(0, 1 << 62)


@given(seqs, st.none() | seqs, st.none() | seqs, st.lists(st.integers(1, 1 << 40), max_size=50))
def test_a_cursor_comes_back(
    seq: int, provisional: int | None, fell_from: int | None, above: list[int]
) -> None:
    unstored = tuple(seq + sum(above[: end + 1]) for end in range(len(above)))
    stored_to = unstored[-1] + 1 if unstored else None
    cursors = {"a": SourceCursor(seq, provisional, fell_from, stored_to, unstored)}
    connection = open_writer(Path(":memory:"))
    for same_sources in (False, True):
        schema.store_cursors(connection, cursors, schema.Totals(1, 1, 1), same_sources=same_sources)
        assert schema.read_cursors(connection) == cursors
    connection.close()
