"""docs/log-format.md says what the code does: its tables, its version, its limits."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from jetstream.eventlog.columns import NAMES
from jetstream.eventlog.segment import COLUMN_BYTES_MAX, DID_BITS
from jetstream.eventlog.sqlite.ages import ROWS_MAX
from jetstream.eventlog.sqlite.reservation import AHEAD_US
from jetstream.eventlog.sqlite.schema import APPLICATION_ID, SCHEMA, SCHEMA_VERSION
from jetstream.limits import LogLimits

PAGE = (Path(__file__).parents[4] / "docs" / "log-format.md").read_text()
LIMITS = LogLimits()
ROWS = {
    name.strip("`"): value
    for name, value in re.findall(r"^\| (.+?) \| ([^|]+) \| [^|]+ \|$", PAGE, re.MULTILINE)
}


def written(value: int) -> str:
    for unit, bits in ("MiB", 20), ("KiB", 10):
        if not value % (1 << bits):
            return f"{value >> bits} {unit}"
    return f"{value:,}"


@pytest.fixture
def schema() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    return connection


def test_every_table_has_a_row(schema: sqlite3.Connection) -> None:
    with closing(schema):
        tables = {name for (name,) in schema.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    documented = PAGE.partition("## Tables")[2].partition("### ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", documented, re.MULTILINE)) == tables


def test_every_column_of_a_segment_is_named(schema: sqlite3.Connection) -> None:
    with closing(schema):
        columns = {row[1] for row in schema.execute("PRAGMA table_info(segment)")}
    assert columns >= {"times", *NAMES}
    assert [name for name in columns - {"first_us", "last_us", "events"} if f"`{name}`" not in PAGE] == []


def test_the_version_is_that_of_the_code() -> None:
    assert f"version of the format: {SCHEMA_VERSION}." in PAGE
    assert f"0x{APPLICATION_ID:X}" in PAGE


@pytest.mark.parametrize("name", [name for name in ROWS if hasattr(LIMITS, name)])
def test_a_limit_is_that_of_the_code(name: str) -> None:
    assert ROWS[name] == written(getattr(LIMITS, name))


def test_limits_of_the_format_are_those_of_the_code() -> None:
    assert sum(hasattr(LIMITS, name) for name in ROWS) == 17
    assert ROWS["positions reserved ahead"] == f"{AHEAD_US // 1_000_000} s"
    assert ROWS["a column, decompressed"] == f"{COLUMN_BYTES_MAX >> 30} GiB"
    assert ROWS["rows of `stored"] == f"{ROWS_MAX:,}, and {ROWS_MAX:,} for a step of the clock"
    assert f"2^{DID_BITS.bit_length() - 1} bits" in PAGE
