"""Rewriting stored events: sealing the oldest rows of the tail, and erasing records of deleted accounts.

Everything is read and compressed beside appends. Then an engine puts it in the place of the old in one short
transaction. Only upkeep deletes rows of the tail, so the rows are the same in both steps.

Sealing compresses rows of the tail into a segment, which takes about 20 ms. Erasing takes several steps:

1. A tombstone is committed with the account event that causes it. The hot tail is cleaned at once. Both this
   and each step that rewrites something raise the revision of what is erased, by which other processes that
   have read the log know.
2. Upkeep passes over the segments, with the tombstones that exist at the start. The Bloom filter of each
   segment tells which ones to load; those that have erased records are rewritten.
3. At the end of the segments, rows of the tail are rewritten, and the tombstones of this pass are deleted in
   the same transaction. So an interrupted pass is repeated after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jetstream.eventlog.columns import Columns
from jetstream.eventlog.erase import Tombstones, without_erased
from jetstream.eventlog.reader import POSITION_MAX, Row, StoredReader
from jetstream.eventlog.segment import Segment, seal
from jetstream.model.did_set import DidSet
from jetstream.model.filter import Filter


def next_segment(reader: StoredReader) -> Segment | None:
    """Compress the oldest rows of the tail; None if they are not enough for a segment.

    Reads rows until they have `LogLimits.segment_events` events or `segment_bytes` of bodies. A row is
    never split, so a segment has up to one append more. Takes about 20 ms, in a thread, most of it
    without the GIL.
    """
    limits = reader.limits
    rows, enough = reader.tail_run(0, POSITION_MAX, limits.segment_events, limits.segment_bytes)
    return sealed(rows) if enough else None


def sealed(rows: Sequence[Row]) -> Segment:
    """Compress rows of the tail, some of which have events.

    The segment ends where the last row does, also if that one has no events left.
    """
    return seal(Columns.joined(row.columns for row in rows if row.events), rows[-1].last_us)


class Rewritten(NamedTuple):
    """A segment or a row of the tail without the erased records; `left` is None if no event is left.

    `table` is `segment` or `tail`. `last_us` is the key, which stays; `erased` is a number of events.
    """

    table: str
    last_us: int
    erased: int  # events
    left: Segment | Row | None


def next_rewritten(
    reader: StoredReader, tombstones: Tombstones, position: int
) -> tuple[int | None, list[Rewritten]]:
    """Rewrite, in memory, the next segment from `position` on that has erased records, and finally the tail.

    Returns the position at which to continue, None after the tail, and what was rewritten. That is nothing if
    one scan finds nothing.

    `tombstones` is not empty. Nothing at or above their highest position can be erased, so the pass ends
    there. It reads beside appends: rows that are appended meanwhile are above that position.
    """
    stop = max(tombstones.values())
    after, key = reader.scan(position, stop, Filter(dids=DidSet(tombstones)))
    if isinstance(key, int):
        batch = reader.load(key)
        kept = None if batch is None else without_erased(batch, tombstones)
        if batch is None or kept is None:
            return after, []
        segment = seal(Columns.of(kept), key) if len(kept) else None
        return after, [Rewritten("segment", key, len(batch) - len(kept), segment)]
    if after < stop:
        return after, []
    rows = []
    for row in reader.tail_rows(0, stop):
        kept = without_erased(row.columns.batch(), tombstones) if row.events else None
        if kept is not None:
            left = row._replace(events=len(kept), columns=Columns.of(kept)) if len(kept) else None
            rows.append(Rewritten("tail", row.last_us, row.events - len(kept), left))
    return None, rows
