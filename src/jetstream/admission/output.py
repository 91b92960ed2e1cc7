"""What a run of judged messages comes to: events, and what is stored with them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jetstream.eventlog import Gap
from jetstream.model.event import Event


class Found(NamedTuple):
    """A gap, before the event that showed it has a position: `place` is that of the event."""

    place: int
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

    events: list[Event] = field(default_factory=list)
    gaps: list[Found] = field(default_factory=list)
    # When the oldest of the frames was received, in monotonic seconds; None: it is not known.
    received_at: float | None = None
    # Verdicts and reasons; what was left out, by source and reason.
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    drops: Counter[tuple[str, str]] = field(default_factory=Counter)

    def note_received(self, at: float) -> None:
        """Note when a frame was received."""
        self.received_at = at if self.received_at is None else min(at, self.received_at)

    def add(self, source: str, events: Sequence[Event], drops: Sequence[str]) -> None:
        """Add the events of a message, and what was left out of it."""
        self.events += events
        for reason in drops:
            self.drops[source, reason] += 1
