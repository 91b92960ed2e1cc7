"""Which of upstream's numbers to take, which to skip, and which to distrust.

`seq` rises with every frame of one host; gaps are allowed. From that rule and four ways in which it fails
in the field (`wire.md`, last table) follows the table below, where `last` is the highest number taken:

    seq                                   then
    ------------------------------------  -------------------------------------------------------------
    last < seq <= last + JUMP             take; a gap is counted if it is not last + 1
    seq > last + JUMP                     take, but distrust: `last` stays until a frame continues it
    last - ANEW <= seq <= last            a repeat: skip
    seq < last - ANEW                     a repeat, unless the connection has shown nothing else: its
                                          frames are held, and when ANEW_FRAMES of them rise in a row
                                          the relay has begun anew: all held are taken, `last` is theirs
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

JUMP: Final = 10_000_000
ANEW: Final = 1_000_000
ANEW_FRAMES: Final = 3  # one far number may be a flipped bit, three that rise are a sequence
# A relay that renumbers in mid-connection would be silent for ever: after so many, connect again.
FAR_REPEATS_MAX: Final = 1_000

T = TypeVar("T")


class Sequence(Generic[T]):
    """The state of one upstream's numbering, over all its connections.

    `last` is the cursor to store and to resume from; None: nothing known, begin at the live end.
    `lost` is set when frames go on that can be neither taken nor explained: connect again.
    """

    def __init__(self, last: int | None) -> None:
        self.last = last
        self.gaps = 0
        self.jumps = 0
        self.restarts = 0
        self.repeats = 0
        self._unconfirmed = last is None  # the first number may be the poisoned one
        self._distrusted: int | None = None
        self._held: list[tuple[int, T]] = []
        self._only_far = True
        self._far_repeats = 0
        self._plain = False  # nothing of the above is at issue: the next number needs no look at it

    @property
    def lost(self) -> bool:
        """Whether this connection can no longer be followed."""
        return self._far_repeats >= FAR_REPEATS_MAX

    def connected(self) -> None:
        """Begin a new connection: what was held of the old one will come again."""
        self._held.clear()
        self._only_far = True
        self._far_repeats = 0
        self._plain = False

    def begin_anew(self) -> None:
        """Forget the cursor: upstream said that it lies in its future."""
        self.restarts += 1
        self.last = None
        self._unconfirmed = True
        self._distrusted = None
        self._plain = False

    def skip_one(self) -> None:
        """Step over the frame that follows the cursor: it cannot be received."""
        if self.last is not None:
            self.last += 1

    def follows(self, seq: int) -> bool:
        """Take `seq` if it is simply the next number; else leave it to `admit`."""
        if self._plain and seq - 1 == self.last:
            self.last = seq
            return True
        return False

    def admit(self, seq: int, item: T) -> list[T]:
        """Return the items to take now, in order: usually `item` alone, none for a repeat."""
        last = self.last
        if last is None or (self._unconfirmed and not last - ANEW <= seq <= last + JUMP):
            self.last = seq
            return [item]
        self._unconfirmed = False
        if seq < last - ANEW:
            return self._far_below(seq, item)
        self._only_far = False
        self._far_repeats = 0
        if self._held:
            self.repeats += len(self._held)
            self._held.clear()
        if seq <= last or seq == self._distrusted:
            self.repeats += 1
            return []
        if seq > last + JUMP:
            return self._far_above(seq, item)
        self._move(seq)
        return [item]

    def _move(self, seq: int) -> None:
        assert self.last is not None
        if seq != self.last + 1:
            self.gaps += 1
        self.last = seq
        self._distrusted = None
        self._plain = True

    def _far_above(self, seq: int, item: T) -> list[T]:
        distrusted = self._distrusted
        if distrusted is not None and distrusted < seq <= distrusted + JUMP:
            self.last = distrusted
            self._move(seq)
        else:
            self.jumps += 1
            self._distrusted = seq
            self._plain = False
        return [item]

    def _far_below(self, seq: int, item: T) -> list[T]:
        held = self._held
        self._plain = False
        if not self._only_far or (held and seq <= held[-1][0]):
            self.repeats += 1 + len(held)
            self._far_repeats += 1 + len(held)
            held.clear()
            self._only_far = False
            return []
        held.append((seq, item))
        if len(held) < ANEW_FRAMES:
            return []
        self.restarts += 1
        self.last = seq
        self._distrusted = None
        items = [item for _, item in held]
        held.clear()
        return items
