from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from jetstream import errors
from jetstream.errors import (
    InvalidParameter,
    JetstreamError,
    LogCorrupt,
    LogError,
    LogUnwritable,
    SettingError,
)


def test_errors_carry_their_fields_and_name_them_in_their_text() -> None:
    setting = SettingError("--wire", "v2", "is neither classic nor v1")
    parameter = InvalidParameter("cursor", "now", "is not a time")
    log = LogCorrupt(Path("/data/log"), "a block does not match its checksum")

    assert (setting.name, setting.value, setting.problem) == ("--wire", "v2", "is neither classic nor v1")
    assert str(setting) == "--wire: 'v2' is neither classic nor v1"
    assert (parameter.name, parameter.value, parameter.problem) == ("cursor", "now", "is not a time")
    assert str(parameter) == "cursor: 'now' is not a time"
    assert (log.path, log.problem) == (Path("/data/log"), "a block does not match its checksum")
    assert str(log) == "/data/log: a block does not match its checksum"


@pytest.mark.parametrize(
    ("chars", "shown"), [(100, "x" * 100), (101, "x" * 100 + "…"), (1_000_000, "x" * 100 + "…")]
)
def test_a_long_value_is_cut_in_the_text(chars: int, shown: str) -> None:
    assert str(InvalidParameter("cursor", "x" * chars, "is too long")) == f"cursor: '{shown}' is too long"


def test_lines_stay_lines_whatever_the_value() -> None:
    assert str(InvalidParameter("cursor", "a\r\nb", "is bad")) == r"cursor: 'a\r\nb' is bad"


def test_every_error_is_in_the_tree_of_the_modules_docstring() -> None:
    kinds = {
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)
    }

    assert {name for name in kinds if name not in (errors.__doc__ or "")} == set()
    assert all(issubclass(getattr(errors, name), JetstreamError) for name in kinds)
    assert issubclass(LogUnwritable, LogError)
