"""The line in the lock file that says that the writer is alive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.serving import until

from jetstream.errors import LogLocked
from jetstream.eventlog import Changes, Cursors
from jetstream.eventlog.sqlite.heartbeat import LINE_BYTES, Beat, read_beat, write_beat
from jetstream.eventlog.sqlite.lock import LOCK, take_lock
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.eventlog.sqlite.writer_watch import WriterWatch
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch

QUICK = LogLimits(heartbeat_s=0.01)


def test_a_line_is_read_back_whatever_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w+b") as file:
        for beat in Beat(4_000_000, 1 << 62, 1 << 62), Beat(1, 0, 0):
            write_beat(file.fileno(), beat)
            assert read_beat(path) == beat
            assert path.stat().st_size == LINE_BYTES


@pytest.mark.parametrize("data", [b"", b"123\n", b"1 2 3 00000000", b"1 2 x y", b"\xff" * 64])
def test_what_is_not_whole_says_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "lock").write_bytes(data)
    assert read_beat(tmp_path / "lock") is None
    assert read_beat(tmp_path / "missing") is None


async def test_a_writer_says_how_far_it_is(tmp_path: Path, cursor: Cursors) -> None:
    log = await SqliteLog.open(tmp_path, limits=QUICK)
    await log.append(Batch.of((), ()), Changes(cursor))
    first = read_beat(tmp_path / LOCK)
    await until(lambda: read_beat(tmp_path / LOCK) != first)
    beat = read_beat(tmp_path / LOCK)
    await log.close()
    assert beat is not None
    assert (beat.process, beat.tip) == (os.getpid(), log.tip)


async def test_a_writer_says_below_which_position_nothing_more_comes(tmp_path: Path) -> None:
    log, watch = await SqliteLog.open(tmp_path, limits=QUICK), WriterWatch(tmp_path, 5.0, lambda: 0.0)
    assert log.watermark == log.tip + 1
    position = 1_024
    log.next_position = lambda: position

    def told() -> int:
        watch.look(log.tip)
        return watch.watermark(log.tip)

    await until(lambda: told() == log.watermark == 1_024)
    position = 1_280
    await until(lambda: told() == log.watermark == 1_280)
    await log.close()


def test_a_second_writer_is_told_which_process_it_is(tmp_path: Path) -> None:
    lock = take_lock(tmp_path)
    write_beat(lock, Beat(4711, 12, 13))
    with pytest.raises(LogLocked, match=r"process 4711 writes this log"):
        take_lock(tmp_path)
    os.close(lock)


def test_a_writer_is_gone_when_nothing_of_it_changes(tmp_path: Path) -> None:
    now = [100.0]
    with (tmp_path / LOCK).open("w+b") as file:
        write_beat(file.fileno(), Beat(1, 1, 50))
        watch = WriterWatch(tmp_path, 5.0, lambda: now[0])
        watch.look(50)
        # It may have been written by a process that is gone; that is not known yet.
        assert (watch.is_alive, watch.silent_s, watch.reason) == (False, None, None)
        now[0] += 6.0
        watch.look(50)
        assert watch.reason is not None
        write_beat(file.fileno(), Beat(1, 258, 60))
        watch.look(50)
        assert (watch.is_alive, watch.silent_s) == (True, 0.0)
        assert not watch.reason
        now[0] += 5.5
        watch.look(50)
        assert not watch.is_alive
        assert watch.reason is not None
        assert "silent for 6 s" in watch.reason
        watch.note_life()
        assert watch.is_alive
        # A position below the watermark may be that of an event that the edge has not read.
        assert [watch.watermark(tip) for tip in (0, 59, 60, 61)] == [0, 0, 256, 256]
        # The heartbeat tells of events that the edge has not read.
        assert watch.lag_s(51) == 5.5
        assert watch.lag_s(61) == 0.0
