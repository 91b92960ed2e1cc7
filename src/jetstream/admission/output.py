"""What a run of judged messages comes to: events, and what is stored with them. Pure.

The judge fills one `Output` until `Admission` takes it for the next append, and then another one. States and
cursors are not part of it: they are taken from `States`, `Accounts` and `Marks` at the same time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jetstream.eventlog import Gap
from jetstream.model.event import Event


class Found(NamedTuple):
    """A gap, before the event that showed it has a position: `place` is that of the event."""

    # The index in `Output.events` of the first event of the message that showed it.
    place: int
    # The rest is that of `eventlog.Gap`: `after_rev` is the newest rev before it, `rev` that of the message.
    did: str
    after_rev: str
    rev: str
    cause: str

    def at(self, time_us: int) -> Gap:
        """Return the gap as it is stored; `time_us` is the position of the event."""
        return Gap(time_us, *self[1:])


@dataclass(slots=True)
class Output:
    """Events in order, and everything else that was found, since the last append."""

    # In the order in which they get their positions.
    events: list[Event] = field(default_factory=list)
    # In the same order. Each gap of a commit comes with a #sync event.
    gaps: list[Found] = field(default_factory=list)
    # When the oldest of the frames was received, in monotonic seconds; None: it is not known.
    received_at: float | None = None
    # Counts by verdict and reason (`verify.verdict`), and of what was left out by source and reason
    # (`upstream.drops`).
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    drops: Counter[tuple[str, str]] = field(default_factory=Counter)

    def note_received(self, at: float) -> None:
        """Keep the time at which a frame was received, in monotonic seconds, if it is the oldest."""
        self.received_at = at if self.received_at is None else min(at, self.received_at)

    def add(self, source: str, events: Sequence[Event], drops: Sequence[str]) -> None:
        """Add the events of a message, and what was left out of it."""
        self.events += events
        for reason in drops:
            self.drops[source, reason] += 1
