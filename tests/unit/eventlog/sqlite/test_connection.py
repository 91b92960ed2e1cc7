from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jetstream.eventlog.sqlite.connection import Transaction

TABLES = """
    PRAGMA foreign_keys = ON;
    CREATE TABLE one (id INTEGER PRIMARY KEY);
    CREATE TABLE two (one INTEGER REFERENCES one DEFERRABLE INITIALLY DEFERRED);
"""


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "some.db", isolation_level=None)) as made:
        made.executescript(TABLES)
        yield made


def stored(connection: sqlite3.Connection) -> int:
    """Return how many rows are stored, as another connection sees it."""
    assert not connection.in_transaction
    (file,) = (path for _, name, path in connection.execute("PRAGMA database_list") if name == "main")
    with closing(sqlite3.connect(file)) as other:
        return int(
            other.execute("SELECT (SELECT count(*) FROM one) + (SELECT count(*) FROM two)").fetchone()[0]
        )


def test_all_statements_are_committed(connection: sqlite3.Connection) -> None:
    with Transaction(connection):
        connection.execute("INSERT INTO one VALUES (1)")
        connection.execute("INSERT INTO two VALUES (1)")
    assert stored(connection) == 2


def test_none_is_when_one_raises(connection: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError), Transaction(connection):
        connection.execute("INSERT INTO one VALUES (1)")
        connection.execute("INSERT INTO one VALUES (1)")
    assert stored(connection) == 0


def test_none_is_when_anything_else_raises(connection: sqlite3.Connection) -> None:
    with pytest.raises(KeyError), Transaction(connection):
        connection.execute("INSERT INTO one VALUES (1)")
        raise KeyError
    assert stored(connection) == 0


def test_none_is_when_the_commit_fails(connection: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError), Transaction(connection):
        connection.execute("INSERT INTO two VALUES (5)")
    assert stored(connection) == 0


def test_what_sqlite_has_rolled_back_itself_is_the_error_that_it_was(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO one VALUES (1)")
    with pytest.raises(sqlite3.IntegrityError), Transaction(connection):
        connection.execute("INSERT INTO one VALUES (2)")
        connection.execute("INSERT OR ROLLBACK INTO one VALUES (1)")
    assert stored(connection) == 1


def test_the_lock_is_taken_at_once(connection: sqlite3.Connection, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "some.db", isolation_level=None, timeout=0)) as other:
        with Transaction(other), pytest.raises(sqlite3.OperationalError, match="locked"):
            connection.execute("PRAGMA busy_timeout = 0")
            with Transaction(connection):
                raise AssertionError
        assert not connection.in_transaction
