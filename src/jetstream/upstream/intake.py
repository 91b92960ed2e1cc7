"""Frames in, events and a cursor out, with everything counted: the pure middle of the upstream."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from jetstream.model.event import Event, Key
from jetstream.upstream.decode import Message, decode
from jetstream.upstream.seq_tracker import RESTART_FRAMES, SeqTracker

# Frames in doubt that are looked up together. For three, a day of the log (10,800 blocks) takes 1.2 s, for 64
# it takes 4 s. So at first there are as few as show a new sequence, and twice as many each time that all were
# known: those of an overlap are found near each other, and soon.
DOUBTS_MIN: Final = RESTART_FRAMES
DOUBTS_MAX: Final = 64


@dataclass(slots=True)
class Taken:
    """What a run of frames came to.

    `frames` is how many of them were read, `admitted` how many were taken. `seq` is the cursor after them,
    None while nothing is known, `provisional` a number above it, and `fell_from` one that it was (see
    `SeqTracker`). `asks` is what the log
    must be asked before this is whole: `Intake.settle` takes the answer. `notices` are the error and info
    frames, in order, `without_seq` counts the frames that have no number. `too_big` counts the commits whose
    producer left records out, `time` is upstream's clock in the last message that shows it.
    """

    events: list[Event] = field(default_factory=list)
    seq: int | None = None
    provisional: int | None = None
    fell_from: int | None = None
    frames: int = 0
    admitted: int = 0
    asks: list[Key] = field(default_factory=list)
    types: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    notices: list[Message] = field(default_factory=list)
    without_seq: int = 0
    too_big: int = 0
    time: str = ""

    def add(self, message: Message) -> None:
        """Add what an admitted message said."""
        self.events += message.events
        if message.drops:
            self.drops.update(message.drops)
        if message.too_big:
            self.too_big += 1
        self.time = message.time or self.time


class Intake:
    """Decodes frames and lets through what the sequence admits. `clock` gives monotonic seconds."""

    def __init__(
        self, sequence: SeqTracker, *, check_cid: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.sequence = sequence
        # Keys of events that were taken before the sequence fell, and come first if any come again. Set from
        # outside (see `history`) while `sequence.may_recur`, else empty.
        self.landmarks: AbstractSet[Key] = frozenset()
        self.known_at = 0  # the log's position of the frame that was known last; 0: none was
        self._check_cid = check_cid
        self._clock = clock
        self._repeats = 0  # of the sequence's, those that were counted
        self._together = DOUBTS_MIN  # frames in doubt that are looked up next
        self._doubted: list[Message] = []  # between `take` and `settle`: frames that wait for the log's word

    def take(self, frames: Sequence[bytes], until: float = float("inf")) -> Taken:
        """Read frames of one connection, in order. Never raises for what they hold.

        Stops when the clock is past `until`, and before a frame in doubt, so that all before it is in the log
        when the log is asked; when the first frame is in doubt, takes some (`DOUBTS_MAX` at most) and asks.
        """
        sequence, check_cid, clock = self.sequence, self._check_cid, self._clock
        taken = Taken()
        messages: list[Message] = []
        keys: set[Key] = set()
        follows, add, append = sequence.follows, taken.add, messages.append
        for frame in frames:
            message = decode(frame, check_cid=check_cid)
            seq = message.seq
            if seq is None:
                self._note(message, taken)
            elif follows(seq):
                add(message)
            elif not self._admit(seq, message, taken, keys):
                if not messages:
                    return self._doubt(frames, until, taken)
                break
            append(message)
            if clock() > until:
                break
        return self._finish(messages, taken)

    def settle(self, taken: Taken, known: Mapping[Key, int]) -> None:
        """Make `taken` whole with the log's answer: those of `taken.asks` that it holds, and where."""
        all_known = known.keys() >= set(taken.asks)
        self._together = min(2 * self._together, DOUBTS_MAX) if all_known else DOUBTS_MIN
        taken.asks = []
        seen = set(known)
        for message in self._doubted:
            key = _key(message)
            assert message.seq is not None
            if key is None:
                self._pass_over(message.seq, message, taken)
            elif key in seen:
                self.sequence.repeat(message.seq)
                self.known_at = known.get(key, self.known_at)
            else:
                self.sequence.take(message.seq)
                taken.add(message)
                seen.add(key)
        taken.admitted += len(self._doubted)
        self._doubted = []
        self._count(taken)

    def _admit(self, seq: int, message: Message, taken: Taken, keys: set[Key]) -> bool:
        """Take or leave a frame that is not simply the next; False if only the log can tell."""
        key = _key(message)
        if key is None:
            self._pass_over(seq, message, taken)
        elif key in self.landmarks:
            self.sequence.recur(seq)
        elif not self.sequence.doubts(seq):
            self.sequence.take(seq)
            taken.add(message)
        else:
            # `keys` are those of `taken`, which the log does not have yet: brought up to date here.
            keys.update(event.key for event in taken.events[len(keys) :])
            if key not in keys:
                return False
            self.sequence.repeat(seq)
        return True

    def _pass_over(self, seq: int, message: Message, taken: Taken) -> None:
        if self.sequence.pass_over(seq):
            taken.add(message)

    def _doubt(self, frames: Sequence[bytes], until: float, taken: Taken) -> Taken:
        messages: list[Message] = []
        for frame in frames[: self._together]:
            message = decode(frame, check_cid=self._check_cid)
            messages.append(message)
            if message.seq is None:
                self._note(message, taken)
            else:
                self._doubted.append(message)
            if self._clock() > until:
                break
        taken.asks = [key for message in self._doubted if (key := _key(message)) is not None]
        return self._finish(messages, taken)

    def _note(self, message: Message, taken: Taken) -> None:
        taken.without_seq += 1
        taken.drops.update(message.drops)
        if message.type == "error" or message.type == "info":
            taken.notices.append(message)

    def _finish(self, messages: list[Message], taken: Taken) -> Taken:
        taken.frames = len(messages)
        taken.types.update([message.type for message in messages])
        taken.admitted = taken.frames - taken.without_seq - len(self._doubted)
        self._count(taken)
        return taken

    def _count(self, taken: Taken) -> None:
        sequence = self.sequence
        if sequence.repeats != self._repeats:
            repeats = sequence.repeats - self._repeats
            taken.drops["repeat"] += repeats
            taken.admitted -= repeats
            self._repeats = sequence.repeats
        taken.seq, taken.provisional = sequence.last, sequence.unconfirmed
        taken.fell_from = sequence.fell_from


def _key(message: Message) -> Key | None:
    """Return what a frame is known by: its first event. None for one without events."""
    return message.events[0].key if message.events else None
