"""A log that is killed again and again, and one whose files are cut, hold what was stored.

So do the states of repositories, the gaps and the accounts that were stored with the events.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from tests.crash import writer
from tests.unit.eventlog.events import make_event

from jetstream.errors import LogCorrupt, LogError
from jetstream.eventlog import SourceCursor
from jetstream.eventlog.sqlite.connection import open_reader
from jetstream.eventlog.sqlite.journal import FILE as JOURNAL
from jetstream.eventlog.sqlite.reservation import FILE
from jetstream.eventlog.sqlite.schema import DATABASE, read_cursors
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.model.event import Event
from jetstream.model.filter import EVERYTHING

# A killed process has sealed a segment or two; the database, the write-ahead log or the journal is cut.
RUN_S = (0.05, 1.2)
END = 1 << 62
WAL = f"{DATABASE}-wal"


def run_and_kill(directory: Path, dice: random.Random) -> list[tuple[int, int]]:
    """Let a writer run for a moment; return what it said was stored."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.writer", str(directory)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(dice.uniform(*RUN_S))
    process.kill()
    lines = [first, *process.stdout.read().splitlines()]
    process.wait()
    process.stdout.close()
    said = [line.split() for line in lines]
    return [(int(number), int(position)) for number, position in said]


def committed(directory: Path) -> int:
    """Return the number of the last event that is in the database."""
    with closing(open_reader(directory / DATABASE)) as connection:
        return max((cursor.seq for cursor in read_cursors(connection).values()), default=0)


async def read_all(directory: Path) -> tuple[dict[int, int], int]:
    """Return the position of each event by its number, and the tip; each event is as it was made.

    If the log has noticed damage, some may be missing. Else there are all up to that of the cursor.
    """
    log = await SqliteLog.open(directory)
    times: dict[int, int] = {}
    position = 0
    try:
        while (batch := await log.read(position, END, EVERYTHING)) is not None:
            for index in range(batch.index(position), len(batch)):
                event = batch.event(index)
                number = number_of(event)
                assert event == make_event(number)
                times[number] = batch.times[index]
            position = batch.last + 1
        stored_to = max((cursor.seq for cursor in log.cursors.values()), default=0)
        damaged = log.statistics().damaged > 0
        if not damaged:
            assert list(times) == list(range(1, stored_to + 1))
            assert log.statistics().events == len(times)
        await check_changes(log, times, stored_to, damaged)
    finally:
        await log.close()
    assert list(times) == sorted(times)
    assert list(times.values()) == sorted(set(times.values()))
    return times, log.tip


def number_of(event: Event) -> int:
    return int(re.findall(rb"[0-9]+", event.rkey or event.body)[-1])


async def check_changes(log: SqliteLog, times: dict[int, int], last: int, damaged: bool) -> None:
    """Compare what is stored beside the events with what the appends said, up to the last event.

    What is damaged may be missing.
    """
    numbers = range(1, last + 1)
    states = {writer.repo_of(number): writer.state_of(number) for number in numbers}
    for did, state in states.items():
        assert log.repo(did) == state or (damaged and log.repo(did) is None)
    accounts = writer.accounts_of(numbers)
    assert log.accounts() == {key: state for key, state in accounts.items() if state is not None}
    gaps = [
        (times[number], f"did:plc:{number}")
        for number in numbers
        if writer.has_gap(number) and number in times
    ]
    found = [(gap.time_us, gap.did) for gap in await log.gaps(0, last + 1)]
    assert found == gaps or (damaged and set(found) >= set(gaps))
    for cursor in log.cursors.values():
        assert cursor == SourceCursor(last, stored_to=last + 9, unstored=(last + 2, last + 7))


async def test_a_killed_log_holds_each_event_once(tmp_path: Path, kills: int) -> None:
    dice = random.Random(kills)
    said: dict[int, int] = {}
    rounds = journaled = 0
    while rounds < kills or not journaled:  # until a kill has also come before the journal was emptied
        rounds += 1
        said.update(run_and_kill(tmp_path, dice))
        journaled += max(said) - committed(tmp_path)
    said.pop(0, None)  # said if the first batch of all is empty
    stored, _ = await read_all(tmp_path)
    assert max(said) <= len(stored)
    assert said.items() <= stored.items()
    assert len(stored) > 1_000 * kills
    with closing(open_reader(tmp_path / DATABASE)) as connection:
        (folded,) = connection.execute("SELECT repos FROM state").fetchone()
    assert folded > 100


@pytest.mark.parametrize(
    "victims", [(WAL,), (JOURNAL,), (JOURNAL, WAL), (DATABASE,), (DATABASE, WAL)], ids="+".join
)
async def test_cut_files_hold_the_beginning_or_are_refused_by_name(
    tmp_path: Path, kills: int, victims: tuple[str, ...]
) -> None:
    dice = random.Random(kills)
    whole = tmp_path / "whole"
    run_and_kill(whole, dice)
    said = dict(run_and_kill(whole, dice))
    opened = 0
    for number in range(kills):
        cut = tmp_path / str(number)
        shutil.copytree(whole, cut)
        lose_power(cut, victims, dice)
        try:
            stored, tip = await read_all(cut)
        except LogError as error:
            check_refusal(error, cut)
        else:
            opened += 1
            assert all(stored.get(number, position) == position for number, position in said.items())
            assert tip >= max(said.values())
        shutil.rmtree(cut)
    if DATABASE not in victims:
        assert opened == kills


def check_refusal(error: LogError, directory: Path) -> None:
    assert str(directory) in str(error)
    assert "jetstream log repair" in str(error) or not isinstance(error, LogCorrupt)


def lose_power(directory: Path, victims: tuple[str, ...], dice: random.Random) -> None:
    """Cut files at random bytes, and wake up after another boot."""
    for victim in victims:
        path = directory / victim
        with path.open("r+b") as file:
            file.truncate(dice.randrange(path.stat().st_size))
    (directory / f"{DATABASE}-shm").unlink(missing_ok=True)
    _, until = (directory / FILE).read_text().split()
    (directory / FILE).write_text(f"another-boot {until}\n")
