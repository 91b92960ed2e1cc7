"""The watermark of a log: the position below which nothing more comes, and how a heartbeat carries it. Pure.

Positions are times of the writer's clock, so a reader cannot tell by a clock of its own that all events
before a time have come. The writer tells it: what is not stored yet has at least this position.

    ─────── events ───────▶ tip ┄┄┄ nothing, for ever ┄┄┄▶ watermark ┄┄┄ what may come ┄┄▶

Each heartbeat is one number: the watermark, rounded down to a multiple of `COUNTS`, and a count of
heartbeats, which begins again after so many. So it changes also while the watermark stands still, and for a
reader who does not see each of them. Writers of an earlier version only count: that is a watermark, too, and
so low that it says nothing.
"""

from __future__ import annotations

from typing import Final

# With a last bit that changes each time, a reader who sees every second heartbeat would see none change.
COUNTS: Final = 256


def beat_after(beat: int, next_position: int) -> int:
    """Return the heartbeat that follows one, of a writer whose next event has at least a position."""
    return watermark_of(next_position) + (beat + 1) % COUNTS


def watermark_of(beat: int) -> int:
    """Return the watermark that a heartbeat carries."""
    return beat - beat % COUNTS
