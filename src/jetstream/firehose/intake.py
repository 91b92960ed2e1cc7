"""Frames in, events and a cursor out, with everything counted: the pure middle of the upstream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from jetstream.events import Event
from jetstream.firehose.decode import Message, decode
from jetstream.firehose.sequence import Sequence


@dataclass(slots=True)
class Taken:
    """What a run of frames came to.

    `seq` is the cursor after them, None while nothing is known. `notices` are the error and info frames,
    in order; `too_big` counts the commits whose producer left records out, `time` is upstream's clock in
    the last message that shows it.
    """

    events: list[Event] = field(default_factory=list)
    seq: int | None = None
    types: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    notices: list[Message] = field(default_factory=list)
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
    """Decodes frames and lets through what the sequence admits."""

    def __init__(self, sequence: Sequence[Message], *, check_cid: bool = True) -> None:
        self.sequence = sequence
        self._check_cid = check_cid
        self._repeats = 0  # of the sequence's, those that were counted

    def take(self, frames: Iterable[bytes]) -> Taken:
        """Read frames of one connection, in order. Never raises for what they hold."""
        sequence, check_cid = self.sequence, self._check_cid
        taken = Taken()
        messages = [decode(frame, check_cid=check_cid) for frame in frames]
        for message in messages:
            seq = message.seq
            if seq is None:
                taken.drops.update(message.drops)
                if message.type == "error" or message.type == "info":
                    taken.notices.append(message)
            elif sequence.follows(seq):
                taken.add(message)
            else:
                for admitted in sequence.admit(seq, message):
                    taken.add(admitted)
        taken.types.update([message.type for message in messages])
        if sequence.repeats != self._repeats:
            taken.drops["repeat"] += sequence.repeats - self._repeats
            self._repeats = sequence.repeats
        taken.seq = sequence.last
        return taken
