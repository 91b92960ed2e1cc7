"""The watermark of a log: the position below which nothing more comes, and how a heartbeat carries it. Pure.

Positions are times of the writer's clock, so a reader cannot tell by a clock of its own that all events
before a time have come. The writer tells it: what is not stored yet has at least this position.

    ─────── events ───────▶ tip ┄┄┄ nothing, for ever ┄┄┄▶ watermark ┄┄┄ what may come ┄┄▶

Each heartbeat is one number: the watermark, rounded down to an even one, and a last bit that differs from
that of the heartbeat before. So it changes also while the watermark stands still. Writers of an earlier
version count their heartbeats instead: that is a watermark, too, and so low that it says nothing.
"""

from __future__ import annotations


def beat_after(beat: int, next_position: int) -> int:
    """Return the heartbeat that follows one, of a writer whose next event has at least a position."""
    return watermark_of(next_position) + 1 - beat % 2


def watermark_of(beat: int) -> int:
    """Return the watermark that a heartbeat carries."""
    return beat - beat % 2
