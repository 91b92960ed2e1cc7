from __future__ import annotations

from pathlib import Path

import pytest

from jetstream.clock import boot_id
from jetstream.errors import LogCorrupt
from jetstream.log import reservation
from jetstream.log.reservation import FILE, read, reserve, restored_tip


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
