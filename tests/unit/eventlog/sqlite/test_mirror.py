"""A log that mirrors another one: where it goes on, and what erases accounts in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.builders import event
from tests.unit.eventlog.sqlite.engine import SqliteEngine

from jetstream.eventlog import Changes, SourceCursor
from jetstream.eventlog.sqlite.reservation import Machine
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT
from jetstream.model.filter import EVERYTHING

AT = 1_725_516_666_000_000
DELETED = b'{"active":false,"status":"takendown"}'


@pytest.fixture
def engine(tmp_path: Path) -> SqliteEngine:
    return SqliteEngine(tmp_path)


@pytest.mark.parametrize(
    ("mirrors", "cursor", "goes_on"),
    [(True, AT, True), (True, AT - 1, False), (False, AT, False)],
    ids=["mirror", "positions of its own", "no mirror"],
)
async def test_after_a_loss_of_power_only_positions_of_its_own_are_passed_over(
    engine: SqliteEngine, mirrors: bool, cursor: int, goes_on: bool
) -> None:
    """Those of an upstream come again, and are the same."""
    log = await engine.open(mirrors=mirrors, machine=Machine("a boot"))
    await log.append(Batch.of([event()], [AT]), Changes({"above": SourceCursor(cursor)}))
    await engine.abandon(log)
    log = await engine.open(mirrors=mirrors, machine=Machine("another boot"))
    assert (log.tip == AT) is goes_on
    assert log.tip >= AT
    await log.append(Batch.of([event()], [log.tip + 1]), Changes(log.cursors))
    await log.close()


async def test_a_mirror_whose_database_is_gone_begins_again_at_the_positions_of_its_upstream(
    tmp_path: Path, engine: SqliteEngine
) -> None:
    log = await engine.open(mirrors=True)
    await log.append(Batch.of([event()], [AT]), Changes({"above": SourceCursor(AT)}))
    await log.close()
    for path in engine.files.glob("jetstream.db*"):
        path.unlink()
    log = await engine.open(mirrors=True)
    assert log.tip == 0
    await log.close()


async def test_what_erases_an_account_may_change_between_two_appends(engine: SqliteEngine) -> None:
    log = await engine.open()
    for number, erases in enumerate([{"deleted"}, {"deleted", "takendown"}]):
        log.erases = frozenset(erases)
        times = range(AT + 10 * number, AT + 10 * number + 2)
        await log.append(Batch.of([event(), event(ACCOUNT, body=DELETED)], times), Changes({}))
        batch = await log.read(AT, log.tip + 1, EVERYTHING)
        assert batch is not None
        assert batch.kinds == ([b"c", b"a"] if not number else [b"a", b"a"])
    await log.close()
