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


def transact(connection: sqlite3.Connection, *statements: str) -> None:
    with Transaction(connection):
        for statement in statements:
            connection.execute(statement)


def test_all_statements_are_committed(connection: sqlite3.Connection) -> None:
    transact(connection, "INSERT INTO one VALUES (1)", "INSERT INTO two VALUES (1)")
    assert stored(connection) == 2


def test_none_is_when_one_raises(connection: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        transact(connection, "INSERT INTO one VALUES (1)", "INSERT INTO one VALUES (1)")
    assert stored(connection) == 0


def test_none_is_when_the_commit_fails(connection: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        transact(connection, "INSERT INTO two VALUES (5)")
    assert stored(connection) == 0


def test_the_error_is_that_of_a_statement_after_which_sqlite_rolls_back(
    connection: sqlite3.Connection,
) -> None:
    transact(connection, "INSERT INTO one VALUES (1)")
    with pytest.raises(sqlite3.IntegrityError):
        transact(connection, "INSERT INTO one VALUES (2)", "INSERT OR ROLLBACK INTO one VALUES (1)")
    assert stored(connection) == 1


def test_the_lock_is_taken_at_once(connection: sqlite3.Connection, tmp_path: Path) -> None:
    connection.execute("PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(tmp_path / "some.db", isolation_level=None)) as other, Transaction(other):
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            transact(connection)
        assert not connection.in_transaction
