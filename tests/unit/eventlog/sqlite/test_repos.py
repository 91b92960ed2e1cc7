"""The states of repositories are those of a dict, whatever is folded, reopened or killed in between."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import tempfile
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.logs.copying import copied

from jetstream.atproto.compact_did import compact_did
from jetstream.conditions import Conditions
from jetstream.errors import LogCorrupt, LogUnwritable
from jetstream.eventlog import Changes, SourceCursor
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.sqlite import repair as repair_module
from jetstream.eventlog.sqlite import repos
from jetstream.eventlog.sqlite.check import Findings, check
from jetstream.eventlog.sqlite.repair import repair
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.eventlog.states import RECORD_BYTES, STATE_BYTES, in_steps, pack
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch

SMALL = LogLimits(repo_changes=8, fold_repos=3, wal_bytes=40_000)
BY_HAND = replace(SMALL, upkeep_interval_s=3600.0)
NOTHING = Batch.of((), ())
CURSORS = {"relay.example:443": SourceCursor(1)}
PLC = [compact_did(f"did:plc:{letter * 24}") for letter in "abcdefgz234567"]
DIDS = [*PLC, *(compact_did(f"did:web:{number}.example") for number in range(8))]
states = st.binary(min_size=STATE_BYTES, max_size=STATE_BYTES).filter(any)
changes = st.dictionaries(st.sampled_from(DIDS), st.none() | states, min_size=1, max_size=9)


def state(number: int) -> bytes:
    return number.to_bytes(8, "big") + b"r" * 16


def numbered(number: int) -> bytes:
    """Return a compact `did:plc`, which is a hash."""
    return sha256(b"%d" % number).digest()[:15]


async def append(log: SqliteLog, changed: dict[bytes, bytes | None]) -> None:
    await log.append(NOTHING, Changes(CURSORS, repos=changed))


def rows(log: SqliteLog, table: str) -> int:
    return int(log._state.writer.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@given(changes)
def test_what_was_packed_is_unpacked(changed: dict[bytes, bytes | None]) -> None:
    records = pack(changed)
    assert len(records) == RECORD_BYTES * len(changed)
    assert dict(repos.unpack(records, crc32(records))) == changed


@given(changes, st.integers(0, 39), st.integers(1, 255))
def test_a_damaged_record_is_recognised(changed: dict[bytes, bytes | None], at: int, flip: int) -> None:
    records = bytearray(pack(changed))
    crc = crc32(records)
    records[at] ^= flip
    for damaged in (bytes(records), bytes(records[:-1])):
        with pytest.raises(Damaged):
            list(repos.unpack(damaged, crc))


@given(st.dictionaries(st.binary(min_size=15, max_size=16), st.none() | states), st.integers(1, 9))
def test_steps_have_all_changes_in_order(changed: dict[bytes, bytes | None], size: int) -> None:
    steps = in_steps(changed, size)
    assert [change for step in steps for change in step] == sorted(changed.items(), key=lambda each: each[0])
    assert all(0 < len(step) <= size for step in steps)


class StatesAgainstDict(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.runner = self.stack.enter_context(asyncio.Runner())
        self.known: dict[bytes, bytes | None] = {}
        self.generation = 0
        self.open()

    def open(self) -> None:
        directory = self.directory / str(self.generation)
        self.log = self.runner.run(SqliteLog.open(directory, limits=SMALL))

    @rule(changed=changes)
    def append(self, changed: dict[bytes, bytes | None]) -> None:
        self.runner.run(self._append(changed))

    async def _append(self, changed: dict[bytes, bytes | None]) -> None:
        if self.log._state.repos.is_overfull:
            await self.log.maintain()
        await append(self.log, changed)
        self.known |= changed

    @rule()
    def maintain(self) -> None:
        self.runner.run(self.log.maintain())

    @rule(meanwhile=st.lists(changes, max_size=6))
    def append_while_folding(self, meanwhile: list[dict[bytes, bytes | None]]) -> None:
        self.runner.run(self._append_while_folding(meanwhile))

    async def _append_while_folding(self, meanwhile: list[dict[bytes, bytes | None]]) -> None:
        folding = asyncio.create_task(self.log.maintain())
        for changed in meanwhile:
            await self._append(changed)
            self.states_agree()
        await folding

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.log.close())
        self.open()

    @rule(steps=st.integers(0, 9))
    def crash(self, steps: int) -> None:
        """Go on with the files as they are after some steps of a fold, as after `kill -9`."""
        old = self.directory / str(self.generation)
        self.generation += 1
        self.runner.run(self._copy(old, self.directory / str(self.generation), steps))
        self.runner.run(self.log.close())
        self.open()

    async def _copy(self, old: Path, new: Path, steps: int) -> None:
        folding = asyncio.create_task(self.log.maintain())
        for _ in range(steps):
            await asyncio.sleep(0)
            async with self.log._state.writing:
                pass
        async with self.log._state.writing:
            copied(old, new)
        await folding

    @invariant()
    def states_agree(self) -> None:
        assert {did: self.log.repo(did) for did in DIDS} == {did: self.known.get(did) for did in DIDS}

    @invariant()
    def rows_are_counted(self) -> None:
        assert self.log._state.repos.stored == rows(self.log, "repo") or self.log._upkeep._running.locked()

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.runner.run(self.log.close())
        if hasattr(self, "stack"):
            self.stack.close()


TestStatesAgainstDict = StatesAgainstDict.TestCase
TestStatesAgainstDict.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


async def test_changes_are_folded_when_they_are_many(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path, limits=BY_HAND)
    for number in range(7):
        await append(log, {numbered(number): state(number)})
    await log.maintain()
    assert (rows(log, "repo"), rows(log, "repo_change")) == (0, 2)
    await append(log, {numbered(7): state(7)})
    await log.maintain()
    assert (rows(log, "repo"), rows(log, "repo_change")) == (8, 0)
    assert [log.repo(numbered(number)) for number in range(9)] == [*map(state, range(8)), None]
    await log.close()


async def test_changes_of_one_repository_are_folded_too(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path, limits=BY_HAND)
    for number in range(64):
        await append(log, {numbered(0): state(number)})
    await log.maintain()
    assert (rows(log, "repo"), rows(log, "repo_change")) == (1, 0)
    assert log.repo(numbered(0)) == state(63)
    await log.close()


async def test_appends_are_refused_when_folding_has_fallen_behind(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path, limits=BY_HAND)
    await append(log, {numbered(number): state(number) for number in range(32)})
    with pytest.raises(LogUnwritable, match="too many states"):
        await append(log, {numbered(0): state(1)})
    await log.append(NOTHING, Changes(CURSORS))
    await log.maintain()
    await append(log, {numbered(0): state(1)})
    assert log.repo(numbered(0)) == state(1)
    await log.close()


async def test_a_fold_that_the_disk_refuses_is_tried_again(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path, limits=replace(BY_HAND, repo_changes=200))
    known: dict[bytes, bytes | None] = {numbered(number): state(number) for number in range(400)}
    await append(log, known)
    (pages,) = log._state.upkeep.execute("PRAGMA page_count").fetchone()
    log._state.upkeep.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(LogUnwritable, match="full"):
        await log.maintain()
    known |= {numbered(0): state(9), numbered(1): None}
    await append(log, {numbered(0): state(9), numbered(1): None})
    assert {did: log.repo(did) for did in known} == known
    log._state.upkeep.execute("PRAGMA max_page_count = 100000")
    await log.maintain()
    assert rows(log, "repo") == 400
    assert rows(log, "repo_change") == 1
    assert {did: log.repo(did) for did in known} == known
    await log.close()
    again = await SqliteLog.open(tmp_path)
    assert {did: again.repo(did) for did in known} == known
    await again.close()


async def test_above_their_bound_those_that_did_not_change_for_long_are_forgotten(tmp_path: Path) -> None:
    limits = replace(BY_HAND, repo_changes=1_000, fold_repos=1_000, repo_states=4_000)
    log = await SqliteLog.open(tmp_path, limits=limits)
    for start in range(0, 5_000, 1_000):
        await append(log, {numbered(number): state(number) for number in range(start, start + 1_000)})
        await log.maintain()
        assert rows(log, "repo") == log._state.repos.stored <= 4_000
    assert rows(log, "repo") == 4_000
    # At least half of each sample has not changed since, wherever it is taken: these are the ones that go.
    assert all(log.repo(numbered(number)) is not None for number in range(4_000, 5_000))
    await log.close()


async def test_states_take_a_share_of_the_bound_of_the_files(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path, retention_bytes=64 << 20)
    assert log._state.repos.states_max == (16 << 20) // repos.ROW_BYTES
    await log.close()


async def test_a_log_without_changes_has_no_rows(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path, limits=BY_HAND)
    await log.append(NOTHING, Changes(CURSORS))
    await log.maintain()
    assert rows(log, "repo") == rows(log, "repo_change") == 0
    await log.close()


# Damage


@pytest.fixture
async def damaged(tmp_path: Path) -> Path:
    """Return a closed log with nine folded states, of which one is damaged, and one change of another."""
    log = await SqliteLog.open(tmp_path, limits=BY_HAND)
    await append(log, {numbered(number): state(number) for number in range(9)})
    await log.maintain()
    await append(log, {numbered(1): state(100)})
    await log.close()
    execute(tmp_path, "UPDATE repo SET state = zeroblob(24) WHERE did = ?", (numbered(4),))
    return tmp_path


def execute(directory: Path, statement: str, values: tuple[object, ...] = ()) -> None:
    connection = sqlite3.connect(directory / DATABASE)
    with connection:
        connection.execute(statement, values)
    connection.close()


async def test_a_damaged_state_is_not_known(damaged: Path) -> None:
    log = await SqliteLog.open(damaged, conditions=Conditions())
    assert log.repo(numbered(4)) is None
    assert (log.repo(numbered(3)), log.repo(numbered(1))) == (state(3), state(100))
    await log.close()


async def test_damaged_changes_are_refused_with_the_remedy(damaged: Path) -> None:
    execute(damaged, "UPDATE repo_change SET crc = crc - 1")
    with pytest.raises(LogCorrupt, match=r"jetstream\.db.*states of repositories.*log repair"):
        await SqliteLog.open(damaged)
    assert any("states of repositories" in problem for problem in check(damaged).problems)


@pytest.mark.parametrize("full", [False, True], ids=["copied", "in place"])
async def test_repair_drops_a_damaged_state_and_keeps_the_others(
    damaged: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert any("the states of 1 repositories are lost" in problem for problem in check(damaged).problems)
    repaired(damaged, full, monkeypatch)
    log = await SqliteLog.open(damaged)
    expected = {number: state(number) for number in range(9)} | {1: state(100), 4: None}
    assert {number: log.repo(numbered(number)) for number in range(9)} == expected
    assert log._state.repos.stored == rows(log, "repo") == 8
    assert rows(log, "repo_change") == 1
    await log.close()


@pytest.mark.parametrize("full", [False, True], ids=["copied", "in place"])
@pytest.mark.parametrize(
    "damage",
    ["UPDATE repo_change SET records = zeroblob(40)", "UPDATE repo_change SET id = 9"],
    ids=["checksum", "hole"],
)
async def test_repair_forgets_all_states_when_changes_are_lost(
    damaged: Path, full: bool, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(damaged, "INSERT INTO repo_change SELECT id + 1, crc, records FROM repo_change")
    execute(damaged, damage + " WHERE id = (SELECT max(id) FROM repo_change)")
    repaired(damaged, full, monkeypatch)
    log = await SqliteLog.open(damaged)
    assert [log.repo(numbered(number)) for number in range(9)] == [None] * 9
    assert log._state.repos.stored == rows(log, "repo") == rows(log, "repo_change") == 0
    await log.close()


def repaired(directory: Path, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repair a log, on a disk that has room for a copy or not."""

    def no_room(_directory: Path, _new: Path) -> Findings:
        raise OSError(errno.ENOSPC, "full")

    if full:
        monkeypatch.setattr(repair_module, "_rebuild", no_room)
    _, aside = repair(directory)
    assert (aside is None) == full
    assert check(directory).problems == []


@pytest.mark.parametrize("place", range(0, 4096, 256))
async def test_keys_that_are_overwritten_end_a_check(tmp_path: Path, place: int) -> None:
    """What is read of a page with damaged keys ends, and is right."""
    log = await SqliteLog.open(tmp_path, limits=replace(BY_HAND, repo_changes=400))
    await append(log, {numbered(number): state(number) for number in range(400)})
    await log.maintain()
    root = root_of(log)
    await log.close()
    with (tmp_path / DATABASE).open("r+b") as file:
        leaf = page_in(file, root)
        file.seek(4096 * (leaf - 1) + place)
        file.write(bytes(256))
    known = {(numbered(number), state(number)) for number in range(400)}
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        for falling in (False, True):
            with suppress(Damaged, sqlite3.DatabaseError):
                for whole in repos.whole_states(connection, [], falling=falling, at_once=7):
                    assert {(did, each) for each, _, did in whole} <= known
    repair(tmp_path)
    assert check(tmp_path).problems == []


async def test_states_behind_a_damaged_page_are_kept(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path, limits=replace(BY_HAND, repo_changes=2_000))
    await append(log, {numbered(number): state(number) for number in range(2_000)})
    await log.maintain()
    root = root_of(log)
    await log.close()
    with (tmp_path / DATABASE).open("r+b") as file:
        leaf = page_in(file, root)
        file.seek(4096 * (leaf - 1))
        file.write(b"\xff" * 4096)
    repair(tmp_path)
    log = await SqliteLog.open(tmp_path)
    kept = [number for number in range(2_000) if log.repo(numbered(number)) is not None]
    assert all(log.repo(numbered(number)) == state(number) for number in kept)
    assert 1_500 < len(kept) == rows(log, "repo") < 2_000
    await log.close()


def root_of(log: SqliteLog) -> int:
    """Return the root page of the table of states."""
    query = "SELECT rootpage FROM sqlite_schema WHERE name = 'repo'"
    return int(log._state.writer.execute(query).fetchone()[0])


def page_in(file: BinaryIO, root: int) -> int:
    """Return a page in the middle of a table, by its root (see the format of SQLite's files)."""
    file.seek(4096 * (root - 1))
    page = file.read(4096)
    count = int.from_bytes(page[3:5], "big")
    cell = int.from_bytes(page[12 + 2 * (count // 2) :][:2], "big")
    return int.from_bytes(page[cell : cell + 4], "big")
