"""The cursors of upstreams as the log stores them: rows of plain values. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import sub
from typing import Any

from jetstream.eventlog import SourceCursor
from jetstream.eventlog.columns import Damaged


def named_cursor(row: Sequence[Any]) -> tuple[str, SourceCursor]:
    """Return a source and its cursor from what `cursor_row` has returned. Raises Damaged.

    `unstored` becomes numbers again: each one is the sum of `seq` and the differences up to it.
    """
    source, *values, unstored = row
    cursor = SourceCursor(*values)
    if unstored is None:
        return source, cursor
    try:
        seqs = tuple(accumulate(map(int, unstored.split(" ")), initial=cursor.seq))[1:]
    except (ValueError, AttributeError, TypeError) as error:
        raise Damaged(f"the cursor of {source} is damaged: {error}") from error
    return source, cursor._replace(unstored=seqs)


def cursor_row(source: str, cursor: SourceCursor) -> tuple[Any, ...]:
    """Return the values: source, seq, provisional, fell_from, stored_to, unstored.

    SQLite and PostgreSQL store them in columns of these names; the journal, and rows of the tail in
    PostgreSQL, as JSON. `unstored` is text, since it may have thousands of numbers of which each takes 3
    bytes.
    """
    return (source, *cursor[:-1], _packed_seqs(cursor))


def _packed_seqs(cursor: SourceCursor) -> str | None:
    """Return what is `unstored` as differences, the first one to `seq`; None if nothing is."""
    seqs = cursor.unstored
    return " ".join(map(str, map(sub, seqs, (cursor.seq, *seqs)))) if seqs else None
