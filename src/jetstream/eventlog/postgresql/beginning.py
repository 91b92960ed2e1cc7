"""What a new term reads of the log, after its epoch is committed: nothing is stored behind its back.

Where the database may have lost commits, which is so after another server was promoted, positions continue
above what was reserved: readers may have seen positions that the log does not hold any more.

The watermark that was told before stays true: positions continue above it, also if the clock of this process
is behind that of the one before.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import asyncpg
import orjson

from jetstream.eventlog import SourceCursor
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.cursors import named_cursor
from jetstream.eventlog.postgresql.schema import SEALED, Epoch
from jetstream.eventlog.states import records_of
from jetstream.eventlog.watermark import watermark_of
from jetstream.upstreams import is_mirror

_NEWEST: Final = "SELECT id, last_us, appended FROM tail ORDER BY id DESC LIMIT 1"
_STATE: Final = f"""
SELECT s.tail, s.folded_id, s.repos, l.reserved_us, l.base_us, l.beat, {SEALED} AS sealed_us,
    (SELECT coalesce(sum(events), 0)::bigint FROM tail WHERE last_us <= {SEALED}) AS sealed_events,
    (SELECT count(*) FROM gap) AS gaps FROM state s, leader l
"""
# Two queries that give the cursors together: see `cursors_after`. `export` has the same need.
CURSORS: Final = "SELECT source, seq, provisional, fell_from, stored_to, unstored FROM cursor"
_CHANGED: Final = (
    "SELECT id, cursors, repos FROM tail WHERE cursors IS NOT NULL OR repos IS NOT NULL ORDER BY id"
)
MOVED: Final = "SELECT cursors FROM tail WHERE cursors IS NOT NULL ORDER BY id"
_ACCOUNTS: Final = "SELECT source, did, state FROM account"
# Differs after each promotion of another server. Not every compatible database has it.
_TIMELINE: Final = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"
# Positions continue above `base_us`: above what was reserved when the timeline was found to be another.
_SET_TIMELINE: Final = """
UPDATE leader SET timeline = $3,
    base_us = CASE WHEN timeline = $3 AND $3 <> '' THEN base_us ELSE reserved_us END
FROM term WHERE term.epoch = $1 AND term.holder = $2 RETURNING base_us
"""


class Stored(NamedTuple):
    """What the database held when the term began."""

    last_id: int  # of the newest row of the tail
    last_us: int  # its end
    begin_us: int  # the highest position that may have been given out
    appended: int  # events, ever
    reserved_us: int
    tail: str  # the table in use
    sealed_us: int  # the end of what is sealed; -1: nothing is
    sealed_events: int  # events of the tail that are sealed
    folded_id: int  # up to this row, states are in their table
    cursors: dict[str, SourceCursor]
    repos: dict[bytes, bytes | None]  # what has changed since then
    repo_rows: int
    accounts: dict[tuple[str, str], bytes]
    gaps: int


async def read_beginning(connection: asyncpg.Connection, epoch: Epoch, *, mirrors: bool = False) -> Stored:
    """Read what the log holds, in one snapshot. Raises Damaged.

    A term that `mirrors` goes on where a mirror's log ends: its positions are those of its upstream.

    Called once for each term, when its epoch is committed: no append of an earlier term can come after
    that. Reads all rows of the tail that have cursors or states, since those are newer than the tables of
    them. Raises what asyncpg raises.
    """
    await connection.fetchval(_SET_TIMELINE, *epoch, await _timeline(connection))
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        last_id, last_us, appended = await connection.fetchrow(_NEWEST)
        state = await connection.fetchrow(_STATE)
        cursors = await connection.fetch(CURSORS)
        changed = await connection.fetch(_CHANGED)
        accounts = await connection.fetch(_ACCOUNTS)

    known = cursors_after(cursors, [row["cursors"] for row in changed if row["cursors"] is not None])
    goes_on = mirrors and is_mirror((each.seq for each in known.values()), last_us)
    told_us = watermark_of(state["beat"])
    repos: dict[bytes, bytes | None] = {}
    for row in changed:
        if row["repos"] is not None and row["id"] > state["folded_id"]:
            repos.update(records_of(row["repos"]))
    return Stored(
        last_id=last_id,
        last_us=last_us,
        begin_us=max(last_us, 0) if goes_on else max(last_us, 0, state["base_us"], told_us - 1),
        appended=appended,
        reserved_us=state["reserved_us"],
        tail=state["tail"],
        sealed_us=state["sealed_us"],
        sealed_events=state["sealed_events"],
        folded_id=state["folded_id"],
        cursors=known,
        repos=repos,
        repo_rows=state["repos"],
        accounts={(source, did): packed for source, did, packed in accounts},
        gaps=state["gaps"],
    )


async def read_cursors(connection: asyncpg.Connection) -> dict[str, SourceCursor]:
    """Return how far each upstream was read. Raises Damaged.

    For a standby, which compares the sources before it takes over. Two snapshots, so it may be a mixture.
    """
    rows = await connection.fetch(CURSORS)
    return cursors_after(rows, [text for (text,) in await connection.fetch(MOVED)])


def cursors_after(rows: Iterable[tuple[Any, ...]], appended: Iterable[str]) -> dict[str, SourceCursor]:
    """Return the cursors: the rows of their table, then what rows of the tail have changed, in order.

    Raises Damaged.

    `appended` has the JSON of `Term._moved`: `[source, seq, …]` for a cursor, `[source]` for one that is
    gone.
    """
    cursors = dict(map(named_cursor, rows))
    for text in appended:
        for source, *values in _changes(text):
            if values:
                cursors |= [named_cursor((source, *values))]
            else:
                cursors.pop(source, None)
    return cursors


def _changes(text: str) -> list[list[Any]]:
    """Return what a row of the tail has changed of the cursors. Raises Damaged."""
    try:
        changes: list[list[Any]] = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Damaged(f"the cursors of a row of the tail are damaged: {error}") from error
    return changes


async def _timeline(connection: asyncpg.Connection) -> str:
    """Return what differs after a promotion; empty where nobody knows, or commits do not wait.

    It is the first part of the name of a WAL file: 8 hex digits. With `synchronous_commit` off, a crash
    without a promotion may lose commits as well, so the timeline proves nothing: an empty one counts as
    another at each start of a term.
    """
    with suppress(asyncpg.PostgresError):
        if await connection.fetchval("SHOW synchronous_commit") != "off":
            return str(await connection.fetchval(_TIMELINE))
    return ""
