"""`jetstream log` and `jetstream doctor` with a log in PostgreSQL, as an operator runs them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.foreign.postgresql.engine import PostgresEngine

from jetstream.cli import main
from jetstream.eventlog import Changes, Cursors
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch

BatchOf = Callable[[range], Batch]
START = 1_700_000_000_000_000


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jetstream", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


async def test_a_log_is_moved_from_a_file_to_a_database_and_looked_at(
    engine: PostgresEngine, tmp_path: Path, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await SqliteLog.open(tmp_path, limits=LogLimits(segment_events=300))
    for start in range(START, START + 1000, 100):
        await log.append(batch_of(range(start, start + 100)), Changes(cursor))
    await log.maintain()
    await log.close()
    place = ("--log", engine.address)
    migrated = await asyncio.to_thread(run, "log", "migrate", *place)
    assert "have version 1" in migrated.stdout
    assert "postgres@" not in migrated.stdout  # nor would a password be
    copied = await asyncio.to_thread(run, "log", "copy", *place, "--data-dir", str(tmp_path))
    assert "copied 1,000 events, 3 segments" in copied.stdout, copied.stderr
    again = await asyncio.to_thread(run, "log", "copy", *place, "--data-dir", str(tmp_path))
    assert again.returncode != 0
    assert "has events already" in again.stderr
    stats = json.loads((await asyncio.to_thread(run, "log", "stats", *place, "--json")).stdout)
    assert (stats["events"], stats["segments"], stats["oldest_us"]) == (1_000, 3, START)
    assert stats["upstreams"] == {"relay.example:443": 7}
    checked = await asyncio.to_thread(run, "log", "check", *place)
    assert "1,000 events in 3 segments and the tail are undamaged" in checked.stdout
    of_file = await asyncio.to_thread(run, "log", "cat", "--data-dir", str(tmp_path))
    of_database = await asyncio.to_thread(run, "log", "cat", *place)
    assert of_database.stdout == of_file.stdout
    assert of_database.stdout.count("\n") > 900
    doctor = await asyncio.to_thread(run, "doctor", *place, "--role", "edge", "--listen", ":0")
    assert "PostgreSQL" in doctor.stdout, doctor.stderr


@pytest.mark.parametrize("command", ["migrate", "copy"])
def test_a_database_is_asked_for(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["log", command, "--log", "sqlite:/nowhere"])
    assert ended.value.code == 2
    assert "is not a postgresql:// address" in capsys.readouterr().err


def test_a_command_for_files_refuses_a_database(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["log", "repair", "--log", "postgresql://user:secret@127.0.0.1:1/none"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "is a PostgreSQL database" in error
    assert "secret" not in error


def test_a_database_that_does_not_answer_is_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["log", "stats", "--log", "postgresql://user:secret@127.0.0.1:1/none"])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "postgresql://127.0.0.1:1/none" in error
    assert "secret" not in error
