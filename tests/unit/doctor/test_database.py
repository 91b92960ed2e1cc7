from __future__ import annotations

import pytest

from jetstream.doctor.database import judge_database


@pytest.mark.parametrize(
    ("version", "off_us", "synchronous", "commit_ms", "level", "hint"),
    [
        (150_018, 0, "on", 2.0, "ok", ""),
        (140_005, 0, "on", 2.0, "fail", "PostgreSQL 15"),
        (170_000, 61_000_000, "on", 2.0, "fail", "does not lead"),
        (170_000, 0, "off", 2.0, "warn", "set it to on"),
        (170_000, 0, "remote_apply", 45.0, "warn", "faster disk"),
    ],
)
def test_what_is_wrong_with_a_database_is_said_with_what_to_do(
    version: int, off_us: int, synchronous: str, commit_ms: float, level: str, hint: str
) -> None:
    found = judge_database(version, off_us, synchronous, commit_ms)
    assert (found.check, found.level) == ("database", level)
    assert hint in found.hint
    assert f"PostgreSQL {version // 10_000}" in found.text
