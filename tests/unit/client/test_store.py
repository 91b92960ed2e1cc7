from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.client import FileCursor, StoreError


def test_a_file_that_is_not_there_has_no_cursor(tmp_path: Path) -> None:
    assert FileCursor(tmp_path / "x.cursor").load() is None


def test_a_saved_cursor_is_loaded_and_is_a_number_that_a_person_can_read(tmp_path: Path) -> None:
    path = tmp_path / "x.cursor"
    for cursor in (0, 1725516666734038, 7):
        FileCursor(str(path)).save(cursor)
        assert FileCursor(path).load() == cursor
    assert path.read_text() == "7\n"
    assert [each.name for each in tmp_path.iterdir()] == ["x.cursor"]


def test_a_number_that_a_person_has_written_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.cursor"
    path.write_text("  42")
    assert FileCursor(path).load() == 42


def test_what_a_crash_has_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.cursor"
    FileCursor(path).save(1)
    (tmp_path / "x.cursor.new").write_bytes(b"17")
    assert FileCursor(path).load() == 1
    FileCursor(path).save(2)
    assert FileCursor(path).load() == 2


@given(data=st.binary(max_size=40).filter(lambda data: not data.strip().isdigit()))
def test_anything_else_in_the_file_is_an_error_that_names_it(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("store") / "x.cursor"
    path.write_bytes(data)
    with pytest.raises(StoreError) as raised:
        FileCursor(path).load()
    assert str(raised.value).startswith(f"{path}: has ")
    assert "delete it to start without a cursor" in str(raised.value)


def test_a_directory_that_is_missing_or_a_directory_as_file_is_an_error_that_names_the_file(
    tmp_path: Path,
) -> None:
    nowhere = tmp_path / "none" / "x.cursor"
    with pytest.raises(StoreError, match=f"{nowhere}: cannot be written: No such file or directory"):
        FileCursor(nowhere).save(1)
    with pytest.raises(StoreError, match=f"{tmp_path}: cannot be read: Is a directory"):
        FileCursor(tmp_path).load()
