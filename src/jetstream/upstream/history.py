"""Recognises history that begins before what the log keeps, by the oldest events that it does keep.

A relay that ignores cursors sends its history from the start. The part that the log no longer keeps, or never
had, looks like a new sequence and is accepted as one (`seq_tracker`). But history comes in order: one of the
oldest events that are kept comes again before any other of them. So when the numbers have fallen, the keys of
those events are read once, and each frame is compared with them. That costs little beside decoding it.

There are three places where history can run into what is kept:

    the floor           after what was trimmed
    where a sequence    after what was never received: the sequence before a fall began here, at the
    began               live end
    where a frame was   after records of deleted accounts, which the log has erased
    last recognised
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from jetstream.limits import UpstreamLimits
from jetstream.model.event import Key
from jetstream.upstream.pipeline import Pipeline


class KeyLookup(Protocol):
    """What upstream asks of the log: a part of `jetstream.eventlog.LogWriter`."""

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing."""

    @property
    def tip(self) -> int:
        """The newest position."""

    async def holds(self, keys: Collection[Key]) -> Mapping[Key, int]:
        """Return the keys of which an event is kept, each with a position."""

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        """Return the keys of the oldest events in `[position, stop)`."""


class History:
    """Keeps `Pipeline.history_keys` up to date. Used by the task of one source.

    There are some thousand keys for each place, and none while numbers are not below a fall.
    """

    def __init__(self, log: KeyLookup, pipeline: Pipeline, limits: UpstreamLimits = UpstreamLimits()) -> None:
        # The log, or what judges messages before it (`Admission`): it also knows what waits.
        self._log = log
        self._pipeline = pipeline
        # How many earlier sequences are remembered. What began before the oldest of them may be taken
        # for new.
        self._falls_max = limits.falls_max
        # Positions at which the sequences before the last falls began, oldest first; `falls_max` at most.
        self._began_at: tuple[int, ...] = ()
        # The position at which the last of them ended: at the fall, or with the process before this one.
        self._stop = log.tip + 1
        # The log's tip at the last `update`.
        self._tip = log.tip
        # The tracker's count of falls that `_began_at` and `_stop` are of.
        self._falls = pipeline.tracker.falls
        # The log's floor when the keys were read; -1: they must be read.
        self._floor = -1

    async def update(self) -> None:
        """Read the keys if the numbers have fallen, and again whenever the log's floor has risen.

        Call it when all that was accepted is stored, and before more is.
        """
        tracker = self._pipeline.tracker
        if tracker.falls != self._falls:
            self._falls = tracker.falls
            # The frames that showed the fall are in the log already, above the tip of the last call.
            self._began_at, self._stop = (*self._began_at, self._stop)[-self._falls_max :], self._tip + 1
            self._floor = -1
        self._tip = self._log.tip
        if not tracker.may_recur:
            self._pipeline.history_keys = frozenset()
        # Nothing from before the fall is kept any more, so nothing can be recognised.
        elif self._log.floor >= self._stop:
            tracker.forget_fall()
        elif self._log.floor != self._floor:
            await self._read()

    async def _read(self) -> None:
        """Read the keys of the oldest events after each place. Raises LogError.

        A place below the floor counts as the floor: what was there is trimmed.
        """
        self._floor = self._log.floor
        keys: set[Key] = set()
        for start in {max(self._floor, at) for at in (0, *self._began_at, self._pipeline.known_at)}:
            keys |= await self._log.keys_from(start, self._stop)
        self._pipeline.history_keys = keys
