"""The replay window of a host: the newest items of its firehose, which subscribers take by position."""

from __future__ import annotations

from bisect import bisect_right
from itertools import islice
from typing import Final, NamedTuple

from jetstream.simulator.added import Effect

WINDOW_FRAMES: Final = 20_000  # about 70 MB
# After these a connection gets nothing more.
_LAST: Final = frozenset((Effect.ERROR, Effect.DROP, Effect.STALL))


class Item(NamedTuple):
    """One item of the stream."""

    seq: int  # of the last frame so far
    effect: Effect
    frame: bytes  # empty for effects without a frame


class Window:
    """The items so far, as far back as the window reaches."""

    def __init__(self, size: int = WINDOW_FRAMES) -> None:
        self.first = 0  # the position of the oldest item in the window
        self._items: list[Item] = []
        self._size = size  # in items, to within a quarter
        self._done: set[int] = set()  # positions of items that only one subscriber gets, and has got

    @property
    def end(self) -> int:
        """The position after the newest item."""
        return self.first + len(self._items)

    @property
    def oldest_seq(self) -> int:
        """The number of the oldest frame in the window, 0 before the first frame."""
        return self._items[0].seq if self._items else 0

    def take(self, position: int, count: int) -> tuple[list[Item], int]:
        """Return up to `count` items from a position for one subscriber, and the position after them.

        An item for one subscriber only is left out if another has got it. An item that ends or silences the
        connection is the last one returned.
        """
        taken: list[Item] = []
        start = position - self.first
        for item in islice(self._items, start, start + count):
            place, position = position, position + 1
            if item.effect is not Effect.SEND:
                if place in self._done:
                    continue
                self._done.add(place)
            taken.append(item)
            if item.effect in _LAST:
                break
        return taken, position

    def position_after(self, seq: int) -> int:
        """Return the position after the items up to a number."""
        return self.first + bisect_right(self._items, seq, key=lambda item: item.seq)

    def add(self, item: Item) -> None:
        """Append an item."""
        self._items.append(item)

    def trim(self) -> None:
        """Forget the oldest items above the size."""
        excess = len(self._items) - self._size
        if excess > self._size // 4:
            del self._items[:excess]
            self.first += excess
            self._done = {place for place in self._done if place >= self.first}
