"""The states of repositories: what the newest message of each left, by compact DID.

    append ──▶ repo_change (a row per append) ──fold──▶ repo (a row per repository)
       └─────▶ recent (in memory)

An append writes its changes as one row at the end of `repo_change`, since rows of `repo` are all over the
file: each change there writes a page. Upkeep folds many changes at once, each repository once, in the order
of the keys:

1. What is `recent` becomes `folding`, and the number of its last row is noted. New changes are `recent`.
2. The states are written to `repo`, in short transactions, for which appends wait.
3. The rows of `repo_change` up to that number are deleted, the oldest first, and `folding` is forgotten.

A state is looked up in `recent`, in `folding`, and in `repo`. The first of them that knows the repository is
right, at any moment. After a crash, all rows of `repo_change` are `recent` again: what was folded already is
folded once more, with the same result.

The state of a repository that is not known is adopted from its next message. So a state may be forgotten:
when there are too many, or when it is damaged.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from secrets import token_bytes
from typing import Final
from zlib import crc32

import structlog

from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.sqlite.connection import Transaction
from jetstream.eventlog.sqlite.damage import is_damage
from jetstream.eventlog.states import DID_BYTES, RECORD_BYTES, Change, Repos, pack, records_of
from jetstream.limits import LogLimits
from jetstream.logging_setup import Throttled

PAGE_BYTES: Final = 4096  # of the tree that a row is on
# What a row of `repo` takes, with the free part of its page: for the share of the states in the whole file.
ROW_BYTES: Final = 60
# Changes of one repository count as well, since each is a record that is read at the start.
RECORDS_PER_REPO: Final = 8
# Above so many times the number at which folding begins, appends are refused.
OVERFULL: Final = 4
# Rows of `repo_change` that one transaction deletes: a twentieth of them, and so many at least.
DELETED_AT_ONCE: Final = 200
# Of so many neighbours, half of them are forgotten when there are too many: those with the oldest revs.
SAMPLED: Final = 1_000

# As `_ROW`, `_RISING` and `_FALLING` select it, and as `insert_states` takes it.
State = tuple[bytes, int, bytes]  # a row of `repo`: the state, its checksum, the DID

_CHANGES: Final = "SELECT id, crc, records FROM repo_change ORDER BY id"
_ROW: Final = "SELECT state, crc FROM repo WHERE did = ?"
_RISING: Final = "SELECT state, crc, did FROM repo WHERE did > ? ORDER BY did LIMIT ?"
_FALLING: Final = "SELECT state, crc, did FROM repo WHERE did < ? ORDER BY did DESC LIMIT ?"
# Compares `state`, which begins with the rev.
_OLDEST: Final = (
    "DELETE FROM repo WHERE did IN (SELECT did FROM"
    " (SELECT * FROM (SELECT did, state FROM repo WHERE did >= ?1 ORDER BY did LIMIT ?2)"
    " UNION ALL SELECT * FROM (SELECT did, state FROM repo WHERE did < ?1 ORDER BY did LIMIT ?2) LIMIT ?2)"
    " ORDER BY state LIMIT ?3)"
)


def unpack(records: bytes, crc: int) -> Iterator[Change]:
    """Yield the changes of one row. Raises Damaged."""
    try:
        matches = crc32(records) == crc and len(records) % RECORD_BYTES == 0
    except TypeError as error:  # not even bytes
        raise Damaged(str(error)) from error
    if not matches:
        raise Damaged("the states of repositories are damaged: a checksum does not match")
    yield from records_of(records)


def read_changes(connection: sqlite3.Connection) -> tuple[dict[bytes, bytes | None], int, int]:
    """Return all changes that are not deleted, the number of their records, and that of the last row.

    Raises Damaged, also for a missing row, or sqlite3.DatabaseError.
    """
    repos: dict[bytes, bytes | None] = {}
    records = last_id = 0
    for row_id, crc, packed in connection.execute(_CHANGES):
        if last_id and row_id != last_id + 1:
            raise Damaged("changes of the states of repositories are missing")
        repos.update(unpack(packed, crc))
        records, last_id = records + len(packed) // RECORD_BYTES, row_id
    return repos, records, last_id


class RepoStates:
    """What is known of all repositories. It belongs to the event loop's thread.

    `states_max` is how many rows `repo` may have.
    """

    def __init__(self, connection: sqlite3.Connection, limits: LogLimits, states_max: int) -> None:
        """Read all changes that are not folded. Raises Damaged or sqlite3.DatabaseError."""
        # The connection that appends.
        self._connection = connection
        self._limits = limits
        # Changes that are in no fold, how many records they are, and the row of the last one. Each append
        # adds some.
        self._recent, self._records, self._last_id = read_changes(connection)
        # The changes that are being folded, empty between two folds, and the row of their last one.
        self._folding: dict[bytes, bytes | None] = {}
        self.folded_to = 0
        # Rows of the table `repo`: upkeep counts them.
        (self.stored,) = connection.execute("SELECT repos FROM state").fetchone()
        self.states_max = states_max
        # Lookups find damage again and again.
        self._logger = Throttled(structlog.get_logger(__name__))

    def get(self, did: bytes) -> bytes | None:
        """Return the state of a repository, None if it is not known.

        Raises sqlite3.DatabaseError if the file cannot be read, but not for damage: that state is not known.
        """
        for changes in (self._recent, self._folding):
            if did in changes:
                return changes[did]
        try:
            row = self._connection.execute(_ROW, (did,)).fetchone()
            return None if row is None else _checked(did, *row)
        except (Damaged, sqlite3.DatabaseError) as error:
            if not is_damage(error):
                raise
            self._logger.warning("log: the state of a repository is damaged and forgotten", error=str(error))
            return None

    def add(self, repos: Repos) -> None:
        """Take over the changes of an append.

        Called after the append is stored. A state replaces the one that is known; None forgets it.
        """
        self._recent |= repos
        self._records += len(repos)

    def note_row(self, row_id: int | None) -> None:
        """Note the last row in which changes were stored; None: there were none."""
        self._last_id = self._last_id if row_id is None else row_id

    @property
    def is_due(self) -> bool:
        """Whether there is enough to fold, or a fold was begun."""
        return bool(self._folding) or self._exceeds(self._limits.repo_changes)

    @property
    def is_overfull(self) -> bool:
        """Whether folding has fallen behind so far that nothing more may be added."""
        return self._exceeds(OVERFULL * self._limits.repo_changes)

    def _exceeds(self, changes: int) -> bool:
        """Tell whether so many repositories have changed, or eight times as many records wait."""
        return len(self._recent) >= changes or self._records >= RECORDS_PER_REPO * changes

    def begin_fold(self) -> Repos:
        """Return what is to be folded: what a fold that failed has left, else all that is recent.

        All of it must be in rows: else a state could survive a loss of power without its event.
        """
        if not self._folding:
            self._folding, self._recent, self._records = self._recent, {}, 0
            self.folded_to = self._last_id
        return self._folding

    def end_fold(self) -> None:
        """Forget what was folded: it is in the table."""
        self._folding = {}


def insert_changes(connection: sqlite3.Connection, repos: Repos) -> int | None:
    """Write changes as a row, inside a transaction; return its number."""
    records = pack(repos)
    return connection.execute(
        "INSERT INTO repo_change (crc, records) VALUES (?, ?)", (crc32(records), records)
    ).lastrowid


# Steps of a fold, in the thread of upkeep


def warm(connection: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Read the pages of a step beside appends, so that the step need not wait for the disk."""
    for did, _ in changes:
        connection.execute(_ROW, (did,)).fetchone()


def fold(connection: sqlite3.Connection, changes: Sequence[Change]) -> int:
    """Write states to their table; return how many rows it has more than before.

    An exclusive step, in the order of the keys. The CRC-32 of a row is that of the DID and the state.
    """
    kept = [(state, crc32(did + state), did) for did, state in changes if state is not None]
    gone = [did for did, state in changes if state is None]
    with Transaction(connection):
        added = insert_states(connection, kept) - delete_states(connection, gone)
        count_states(connection, added)
    return added


def insert_states(connection: sqlite3.Connection, rows: Sequence[State]) -> int:
    """Write rows; return how many are new."""
    if not rows:
        return 0
    updated = connection.executemany("UPDATE repo SET state = ?, crc = ? WHERE did = ?", rows).rowcount
    if updated == len(rows):
        return 0
    insert = "INSERT OR IGNORE INTO repo (state, crc, did) VALUES (?, ?, ?)"
    return connection.executemany(insert, rows).rowcount


def delete_states(connection: sqlite3.Connection, dids: Sequence[bytes]) -> int:
    """Delete the rows of some DIDs; return how many there were."""
    if not dids:
        return 0
    return connection.executemany("DELETE FROM repo WHERE did = ?", [(did,) for did in dids]).rowcount


def count_states(connection: sqlite3.Connection, added: int) -> None:
    """Count rows of the table inside a transaction."""
    if added:
        connection.execute("UPDATE state SET repos = repos + ?", (added,))


def delete_folded(connection: sqlite3.Connection, last_id: int) -> bool:
    """Delete the oldest rows up to one that are folded; return whether there are more."""
    (first_id,) = connection.execute("SELECT ifnull(min(id), ?) FROM repo_change", (last_id,)).fetchone()
    end = min(first_id + max(DELETED_AT_ONCE, (last_id - first_id) // 20), last_id)
    with Transaction(connection):
        connection.execute("DELETE FROM repo_change WHERE id <= ?", (end,))
    return bool(end < last_id)


def forget_some(connection: sqlite3.Connection) -> int:
    """Delete the states with the oldest revs of a sample; return how many they are.

    Keys are hashes, so neighbours are a sample. It goes on at the start of the table when it reaches the end.
    """
    with Transaction(connection):
        start = token_bytes(DID_BYTES - 1)
        deleted = connection.execute(_OLDEST, (start, SAMPLED, SAMPLED // 2)).rowcount
        count_states(connection, -deleted)
    return deleted


# Checking


def whole_states(
    connection: sqlite3.Connection, damaged: list[bytes], *, falling: bool = False, at_once: int = 1_000
) -> Iterator[list[State]]:
    """Yield the undamaged rows of `repo`, some at a time, and collect the DIDs of the others.

    Raises Damaged or sqlite3.DatabaseError where pages are damaged. In the other direction, `falling`, what
    is behind these can be read.
    """
    query, last = (_FALLING, b"\xff" * DID_BYTES) if falling else (_RISING, b"")
    problem: Exception | None = None
    while problem is None:
        rows: list[State] = []
        try:
            rows.extend(connection.execute(query, (last, at_once)))
        except sqlite3.DatabaseError as error:
            problem = error
        if not rows:
            break
        before, last = last, rows[-1][-1]
        if not _follows(before, last, falling):
            problem = Damaged("the keys of states of repositories are out of order")
        whole = [row for row in rows if _is_whole(*row)]
        if len(whole) < len(rows):
            kept = {did for *_, did in whole}
            damaged.extend(did for *_, did in rows if did not in kept)
        yield whole
    if problem is not None:
        raise problem


def _follows(before: bytes, last: object, falling: bool) -> bool:
    """Tell whether a key is behind another one, so that reading goes on: damage may break the order."""
    return isinstance(last, bytes) and (last < before if falling else last > before)


def forget_all(connection: sqlite3.Connection) -> None:
    """Delete all states, inside a transaction."""
    connection.execute("DELETE FROM repo_change")
    connection.execute("DELETE FROM repo")
    connection.execute("UPDATE state SET repos = 0")


def _checked(did: bytes, state: bytes, crc: int) -> bytes:
    """Return a state. Raises Damaged if it does not match its checksum."""
    if not _is_whole(state, crc, did):
        raise Damaged("the checksum of a state does not match")
    return state


def _is_whole(state: bytes, crc: int, did: bytes) -> bool:
    """Tell whether a row of `repo` matches its checksum. Its values may be of any type."""
    try:
        return crc32(did + state) == crc
    except TypeError:  # not even bytes
        return False
