"""Tables of the version before are used as they are, until they are migrated: programs are replaced first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg
import pytest
from tests.foreign.postgresql.engine import PostgresEngine
from tests.unit.eventlog.reading import times_from

from jetstream.errors import LogFormat
from jetstream.eventlog import Changes, Cursors
from jetstream.eventlog.postgresql.leading import migrate_tables
from jetstream.eventlog.postgresql.schema import VERSION, check_version, migrate
from jetstream.model.batch import Batch

BatchOf = Callable[[range], Batch]
# A program that knows one version more, and what that one would change.
NEXT = VERSION + 1
MIGRATIONS = {VERSION: ("ALTER TABLE state ADD COLUMN added bigint NOT NULL DEFAULT 0",)}


async def test_a_program_of_the_next_version_reads_these_tables_and_migrates_them_while_they_are_used(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await engine.open()
    await log.append(batch_of(range(1, 5)), Changes(cursor))
    connection = await asyncpg.connect(engine.address)
    assert await check_version(connection, engine.address, NEXT) == VERSION
    with pytest.raises(LogFormat, match=f"has tables of version {VERSION}, .* reads {NEXT} and {NEXT + 1}"):
        await check_version(connection, engine.address, NEXT + 1)
    assert await migrate(connection, engine.address, NEXT, MIGRATIONS) == NEXT
    await log.append(batch_of(range(5, 9)), Changes(cursor))  # of a process that runs meanwhile
    assert await times_from(log) == list(range(1, 9))
    assert await check_version(connection, engine.address, NEXT) == NEXT
    assert await connection.fetchval("SELECT added FROM state") == 0
    with pytest.raises(
        LogFormat, match=f"has tables of version {NEXT}"
    ):  # the old program does not read them
        await check_version(connection, engine.address)
    await connection.close()
    await log.close()


async def test_tables_are_migrated_once_however_many_do_so(engine: PostgresEngine) -> None:
    await (await engine.open()).close()
    connections = [await asyncpg.connect(engine.address) for _ in range(4)]
    found = await asyncio.gather(
        *(migrate(connection, engine.address, NEXT, MIGRATIONS) for connection in connections)
    )
    assert found == [NEXT] * 4
    assert await migrate(connections[0], engine.address, NEXT, MIGRATIONS) == NEXT
    for connection in connections:
        await connection.close()


async def test_a_migration_that_fails_changes_nothing(engine: PostgresEngine) -> None:
    await (await engine.open()).close()
    connection = await asyncpg.connect(engine.address)
    fails = {VERSION: (*MIGRATIONS[VERSION], "ALTER TABLE nothing ADD COLUMN added bigint")}
    with pytest.raises(asyncpg.UndefinedTableError):
        await migrate(connection, engine.address, NEXT, fails)
    assert await check_version(connection, engine.address) == VERSION
    assert await migrate(connection, engine.address, NEXT, MIGRATIONS) == NEXT
    await connection.close()


async def test_the_command_creates_tables_or_leaves_those_of_this_version(engine: PostgresEngine) -> None:
    for _ in range(2):
        assert await migrate_tables(engine.address) == VERSION
