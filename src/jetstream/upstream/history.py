"""What the log keeps from before the numbers fell, as far as history that comes again begins with it.

A relay that ignores cursors sends its history from the start. What the log no longer keeps of it, or never
had, looks like a new sequence, and is taken as one (`sequence`). But history comes in order: one of the
oldest kept events comes again before any other does. So their keys are read once, when the numbers have
fallen, and each frame is compared with them, which costs little beside decoding it.

There are three places where history may come upon what is kept:

    floor       after what was trimmed
    begun at    after what was never taken: where a sequence before a fall began, at the live end
    known at    after records of deleted accounts, which the log has forgotten: where a frame was known last
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Protocol

from jetstream.model.event import Key
from jetstream.upstream.intake import Intake

FALLS_MAX: Final = 4  # that are remembered, while the server runs


class Kept(Protocol):
    """What is asked of the log. See `jetstream.eventlog.Log`."""

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing."""

    @property
    def tip(self) -> int:
        """The newest position."""

    async def holds(self, keys: Collection[Key]) -> Mapping[Key, int]:
        """Return those of the keys of which an event is kept, each with a position."""

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        """Return the keys of the oldest events in `[position, stop)`."""


class History:
    """Keeps `Intake.landmarks` up to date; some thousand keys each, while numbers are below a fall."""

    def __init__(self, kept: Kept, intake: Intake) -> None:
        self._kept = kept
        self._intake = intake
        self._begun_at: tuple[int, ...] = ()  # where in the log the sequences before the last falls began
        self._stop = kept.tip + 1  # where the last of them ended: at the fall, or with the process before
        self._tip = kept.tip  # the log's when it was looked at last
        self._falls = intake.sequence.falls  # of the sequence, when these were noted
        self._floor = -1  # the log's when the landmarks were read; -1: they must be read

    async def look(self) -> None:
        """Read the landmarks if the sequence has fallen, and again when the log's floor has risen.

        Call it when all that was taken is stored, and before more is.
        """
        sequence = self._intake.sequence
        if sequence.falls != self._falls:
            self._falls = sequence.falls
            # The frames that showed the fall are in the log already, above the tip of before.
            self._begun_at, self._stop = (*self._begun_at, self._stop)[-FALLS_MAX:], self._tip + 1
            self._floor = -1
        self._tip = self._kept.tip
        if not sequence.may_recur:
            self._intake.landmarks = frozenset()
        elif self._kept.floor >= self._stop:
            sequence.forget_fall()
        elif self._kept.floor != self._floor:
            await self._read()

    async def _read(self) -> None:
        self._floor = self._kept.floor
        landmarks: set[Key] = set()
        for start in {max(self._floor, at) for at in (0, *self._begun_at, self._intake.known_at)}:
            landmarks |= await self._kept.keys_from(start, self._stop)
        self._intake.landmarks = landmarks
