"""How far a subscription is, and when that is saved. Pure, except for the store."""

from __future__ import annotations

import time
from collections.abc import Callable

from jetstream.client.message import Mark, Message
from jetstream.client.store import CursorStore


class Progress:
    """The position below which everything is done, of one reader.

    An event is done when the reader asks for the next one, not when it gets it. So after a crash the events
    since the last save come again, and none is missed.
    """

    def __init__(
        self,
        store: CursorStore | None = None,
        position: int | None = None,
        *,
        stored: int | None = None,
        rewind_us: int = 0,
        save_every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Where to resume; None before the first connection of a live stream. It falls when another server,
        # which has other positions, takes over.
        self.position = position
        # Whether playback had caught up when the server last said so.
        self.live = False
        # The event that the reader has, and is not done with.
        self._current: Message | None = None
        self.save_every_s = save_every_s
        self._store = store
        # What the store has.
        self._saved = stored
        # How far below the position in the store the next process will begin.
        self._rewind_us = rewind_us
        # In monotonic seconds.
        self._clock = clock
        # The earliest time of the next save.
        self._save_at = clock()

    @property
    def saves(self) -> bool:
        """Whether there is a store."""
        return self._store is not None

    def take(self, item: Message | Mark) -> Message | None:
        """Take what the server has sent. Return it if it is an event: then the reader has it."""
        if isinstance(item, Mark):
            self.live = item.live
            if item.cursor is not None:
                self.position = item.cursor
            return None
        self._current = item
        return item

    def done(self) -> None:
        """Note that the reader is done with its event. Save if it is time. Raises what the store raises."""
        if self._current is not None:
            self.position = self._current.time_us + 1
            self._current = None
        self.save_if_due()

    def save_if_due(self) -> None:
        """Save the position, if the last save was long enough ago. Raises what the store raises."""
        if self._store is not None and self._clock() >= self._save_at:
            self.save()

    def save(self) -> None:
        """Save the position unless that has been done. Raises what the store raises."""
        if self._store is None or self.position is None or self._is_saved(self.position):
            return
        self._store.save(self.position)
        self._saved = self.position
        self._save_at = self._clock() + self.save_every_s

    @property
    def unsaved_s(self) -> float | None:
        """In how many seconds the position must be saved; None: it is."""
        if self._store is None or self.position is None or self._is_saved(self.position):
            return None
        return max(0.0, self._save_at - self._clock())

    def _is_saved(self, position: int) -> bool:
        """Tell whether another process would begin no later than at a position.

        One that is only a rewind lower, as after a change of server, is not saved: else each restart would
        begin a rewind earlier than the one before it.
        """
        return self._saved is not None and self._saved - self._rewind_us <= position <= self._saved
