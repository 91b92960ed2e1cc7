"""Where upstream's numbers put a frame: next, above a gap, or in doubt.

`seq` rises with every frame of one host; gaps are allowed. In the field that rule fails: frames are resent,
neighbours are swapped, one number is far too high, a relay begins again at 1. So a number alone never decides
that a frame is dropped. It decides what the cursor is, and which frames are *in doubt*; of those, content
decides: a frame that the log holds is a repeat, any other is an event (`wire.md`, "Sequence").

    seq                in doubt                                    then, if it is no repeat
    -----------------  ------------------------------------------  ------------------------------------------
    last + 1           only if a frame of that number was taken    taken, `last` moves
                       and not confirmed
    above last + 1     the same; and unless the frame before it    taken, and *provisional*: `last` moves to
                       was taken at or above `last`; and if the    it when the next number is higher, and
                       gap is over NEAR                            forgets it when the next number is lower
    at or below last   always                                      taken; when RESTART_FRAMES of them rise in
                                                                   a row, a new sequence has begun: `last`
                                                                   moves down to it

A number whose gap is over NEAR is not confirmed by another such jump, for several rogue numbers may follow
each other; only by a near one, or when CONFIRM_FRAMES have been taken above `last`.

`last` also moves down when history comes again that begins before the oldest event of the log, for that part
is unknown. So until the numbers have passed where `last` fell from, no frame is taken by its number alone
(`may_recur`): one that was taken before the fall shows that this is history (`recur`). Then `last` goes back
up to what it was, and every frame is in doubt until one is new.
"""

from __future__ import annotations

from typing import Final

NEAR: Final = 10_000  # ten seconds of a large relay: what is skipped when frames are lost or filtered out
CONFIRM_FRAMES: Final = 10  # so many above `last` are a sequence, however far from each other they are
RESTART_FRAMES: Final = 3  # one number may be damaged, three that rise are a sequence
ROGUES_MAX: Final = 64  # numbers remembered; of those that are forgotten, a repeat after a gap is not noticed
_FAR: Final = 1 << 63  # above every number


class SeqTracker:
    """The state of one upstream's numbering, over all its connections.

    `last` is the cursor to store and to resume after; None: nothing known, begin at the live end.
    `provisional` is a number above it that was taken and is not confirmed. `fell_from` is what `last` was
    before it fell; None once the numbers have passed that, or nothing of then is kept. With `resumed`, all
    come from an earlier process, which may have taken others: every frame is in doubt until one is new. The
    first four counters grow until their reader sets them to 0.
    """

    def __init__(
        self,
        last: int | None,
        provisional: int | None = None,
        fell_from: int | None = None,
        *,
        resumed: bool = False,
    ) -> None:
        self.last = last  # rises with the frames, falls when a sequence restarts
        self.provisional = None if last is None else provisional  # set by a gap, cleared by the next number
        self.fell_from = fell_from  # set when `last` falls
        self.gaps = 0  # numbers that were skipped, however many at once
        self.jumps = 0  # gaps over NEAR
        self.restarts = 0  # sequences that began below the last number
        self.repeats = 0  # frames that were known
        self.falls = 0  # how often `last` fell, or was forgotten; this counter is never set back
        self._rogues: dict[int, None] = {}  # numbers taken above `last` and not confirmed, oldest first
        self._all_in_doubt = resumed  # until a frame is new: more was taken than the numbers here say
        self._in_step = False  # the frame before was taken, on this connection, and not below `last`
        self._alone = last is None  # `last` rests on one frame: the first of all
        self._unconfirmed = 0  # frames taken above `last` since it moved
        self._low = 0  # the number of the frame before, if that was below `last`
        self._lows = 0  # how many of those have risen in a row
        self._recurred = 0  # how many rising frames in a row were taken before `last` fell
        self._recurred_at = 0  # the number of the last of them
        self._before = 0  # `follows` takes numbers below this: 0 while anything above is at issue

    @property
    def unconfirmed(self) -> int | None:
        """The number to store beside `last`: of the frames taken above it, the one that came last."""
        above = (rogue for rogue in reversed(self._rogues) if rogue > (self.last or 0))
        return next(above, None) if self.provisional is None else self.provisional

    @property
    def may_recur(self) -> bool:
        """Whether a number above `last` may be that of a frame taken before `last` fell."""
        return self.fell_from is not None

    def connected(self) -> None:
        """Begin a new connection: nothing is in step with it yet."""
        self._in_step = False
        self._lows = self._recurred = 0
        self._before = 0

    def restart(self) -> None:
        """Forget the cursor: upstream said that it lies in its future."""
        self.restarts += 1
        self._fell()
        self.last = self.provisional = None
        self._rogues.clear()
        self.connected()

    def recur(self, seq: int) -> None:
        """Note that a frame comes again which the log held when `last` fell.

        When so many of them rise above `last` as make a sequence, this is history: `last` goes back up to
        where it fell from. One alone may be an old record that a new relay numbers again.
        """
        rises = (self.last or 0) < seq
        self.repeat(seq)
        if self.fell_from is None or not rises or seq >= self.fell_from:
            return
        self._recurred = self._recurred + 1 if seq > self._recurred_at else 1
        self._recurred_at = seq
        if self._recurred == RESTART_FRAMES:
            self.last, self.fell_from = self.fell_from, None
            self.provisional = None
            self._all_in_doubt = True
            self.connected()

    def forget_fall(self) -> None:
        """Note that the log keeps nothing of before `last` fell: no frame of then can be told any more."""
        self.fell_from = None
        self._look_ahead()

    def follows(self, seq: int) -> bool:
        """Take `seq` if it is simply the next number; else leave it to the other methods."""
        if seq - 1 == self.last and seq < self._before:
            self.last = seq
            return True
        return False

    def doubts(self, seq: int) -> bool:
        """Tell whether a frame of this number may have been taken before."""
        last = self.last
        if last is None or seq <= last or seq in self._rogues or seq == self.provisional:
            return True
        if self._all_in_doubt:
            return True
        if seq == last + 1:
            return False
        return not self._in_step or seq - max(last, self.provisional or 0) > NEAR

    def take(self, seq: int) -> None:
        """Note that a frame of this number is taken: it was not in doubt, or the log does not hold it."""
        last = self.last
        self._all_in_doubt = False
        self._recurred = 0
        if last is None:
            self.last = seq
            self._alone = self._in_step = True
            self._lows = 0
        elif seq > last:
            self._rise(last, seq)
        else:
            self._fall(seq)
        self._look_ahead()

    def repeat(self, seq: int) -> None:
        """Note that a frame is left out: its content was taken before."""
        self.repeats += 1
        if self.last is not None and seq == self.last + 1:
            self.last = seq  # it came out of turn, and here is its place
        else:
            self._in_step = False
        self._lows = 0
        self._look_ahead()

    def pass_over(self, seq: int) -> bool:
        """Note a frame that holds no event; return whether its number is taken."""
        if self.last is not None and (seq <= self.last or seq == self.provisional):
            self.repeats += 1
            return False
        all_in_doubt = self._all_in_doubt
        self.take(seq)
        self._all_in_doubt = all_in_doubt  # nothing was new
        self._look_ahead()
        return True

    def _rise(self, last: int, seq: int) -> None:
        provisional, self.provisional = self.provisional, None
        if provisional is not None and seq != provisional:
            if seq > provisional and self._confirms(last, provisional, seq):
                last = self._move(provisional)
            else:
                self._dismiss(provisional)
        if seq == last + 1:
            self._move(seq)
        else:
            self.provisional = seq
            self._unconfirmed += 1
            self.gaps += 1
            self.jumps += seq - last > NEAR
        self._in_step = True
        self._alone = False
        self._lows = 0

    def _confirms(self, last: int, provisional: int, seq: int) -> bool:
        near = min(seq - provisional, provisional - last) <= NEAR
        return near or self._unconfirmed >= CONFIRM_FRAMES

    def _move(self, seq: int) -> int:
        self.last = seq
        self._unconfirmed = 0
        return seq

    def _dismiss(self, seq: int) -> None:
        """Remember a number that was taken and not confirmed: its frame may come again."""
        self._rogues[seq] = None
        if len(self._rogues) > ROGUES_MAX:
            del self._rogues[next(iter(self._rogues))]

    def _fall(self, seq: int) -> None:
        self._lows = self._lows + 1 if self._lows and seq > self._low else 1
        self._low = seq
        self._in_step = False
        if self._alone or self._lows == RESTART_FRAMES:
            self.restarts += 1
            self._fell()
            self.provisional = None
            self._move(seq)
            self._in_step = True
            self._alone = False
            self._lows = 0

    def _fell(self) -> None:
        self.falls += 1
        if self.last is not None:
            self.fell_from = max(self.last, self.fell_from or 0)

    def _look_ahead(self) -> None:
        """Find up to where numbers that follow each other need no closer look."""
        last = self.last
        self._before = 0
        if last is None:
            return
        if self.fell_from is not None and last >= self.fell_from:
            self.fell_from = None
        if self._is_simple():
            for rogue in [rogue for rogue in self._rogues if rogue <= last]:
                del self._rogues[rogue]
            self._before = min(self._rogues, default=_FAR)

    def _is_simple(self) -> bool:
        """Tell whether nothing but rogue numbers is at issue."""
        at_issue = self._all_in_doubt or self._alone or self.provisional is not None
        return self._in_step and not at_issue and self.fell_from is None
