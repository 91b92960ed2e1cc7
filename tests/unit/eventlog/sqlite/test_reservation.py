from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from jetstream.errors import LogCorrupt
from jetstream.eventlog.sqlite.reservation import AHEAD_US, FILE, Machine, Reservation

FIRST, SECOND, UNKNOWN = Machine("first"), Machine("second"), Machine("unknown")


@pytest.fixture
def reservation(tmp_path: Path) -> Reservation:
    return Reservation(tmp_path, FIRST)


def test_without_a_reservation_the_tip_is_what_is_stored(tmp_path: Path, reservation: Reservation) -> None:
    assert reservation.restored_tip(5) == 5


def test_after_a_crash_of_the_process_nothing_was_lost(tmp_path: Path, reservation: Reservation) -> None:
    reservation.write(1000)
    assert reservation.restored_tip(5) == 5


def test_after_another_boot_all_that_was_reserved_may_have_been_given_out(
    tmp_path: Path, reservation: Reservation
) -> None:
    reservation.write(1000)
    another = Reservation(tmp_path, SECOND)
    assert another.restored_tip(5) == 1000
    assert another.restored_tip(2000) == 2000


def test_where_boots_cannot_be_told_apart_each_start_counts_as_one(tmp_path: Path) -> None:
    reservation = Reservation(tmp_path, UNKNOWN)
    reservation.write(1000)
    assert reservation.restored_tip(5) == 1000


def test_a_damaged_reservation_is_named(tmp_path: Path, reservation: Reservation) -> None:
    (tmp_path / FILE).write_text("\0\0\0")
    with pytest.raises(LogCorrupt, match=FILE):
        reservation.read()


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
    tmp_path: Path, content: bytes, reservation: Reservation
) -> None:
    tip, now = 1_700_000_000_000_000, 1_700_000_500_000_000
    (tmp_path / FILE).write_bytes(content)
    with capture_logs() as lines:
        restored = reservation.restored_tip(tip, now)
    if content == b"boot 12":  # is one, and of another boot
        assert (restored, lines) == (tip, [])
        return
    assert restored == now
    assert reservation.read() == ("first", now)
    assert [line["event"] for line in lines] == ["log: the reservation is damaged and written again"]


def test_it_goes_beyond_the_newest_event_when_the_clock_is_behind(
    tmp_path: Path, reservation: Reservation
) -> None:
    (tmp_path / FILE).touch()
    assert reservation.restored_tip(5, 0) == 5 + AHEAD_US


def test_a_directory_in_its_place_is_put_aside(tmp_path: Path, reservation: Reservation) -> None:
    (tmp_path / FILE / "something").mkdir(parents=True)
    assert reservation.restored_tip(5, 0) == 5 + AHEAD_US
    assert (tmp_path / FILE).is_file()
    assert (tmp_path / f"{FILE}.damaged-1" / "something").is_dir()


def test_a_new_database_beside_a_reservation_is_a_warning_and_goes_on_above_it(
    tmp_path: Path, reservation: Reservation
) -> None:
    reservation.write(1000)
    with capture_logs() as lines:
        assert reservation.restored_tip(0, is_new=True) == 1000
    assert lines[0]["log_level"] == "warning"
    assert lines[0]["missing"] == str(tmp_path / "jetstream.db")


def test_a_new_log_is_no_warning(tmp_path: Path, reservation: Reservation) -> None:
    with capture_logs() as lines:
        assert reservation.restored_tip(0, is_new=True) == 0
    assert lines == []


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    def sync(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Reservation(tmp_path, FIRST._replace(sync=sync)).write(1000)
    assert list(tmp_path.iterdir()) == []


def test_the_file_and_its_name_are_flushed_before_the_positions_count_as_reserved(tmp_path: Path) -> None:
    flushed: list[tuple[int, int]] = []

    def sync(descriptor: int) -> None:
        flushed.append((os.fstat(descriptor).st_ino, reserving.until_us))

    reserving = Reservation(tmp_path, FIRST._replace(sync=sync))
    reserving.write(1000)
    assert flushed == [((tmp_path / FILE).stat().st_ino, 0), (tmp_path.stat().st_ino, 0)]
    assert reserving.until_us == 1000


def test_threads_that_extend_it_at_once_never_lower_it(tmp_path: Path) -> None:
    """The event loop and upkeep do so, each for the position that it knows."""
    reservation = Reservation(tmp_path, FIRST._replace(sync=lambda _: None))
    positions = [*range(0, 4 * AHEAD_US, AHEAD_US // 20)] * 3
    random.Random(1).shuffle(positions)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(reservation.extend, positions))
    assert reservation.until_us == max(positions) + AHEAD_US
    assert reservation.read() == ("first", max(positions) + AHEAD_US)
