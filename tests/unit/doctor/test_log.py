from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jetstream.doctor.log import check_log, read_extent
from jetstream.eventlog import Changes, Cursors
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.model.batch import Batch

BatchOf = Callable[[range], Batch]
START = 1_700_000_000_000_000


@pytest.fixture
async def directory(tmp_path: Path, batch_of: BatchOf, cursor: Cursors) -> Path:
    log = await SqliteLog.open(tmp_path)
    await log.append(batch_of(range(START, START + 100)), Changes(cursor))
    await log.close()
    return tmp_path


def test_no_log_is_well(tmp_path: Path) -> None:
    assert check_log(tmp_path, START).level == "ok"
    assert read_extent(tmp_path) is None


async def test_a_log_without_events_is_well(tmp_path: Path) -> None:
    await (await SqliteLog.open(tmp_path)).close()
    held = read_extent(tmp_path)
    assert held is not None
    assert (held.events, held.oldest_us, held.span_s) == (0, None, 0.0)
    assert check_log(tmp_path, START).level == "ok"


def test_a_log_that_is_undamaged_is_well(directory: Path) -> None:
    held = read_extent(directory)
    assert held is not None
    assert (held.events, held.oldest_us, held.tip_us) == (100, START, START + 99)
    finding = check_log(directory, START + 1_000)
    assert finding.level == "ok"
    assert finding.text.startswith("100 events, ")
    assert finding.text.endswith(", undamaged")


def test_a_large_log_is_not_read_as_a_whole(directory: Path) -> None:
    assert check_log(directory, START, bytes_max=1).text.endswith("`jetstream log check` does")


def test_a_log_ahead_of_the_clock_is_told_what_to_do(directory: Path) -> None:
    finding = check_log(directory, START - 3_600_000_000)
    assert finding.level == "warn"
    assert "3,600 s ahead of the clock" in finding.text
    assert "`jetstream log rebase-time`" in finding.text + finding.hint
    assert finding.hint


def test_a_damaged_log_is_told_what_to_do(directory: Path) -> None:
    path = directory / DATABASE
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle:] = bytes(len(data) - middle)
    path.write_bytes(data)
    finding = check_log(directory, START)
    assert finding.level == "fail"
    assert "jetstream log repair" in finding.hint


def test_another_file_of_its_name_is_no_log(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"hello" * 1000)
    assert check_log(tmp_path, START).level == "fail"
    assert read_extent(tmp_path) is None
