"""Decides what an upstream's sequence numbers say: the next frame, one above a gap, or one in doubt. Pure.

`seq` rises with every frame of one host, and gaps are allowed. In the field that rule is broken: frames are
resent, neighbours are swapped, one number is far too high, a relay starts again at 1. So a number alone never
drops a frame. It decides what the cursor is, and which frames are *in doubt*. Those are decided by content: a
frame whose events the log holds is a repeat, any other is accepted (`docs/api.md`, "Sequence").

    seq                in doubt                                   if it is no repeat
    -----------------  -----------------------------------------  ------------------------------------------
    last + 1           only if a frame with that number was       accepted, `last` moves to it
                       accepted and not confirmed
    above last + 1     the same; and if the gap is over           accepted, and *provisional*: `last` moves to
                       `near_gap`; and unless the frame before    it when the next number is higher; when the
                       it was accepted at or above `last`         next number is lower, it is an *outlier*
    at or below last   always                                     accepted; when `restart_frames` of them rise
                                                                  in a row, a new sequence has begun: `last`
                                                                  *falls* to it

Each frame that has a number is told to one method, in order. `cursor`, `unconfirmed` and `fell_from` are then
what is to be stored:

    accept      it is new                           pass_over   the state of its repository knows it
    repeat      the log has it                      recur       the log had it before `last` fell
    skip        it has no events                    advance     it is the next number, and not in doubt

A number above a gap of more than `near_gap` is not confirmed by another such jump, because damaged numbers
may follow each other. It is confirmed by a number near it, or once `confirm_frames` were accepted above
`last`.

`last` also falls when history is sent again that begins before the oldest event of the log, because that part
is unknown. So until the numbers have passed the one that `last` fell from, no frame is accepted by its number
alone (`may_recur`). A frame that was accepted before the fall shows that this is history (`recur`). Then
`last` returns to what it was, and every frame is in doubt until one is new.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from jetstream.limits import UpstreamLimits

# No `seq` is as high: it has 63 bits (`envelope.SEQ_MAX`).
_ABOVE_ALL: Final = 1 << 63


class SeqTracker:
    """The state of one upstream's numbering, over all its connections.

    With `resumed`, the numbers come from an earlier process, which may have accepted frames after it stored
    them: every frame is in doubt until one is new. Up to `stored_to` it has stored every frame that it took,
    but for those in `unstored` (`eventlog.SourceCursor`): a frame that waited holds up none after it.
    """

    def __init__(
        self,
        last: int | None,
        provisional: int | None = None,
        fell_from: int | None = None,
        stored_to: int | None = None,
        unstored: Collection[int] = (),
        *,
        resumed: bool = False,
        limits: UpstreamLimits = UpstreamLimits(),
    ) -> None:
        # The cursor: what is stored, and what a connection resumes after. None: nothing is known, start at
        # the live end. Rises with the frames, falls when a sequence restarts.
        self.last = last
        # A number above `last` that was accepted and is not confirmed. Set by a gap, cleared by the next
        # number.
        self.provisional = None if last is None else provisional
        # What an earlier process had stored above `last`: every frame up to `_stored_to`, less `_unstored`. A
        # number is removed when its frame comes. Both are over when `last` has passed them, or falls.
        self._stored_to = (last or 0) if stored_to is None else stored_to
        self._unstored = set(unstored)
        # What `last` was before it fell. None once the numbers have passed it, or nothing of then is kept.
        self.fell_from = fell_from
        # Counters for the metrics, which their reader sets to 0: gaps, whatever their size; gaps over
        # `near_gap`; sequences that began below the last number; frames that were known. `Source` reads
        # the first three, and `Pipeline` the last.
        self.gaps = 0
        self.jumps = 0
        self.restarts = 0
        self.repeats = 0
        # How often `last` fell.
        self.falls = 0
        self._limits = limits
        # Numbers accepted above `last` and not confirmed, oldest first. Removed when `last` passes them.
        self._outliers: dict[int, None] = {}
        # Whether every frame is in doubt, because more was accepted than the numbers here say. Until one is
        # new.
        self._all_in_doubt = resumed
        # Whether the frame before this one was accepted, on this connection, and not below `last`.
        self._in_step = False
        # Whether `last` rests on a single frame: the first one of all.
        self._is_first = last is None
        # Frames accepted above `last` since it moved.
        self._above_last = 0
        # Frames below `last` that have risen in a row, and the number of the newest of them.
        self._low_run = 0
        self._low_seq = 0
        # Frames from before the fall that have come again and risen in a row, and the number of the newest.
        self._recurred_run = 0
        self._recurred_seq = 0
        # Known messages at or below `last` that have risen in a row, and the number of the newest.
        self._known_run = 0
        self._known_seq = 0
        # `advance` accepts the next number below this. 0 while anything but outliers needs a closer look.
        self._fast_below = 0

    @property
    def cursor(self) -> int | None:
        """The number to resume after: `last`, or below it where known messages have risen in a row.

        They may be an overlap, or a new sequence of which another upstream has brought everything before.
        """
        return self._known_seq if self._known_run >= self._limits.restart_frames else self.last

    @property
    def unconfirmed(self) -> int | None:
        """The number to store beside `last`: of the frames accepted above it, the one that came last."""
        if self.provisional is not None or not self._outliers:
            return self.provisional
        return next((outlier for outlier in reversed(self._outliers) if outlier > (self.last or 0)), None)

    @property
    def may_recur(self) -> bool:
        """Whether a frame above `last` may have been accepted before `last` fell."""
        return self.fell_from is not None

    def connected(self) -> None:
        """Begin a connection: the numbers of the one before say nothing about the order on this one.

        The cursor stays. The first frame on a connection is in doubt, unless it has the next number.
        """
        self._in_step = False
        self._low_run = self._recurred_run = self._known_run = 0
        self._fast_below = 0

    def restart(self) -> None:
        """Forget the cursor: upstream said that it lies in its future (the error `FutureCursor`).

        The next frame that is accepted begins a sequence, whatever its number.
        """
        self.restarts += 1
        self._note_fall()
        self.last = self.provisional = None
        self._outliers.clear()
        self.connected()

    def advance(self, seq: int) -> bool:
        """Accept `seq` if it is simply the next number; return False, and do nothing, if it is not."""
        if seq - 1 == self.last and seq < self._fast_below:
            self.last = seq
            return True
        return False

    def in_doubt(self, seq: int) -> bool:
        """Tell whether a frame with this number may have been accepted before. Changes nothing."""
        last = self.last
        if last is None or seq <= last or seq in self._outliers or seq == self.provisional:
            return True
        if seq <= self._stored_to:
            return seq not in self._unstored
        if self._all_in_doubt:
            return True
        if seq == last + 1:
            return False
        return not self._in_step or seq - max(last, self.provisional or 0) > self._limits.near_gap

    def accept(self, seq: int) -> None:
        """Note that a frame is accepted: it was not in doubt, or the log does not hold it."""
        self._recurred_run = self._known_run = 0
        if self.advance(seq):
            return
        last = self.last
        self._all_in_doubt = False
        self._unstored.discard(seq)
        self._in_step = True
        if last is None:
            self.last = seq
        elif seq > last:
            self._rise(last, seq)
        else:
            self._in_step = self._falls_to(seq)
        if self._in_step:
            self._is_first = last is None
            self._low_run = 0
        self._update_fast_path()

    def skip(self, seq: int) -> bool:
        """Note a frame without events; return whether it is new, which only its number can tell."""
        if self.last is not None and (seq <= self.last or seq == self.provisional):
            self.repeats += 1
            return False
        is_new = seq > self._stored_to or seq in self._unstored
        all_in_doubt = self._all_in_doubt
        self.accept(seq)
        self._all_in_doubt = all_in_doubt  # no new event was seen
        self._update_fast_path()
        self.repeats += not is_new
        return is_new

    def pass_over(self, seq: int) -> None:
        """Note a message that the state of its repository shows to be known.

        This upstream may have sent it before, or another one that is ahead of it. So it says nothing about
        the frames after it, and the cursor moves on with its number.
        """
        if self.advance(seq):
            self._recurred_run = self._known_run = 0
            self.repeats += 1
            return
        repeats, run = self.repeats, self._known_run
        if self.last is not None and seq <= self.last:
            run, self._known_seq = run + 1 if run and seq > self._known_seq else 1, seq
            self._fast_below = 0  # the next frame that is accepted ends the run
        else:
            run = 0
            self.skip(seq)
        self.repeats, self._known_run = repeats + 1, run
        if self._all_in_doubt and seq > self._stored_to:
            self._all_in_doubt = False
            self._update_fast_path()

    def repeat(self, seq: int) -> None:
        """Note that a frame is dropped because its content was accepted before."""
        self.repeats += 1
        last = self.last
        if last is not None and seq == last + 1:
            self.last = seq  # it was accepted out of order, and this is its place
        elif last is not None and last < seq <= self._stored_to:
            self._rise(last, seq)  # an earlier process has stored it, above what waited
        else:
            self._in_step = False
        self._low_run = 0
        self._update_fast_path()

    def recur(self, seq: int) -> None:
        """Note that a frame is a repeat of one that the log held when `last` fell.

        When `restart_frames` of them rise above `last`, this is history: `last` returns to where it fell
        from. One alone does not show that, for it may be an old record under a new number.
        """
        rises = (self.last or 0) < seq
        self.repeat(seq)
        if self.fell_from is None or not rises or seq >= self.fell_from:
            return
        self._recurred_run = self._recurred_run + 1 if seq > self._recurred_seq else 1
        self._recurred_seq = seq
        if self._recurred_run == self._limits.restart_frames:
            self.last, self.fell_from = self.fell_from, None
            self.provisional = None
            self._all_in_doubt = True
            self.connected()

    def forget_fall(self) -> None:
        """Note that the log keeps nothing from before `last` fell, so no frame can be recognised any more."""
        self.fell_from = None
        self._update_fast_path()

    def _rise(self, last: int, seq: int) -> None:
        """Accept a number above `last`, which confirms the provisional one or makes an outlier of it.

        The number itself becomes `last` if it is the next one, else it is provisional: the next frame
        decides.
        """
        provisional, self.provisional = self.provisional, None
        if provisional is not None and seq != provisional:
            if seq > provisional and self._confirms(last, provisional, seq):
                last = self._move(provisional)
            else:
                self._add_outlier(provisional)
        if seq == last + 1:
            self._move(seq)
        else:
            self.provisional = seq
            self._above_last += 1
            self.gaps += 1
            self.jumps += seq - last > self._limits.near_gap

    def _confirms(self, last: int, provisional: int, seq: int) -> bool:
        """Return whether a number above the provisional one shows that it was no outlier."""
        is_near = min(seq - provisional, provisional - last) <= self._limits.near_gap
        return is_near or self._above_last >= self._limits.confirm_frames

    def _move(self, seq: int) -> int:
        """Let `last` be a number, up or down; return it."""
        self.last = seq
        self._above_last = 0
        return seq

    def _add_outlier(self, seq: int) -> None:
        """Remember a number that was not confirmed, because its frame may be sent again.

        At most `outliers_max` are remembered; the oldest is forgotten first.
        """
        self._outliers[seq] = None
        if len(self._outliers) > self._limits.outliers_max:
            del self._outliers[next(iter(self._outliers))]

    def _falls_to(self, seq: int) -> bool:
        """Accept a number at or below `last`; return whether it begins a new sequence: `last` falls to it."""
        self._low_run = self._low_run + 1 if self._low_run and seq > self._low_seq else 1
        self._low_seq = seq
        if not self._is_first and self._low_run < self._limits.restart_frames:
            return False
        self.restarts += 1
        self._note_fall()
        self.provisional = None
        self._move(seq)
        return True

    def _note_fall(self) -> None:
        """Count a fall, and remember what `last` was: frames from before it may come again.

        What an earlier process had stored above `last` is of the old sequence, so it says nothing any
        more.
        """
        self.falls += 1
        self._stored_to = 0
        self._unstored.clear()
        if self.last is not None:
            self.fell_from = max(self.last, self.fell_from or 0)

    def _update_fast_path(self) -> None:
        """Compute up to which number `advance` may accept without a closer look.

        Called after every change but `advance`. It also ends what the numbers have passed: a fall, and
        outliers.
        """
        last = self.last
        self._fast_below = 0
        if last is None:
            return
        if self.fell_from is not None and last >= self.fell_from:
            self.fell_from = None
        if last >= self._stored_to:
            self._unstored.clear()
        unsettled = self.provisional is not None or self.fell_from is not None or last < self._stored_to
        if self._in_step and not (unsettled or self._all_in_doubt or self._is_first):
            # Nothing but an outlier can put the next number in doubt.
            self._outliers = {outlier: None for outlier in self._outliers if outlier > last}
            self._fast_below = min(self._outliers, default=_ABOVE_ALL)
