"""Which of upstream's numbers to take, which to skip, and which to distrust.

`seq` rises with every frame of one host; gaps are allowed. From that rule and the ways in which it fails
in the field (`wire.md`, last table) follows the table below, where `last` is the highest number taken:

    seq                                   then
    ------------------------------------  -------------------------------------------------------------
    last < seq <= last + JUMP             take; a gap is counted if it is not last + 1
    seq > last + JUMP                     take, but distrust: `last` stays until a frame continues it
    last - ANEW <= seq <= last            a repeat: skip; but right after a gap, what would have been the
                                          number after next shows that the one between had a flipped
                                          bit: take, and go on from here
    seq < last - ANEW                     a repeat, unless the connection has shown nothing else: its
                                          frames are held, and when ANEW_FRAMES of them rise in a row
                                          the relay has begun anew: all held are taken, `last` is theirs

The first number of all may be the damaged one: until another continues it, what lies far from it replaces
it, and what lies below it is held as in the last row.
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
        self._first: tuple[T] | None = None  # the first frame of all, until another continues it
        self._gap: tuple[int, T] | None = None  # just now: the number before it, and the frame after it
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
        """Begin a new connection: what was held of the old one is given up."""
        self._give_up_held()
        self._gap = None
        self._only_far = True
        self._far_repeats = 0
        self._plain = False

    def begin_anew(self) -> None:
        """Forget the cursor: upstream said that it lies in its future."""
        self.restarts += 1
        self.last = None
        self._distrusted = None
        self._plain = False

    def follows(self, seq: int) -> bool:
        """Take `seq` if it is simply the next number; else leave it to `admit`."""
        if self._plain and seq - 1 == self.last:
            self.last = seq
            return True
        return False

    def admit(self, seq: int, item: T) -> list[T]:
        """Return the items to take now, in order: usually `item` alone, none for a repeat."""
        last = self.last
        gap, self._gap = self._gap, None
        if last is None or (self._first and not last - ANEW <= seq <= last + JUMP):
            self._give_up_held()
            self.last = seq
            self._first = (item,)
            return [item]
        if gap is not None and seq == gap[0] + 2 and seq <= last and item != gap[1]:
            self.last = seq
            self._plain = True
            return [item]
        if self._is_of_another_sequence(last, seq, item):
            return self._hold(seq, item)
        self._first = None
        self._only_far = False
        self._far_repeats = 0
        self._give_up_held()
        if seq <= last or seq == self._distrusted:
            self.repeats += 1
            return []
        if seq > last + JUMP:
            return self._far_above(seq, item)
        self._move(last, seq, item)
        return [item]

    def _move(self, last: int, seq: int, item: T) -> None:
        self._plain = seq == last + 1
        if not self._plain:
            self.gaps += 1
            self._gap = (last, item)
        self.last = seq
        self._distrusted = None

    def _give_up_held(self) -> None:
        self.repeats += len(self._held)
        self._held.clear()

    def _far_above(self, seq: int, item: T) -> list[T]:
        distrusted = self._distrusted
        if distrusted is not None and distrusted < seq <= distrusted + JUMP:
            self._move(distrusted, seq, item)
        else:
            self.jumps += 1
            self._distrusted = seq
            self._plain = False
        return [item]

    def _is_of_another_sequence(self, last: int, seq: int, item: T) -> bool:
        if self._first is None:
            return seq < last - ANEW
        continues = bool(self._held) and seq == self._held[-1][0] + 1
        return (seq <= last or continues) and item != self._first[0]

    def _hold(self, seq: int, item: T) -> list[T]:
        held = self._held
        self._plain = False
        if not self._only_far or (held and seq <= held[-1][0]):
            self.repeats += 1
            self._far_repeats += 1 + len(held)
            self._give_up_held()
            self._only_far = False
            return []
        held.append((seq, item))
        if len(held) < ANEW_FRAMES:
            return []
        self.restarts += 1
        self.last = seq
        self._first = self._distrusted = None
        items = [item for _, item in held]
        held.clear()
        return items
