from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from jetstream.clock import boot_id
from jetstream.errors import LogCorrupt
from jetstream.eventlog.sqlite import reservation
from jetstream.eventlog.sqlite.reservation import AHEAD_US, FILE, read, reserve, restored_tip


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "boot_id"
    path.write_text("first\n")
    monkeypatch.setattr(reservation, "boot_id", lambda: boot_id(path))
    return path


def test_without_a_reservation_the_tip_is_what_is_stored(tmp_path: Path) -> None:
    assert restored_tip(tmp_path, 5) == 5


def test_after_a_crash_of_the_process_nothing_was_lost(tmp_path: Path, boot: Path) -> None:
    reserve(tmp_path, 1000)
    assert restored_tip(tmp_path, 5) == 5


def test_after_another_boot_all_that_was_reserved_may_have_been_given_out(tmp_path: Path, boot: Path) -> None:
    reserve(tmp_path, 1000)
    boot.write_text("second\n")
    assert restored_tip(tmp_path, 5) == 1000
    assert restored_tip(tmp_path, 2000) == 2000


def test_where_boots_cannot_be_told_apart_each_start_counts_as_one(tmp_path: Path, boot: Path) -> None:
    boot.unlink()
    reserve(tmp_path, 1000)
    assert restored_tip(tmp_path, 5) == 1000


def test_a_damaged_reservation_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("\0\0\0")
    with pytest.raises(LogCorrupt, match=FILE):
        read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        b"boot",
        b"boot 12",
        b"one two three",
        b"boot -5",
        b"boot 9" + b"9" * 40,
        b"boot 99999999999999999",  # in the year 5138
        b"\xff\xfe junk \x80",
    ],
)
def test_what_is_no_reservation_is_made_again_from_the_log_and_the_clock(
    tmp_path: Path, content: bytes, boot: Path
) -> None:
    tip, now = 1_700_000_000_000_000, 1_700_000_500_000_000
    (tmp_path / FILE).write_bytes(content)
    with capture_logs() as lines:
        restored = restored_tip(tmp_path, tip, now)
    if content == b"boot 12":  # is one, and of another boot
        assert (restored, lines) == (tip, [])
        return
    assert restored == now
    assert read(tmp_path) == ("first", now)
    assert [line["event"] for line in lines] == ["log: the reservation is made again"]


def test_it_goes_beyond_the_newest_event_when_the_clock_is_behind(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    assert restored_tip(tmp_path, 5, 0) == 5 + AHEAD_US


def test_a_directory_in_its_place_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / FILE / "something").mkdir(parents=True)
    assert restored_tip(tmp_path, 5, 0) == 5 + AHEAD_US
    assert (tmp_path / FILE).is_file()
    assert (tmp_path / f"{FILE}.damaged-1" / "something").is_dir()


def test_a_new_database_beside_a_reservation_is_a_warning_and_goes_on_above_it(
    tmp_path: Path, boot: Path
) -> None:
    reserve(tmp_path, 1000)
    with capture_logs() as lines:
        assert restored_tip(tmp_path, 0, is_new=True) == 1000
    assert lines[0]["log_level"] == "warning"
    assert lines[0]["missing"] == str(tmp_path / "jetstream.db")


def test_a_new_log_is_no_warning(tmp_path: Path) -> None:
    with capture_logs() as lines:
        assert restored_tip(tmp_path, 0, is_new=True) == 0
    assert lines == []


def test_what_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        reserve(tmp_path, 1000)
    assert list(tmp_path.iterdir()) == []
