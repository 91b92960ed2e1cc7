"""What a log holds, counted: for `jetstream log stats` and `check`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from jetstream.eventlog import SourceCursor
from jetstream.model.batch import Batch


@dataclass
class Contents:
    """What a log holds, counted event by event."""

    bytes_on_disk: int  # of all tables; of SQLite with its write-ahead log
    # As `Log.floor` and `Log.tip` say, when counting began: events that came later are not counted.
    floor: int
    tip: int
    cursors: dict[str, SourceCursor]  # by source
    # Rows of the table of segments, also those below the floor.
    segments: int
    repos: int  # rows of the states of repositories, and changes that are not folded into these
    repo_changes: int
    gaps: int
    # The positions of the oldest and the newest event, None in an empty log.
    oldest_us: int | None = None
    newest_us: int | None = None
    # Events by kind, and commits by collection.
    kinds: Counter[bytes] = field(default_factory=Counter)
    collections: Counter[bytes] = field(default_factory=Counter)
    # Uncompressed bytes of all values but the times.
    text_bytes: int = 0

    def add(self, batch: Batch) -> None:
        """Count the events of one batch.

        Batches come in the order of the log. Bodies of creates and updates are records; collections are
        counted for commits only, since other events have none.
        """
        if self.oldest_us is None:
            self.oldest_us = batch.first
        self.newest_us = batch.last
        self.kinds.update(batch.kinds)
        self.collections.update(filter(None, batch.collections))
        for column in (batch.dids, batch.collections, batch.rkeys, batch.revs, batch.cids, batch.bodies):
            self.text_bytes += sum(map(len, column))


@dataclass
class Checked:
    """What a check has found: undamaged segments, events in them and in the tail, and what is wrong.

    For a log in PostgreSQL; `sqlite.check.Findings` says more, since a file can be repaired.
    """

    segments: int = 0
    events: int = 0
    problems: list[str] = field(default_factory=list)  # sentences for people
