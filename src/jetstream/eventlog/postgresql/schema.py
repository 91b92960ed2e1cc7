"""The tables of the log in PostgreSQL, and the statements that several modules share.

    term        which process writes: one row, locked by each append for as long as that takes
    leader      what only the writer changes, and standbys watch: its heartbeat with the watermark, the
                positions it has reserved
    state       the whole log: the floor, counters, the revision of erasures
    tail_a, _b  batches as they were committed, with the cursors and states that moved: in use in turn
    tail        a view of both
    segment     sealed segments
    cursor      how far each upstream was read, as of the last change of tables
    repo        the states of repositories, as of the last fold
    tombstone, gap, account   as in SQLite

Each append is one new row, and changes no other: so a long transaction of somebody else, which keeps vacuum
from removing old versions of rows, makes nothing slower. Rows are never deleted from a tail. When it is long
enough, what is not sealed yet is copied to the other table, and the first one is emptied with TRUNCATE.

A row of the tail has an `id` that follows the one before it, and its range of positions:

    follows_us    first_us ── events ── last_us
    ────┼─────────────┼────────────────────┼──▶
        └── the end of the row before it: a reader that has not seen it waits

A row without events, which has only cursors or states, has an empty range: its `first_us` is above its
`last_us`.

Integers are positions in microseconds, or counts. Bytes are as in SQLite: segments column by column; a row
of the tail as one zstd frame of `Columns.packed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import asyncpg
import zstandard

from jetstream import __version__
from jetstream.errors import LogError, LogFormat
from jetstream.eventlog.columns import Columns
from jetstream.eventlog.reader import Row
from jetstream.eventlog.segment import decompress
from jetstream.urls import shown

# The version of the tables. A program reads and writes the version before as well, so that an upgrade of many
# machines changes the tables last.
VERSION: Final = 1
# What makes the tables of each version those of the next one.
MIGRATIONS: Final[Mapping[int, Sequence[str]]] = {}
CHANNEL: Final = "jetstream"  # of NOTIFY
TAILS: Final = ("a", "b")

_BLOBS: Final = (
    "collection_set",
    "did_bits",
    "accounts",
    "times",
    "kinds",
    "dids",
    "collections",
    "rkeys",
    "revs",
    "cids",
    "bodies",
)
_TAIL: Final = """
CREATE TABLE tail_%s (
    id        bigint PRIMARY KEY,
    last_us   bigint NOT NULL,
    follows_us bigint NOT NULL,
    first_us  bigint NOT NULL,
    events    integer NOT NULL,
    appended  bigint NOT NULL,
    nonce     bigint NOT NULL,
    data      bytea NOT NULL,
    cursors   text,
    repos     bytea
);
CREATE INDEX tail_%s_last_us ON tail_%s (last_us);
"""
SCHEMA: Final = f"""
CREATE TABLE term (
    id        smallint PRIMARY KEY CHECK (id = 1),
    epoch     bigint NOT NULL,
    holder    text NOT NULL
);
INSERT INTO term VALUES (1, 0, '');
CREATE TABLE leader (
    id        smallint PRIMARY KEY CHECK (id = 1),
    beat      bigint NOT NULL,
    reserved_us bigint NOT NULL,
    base_us   bigint NOT NULL,
    timeline  text NOT NULL
);
INSERT INTO leader VALUES (1, 0, 0, 0, '');
CREATE TABLE state (
    id        smallint PRIMARY KEY CHECK (id = 1),
    version   integer NOT NULL,
    floor_us  bigint NOT NULL,
    removed   bigint NOT NULL,
    revision  bigint NOT NULL,
    tail      text NOT NULL,
    folded_id bigint NOT NULL,
    repos     bigint NOT NULL
);
INSERT INTO state VALUES (1, {VERSION}, 0, 0, 0, 'a', 0, 0);
{"".join(_TAIL % (name, name, name) for name in TAILS)}
INSERT INTO tail_a VALUES (0, -1, -1, 0, 0, 0, 0, '', NULL, NULL);
CREATE VIEW tail AS SELECT * FROM tail_a UNION ALL SELECT * FROM tail_b;
CREATE TABLE segment (
    last_us   bigint PRIMARY KEY,
    follows_us bigint NOT NULL,
    first_us  bigint NOT NULL,
    events    integer NOT NULL,
    bytes     integer NOT NULL,
    {", ".join(f"{name} bytea NOT NULL" for name in _BLOBS)}
);
CREATE TABLE cursor (
    source    text PRIMARY KEY,
    seq       bigint NOT NULL,
    provisional bigint,
    fell_from bigint,
    stored_to bigint,
    unstored  text
);
CREATE TABLE repo (
    did       bytea PRIMARY KEY,
    state     bytea NOT NULL
);
CREATE TABLE tombstone (
    did       bytea PRIMARY KEY,
    before_us bigint NOT NULL
);
CREATE TABLE gap (
    time_us   bigint NOT NULL,
    did       text NOT NULL,
    after_rev text NOT NULL,
    rev       text NOT NULL,
    cause     text NOT NULL,
    PRIMARY KEY (time_us, did, rev)
);
CREATE TABLE account (
    source    text NOT NULL,
    did       text NOT NULL,
    state     bytea NOT NULL,
    PRIMARY KEY (source, did)
);
"""
# How PostgreSQL itself stores and vacuums the tables. A database that is only compatible may refuse some.
# What is compressed is not compressed again; batches of ordinary size stay in the rows of the tail; rows
# that change in place have room for their next version.
TUNING: Final = (
    *(f"ALTER TABLE segment ALTER COLUMN {name} SET STORAGE EXTERNAL" for name in _BLOBS),
    *(f"ALTER TABLE tail_{name} ALTER COLUMN data SET STORAGE EXTERNAL" for name in TAILS),
    *(f"ALTER TABLE tail_{name} ALTER COLUMN repos SET STORAGE EXTERNAL" for name in TAILS),
    *(f"ALTER TABLE tail_{name} SET (toast_tuple_target = 8160)" for name in TAILS),
    *(f"ALTER TABLE tail_{name} SET (autovacuum_vacuum_insert_threshold = -1)" for name in TAILS),
    "ALTER TABLE segment SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 50)",
    "ALTER TABLE segment SET (toast.autovacuum_vacuum_scale_factor = 0.02)",
    "ALTER TABLE segment SET (toast.autovacuum_vacuum_threshold = 1000)",
    "ALTER TABLE repo SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05)",
    *(
        f"ALTER TABLE {name} SET (fillfactor = 10, autovacuum_vacuum_threshold = 100)"
        for name in ("leader", "state")
    ),
)

TABLES: Final = "SELECT to_regclass('state') IS NOT NULL AND to_regclass('term') IS NOT NULL"
READ_VERSION: Final = "SELECT version FROM state"
# A migration has the table that all processes read for itself, or gives up: they wait meanwhile.
_LOCK: Final = "SET LOCAL lock_timeout = '2s'; LOCK TABLE state IN ACCESS EXCLUSIVE MODE"
_SET_VERSION: Final = "UPDATE state SET version = $1"
# The end of what is sealed: of the newest segment, or of those that were trimmed.
SEALED: Final = "(SELECT greatest(floor_us - 1, (SELECT max(last_us) FROM segment)) FROM state)"
# Locks the row of the term until the transaction ends: a process that takes over waits for it.
LEADING: Final = "SELECT 1 FROM term WHERE epoch = $1 AND holder = $2 FOR SHARE"

# Level 1: it runs on the event loop, and sealing compresses the events again.
_compressor: Final = zstandard.ZstdCompressor(level=1, write_checksum=True)
# The columns of a row without events.
NOTHING: Final = Columns(*[b""] * 8)


class Epoch(NamedTuple):
    """A term of one process: the key that its statements are checked with."""

    number: int
    holder: str  # the process, and what tells its terms apart


async def create(connection: asyncpg.Connection) -> None:
    """Create the tables in a database without them. Another process may do so at the same time.

    Raises what asyncpg raises. `TUNING` is not part of the transaction: what a database refuses of it is
    left out.
    """
    if await connection.fetchval(TABLES):
        return
    try:
        async with connection.transaction():
            await connection.execute(SCHEMA)
    except (asyncpg.UniqueViolationError, asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError):
        if not await connection.fetchval(TABLES):
            raise
        return
    for statement in TUNING:
        try:
            await connection.execute(statement)
        except asyncpg.PostgresError as error:
            if not isinstance(
                error,
                asyncpg.FeatureNotSupportedError
                | asyncpg.PostgresSyntaxError
                | asyncpg.InvalidParameterValueError,
            ):
                raise


async def check_version(connection: asyncpg.Connection, address: str, known: int = VERSION) -> int:
    """Return the version of the tables. Raises LogError if there are none, LogFormat for a foreign version.

    A program uses the tables of the version before its own as they are, until they are migrated.

    `known` is the version of this program; tests pass others.
    """
    if not await connection.fetchval(TABLES):
        raise LogError(
            shown(address),
            "has no tables of a log: start a process that writes it, or run `jetstream log migrate`",
        )
    version: int = await connection.fetchval(READ_VERSION)
    if version not in (known, known - 1) or version < 1:
        both = f"{known - 1} and {known}" if known > 1 else f"{known}"
        problem = f"has tables of version {version}, and this program ({__version__}) reads {both}"
        raise LogFormat(shown(address), problem)
    return version


async def migrate(
    connection: asyncpg.Connection,
    address: str,
    known: int = VERSION,
    migrations: Mapping[int, Sequence[str]] = MIGRATIONS,
) -> int:
    """Change tables of the version before; return their version. Programs may use them meanwhile.

    Raises LogError or LogFormat as `check_version` does.
    """
    await check_version(connection, address, known)
    async with connection.transaction():
        await connection.execute(_LOCK)
        version = await check_version(connection, address, known)  # another process may have migrated them
        if version < known:
            for statement in migrations[version]:
                await connection.execute(statement)
            await connection.execute(_SET_VERSION, known)
    return known


def pack(columns: Columns) -> bytes:
    """Return the events of a row of the tail, compressed. Used by the event loop's thread only."""
    return _compressor.compress(columns.packed())


def read_row(stored: Any) -> Row:
    """Take `last_us, first_us, events, data, follows_us` of a row of the tail. Raises Damaged."""
    last_us, first_us, events, data, follows_us = stored
    columns = Columns.unpacked(decompress(data)) if events else NOTHING
    return Row(last_us, first_us, events, columns, follows_us)
