"""The firehose as one ordered script: what is said, in which order, with every fault at its place.

The script is made without looking at who reads it, so the same seed gives the same script. A subscriber is a
position in it, as in a relay's replay window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import fields
from itertools import islice
from random import Random
from typing import Final, NamedTuple

import orjson

from jetstream.simulator import faults, frames, truth
from jetstream.simulator.faults import Effect, Faults
from jetstream.simulator.frames import Commit, Message
from jetstream.simulator.truth import Event
from jetstream.simulator.world import World

WINDOW_FRAMES: Final = 20_000  # about 70 MB
_LAST: Final = frozenset((Effect.ERROR, Effect.DROP, Effect.STALL))
_EARLIER: Final = 1000  # how far back repeated frames reach
Sink = Callable[[bytes], None]


class Item(NamedTuple):
    """One thing in the script: the number of the last frame so far, what happens, and the bytes to send."""

    seq: int
    effect: Effect
    frame: bytes


class Stream:
    """The script so far, as far back as the window reaches.

    `truth` and `ledger` take lines of JSON, `record` takes frames, each as it becomes part of the script.
    """

    def __init__(
        self,
        world: World,
        rates: Faults | None = None,
        seed: int = 0,
        *,
        window: int = WINDOW_FRAMES,
        truth: Sink | None = None,
        ledger: Sink | None = None,
        record: Sink | None = None,
    ) -> None:
        self.world = world
        self.seq = 0
        self.first = 0
        self._items: list[Item] = []
        self._window = window
        self._messages = world.messages()
        self._rates = rates or Faults()
        self._active = [
            (field.name, getattr(self._rates, field.name))
            for field in fields(Faults)
            if field.name in faults.STREAMED and getattr(self._rates, field.name)
        ]
        self._rng = Random(f"faults {seed}")  # noqa: S311 - repeatable is what it must be
        self._due: list[str] = []
        self._earlier: deque[tuple[int, bytes]] = deque(maxlen=_EARLIER)
        self._fired: set[int] = set()
        self._events = 0
        self._truth, self._ledger, self._record = truth, ledger, record

    @property
    def end(self) -> int:
        """The position behind the newest item."""
        return self.first + len(self._items)

    @property
    def oldest_seq(self) -> int:
        """The number of the oldest frame in the window, 0 where nothing was said yet."""
        return self._items[0].seq if self._items else 0

    def advance(self) -> list[Event]:
        """Let the world say one more thing, with faults by chance. Return the events that it must give."""
        return self.say(next(self._messages))

    def say(self, message: Message) -> list[Event]:
        """Say this next. Return the events it must give."""
        for name, rate in self._active:
            if self._rng.random() < rate:
                self._due.append(name)
        events = self._tell(message)
        if self._due:
            self._add_faults()
        self._trim()
        return events

    def inject(self, name: str) -> None:
        """Make a fault happen at the next message that it suits. Raises ValueError for an unknown one."""
        if name not in faults.STREAMED:
            raise ValueError(f"{name} is not one of {', '.join(faults.STREAMED)}")
        self._due.append(name)

    def calm(self) -> None:
        """Let nothing go wrong by chance any more, and forget the faults that have not happened yet."""
        self._active.clear()
        self._due.clear()

    def note(self, fault: str, **what: object) -> None:
        """Write a line into the ledger about a fault that took no event away."""
        if self._ledger is not None:
            self._ledger(orjson.dumps({"seq": self.seq, "fault": fault, **what, "level": None, "events": []}))

    def take(self, position: int, count: int) -> tuple[list[Item], int]:
        """Take up to `count` items from a position on, for one reader. Return them and the position behind.

        What is meant for one reader only is left out once it was taken. An item that ends or silences the
        connection is the last one.
        """
        taken: list[Item] = []
        start = position - self.first
        for item in islice(self._items, start, start + count):
            place, position = position, position + 1
            if item.effect is not Effect.SEND:
                if place in self._fired:
                    continue
                self._fired.add(place)
            taken.append(item)
            if item.effect in _LAST:
                break
        return taken, position

    def position_after(self, seq: int) -> int:
        """Find the position behind everything that was said up to a number."""
        return self.first + bisect_right(self._items, seq, key=lambda item: item.seq)

    def _tell(self, message: Message) -> list[Event]:
        """Give a message its number and its place, twisted or spoilt where that is due."""
        name = self._take_due(message)
        if name in faults.SPOILT:
            return self._tell_spoilt(name, message)
        if name in faults.TWISTED:
            assert isinstance(message, Commit), "suits() said so"
            key = self.world.people[message.did].repo.key
            message = faults.TWISTED[name](message, key, self._rng)
        events = truth.events_of(message, self.seq + 1)
        self._tell_plainly(message)
        if name:
            level = None if name == "too_big" else "full"
            self._enter(name, level, events, range(len(events)) if level else ())
        self._count(events)
        return events

    def _tell_spoilt(self, name: str, message: Message) -> list[Event]:
        self.seq += 1
        events = truth.events_of(message, self.seq)
        spoilt = faults.SPOILT[name](message, self.seq, self._rng)
        if spoilt.frame is not None:
            self._append(Effect.SEND, spoilt.frame)
        self._enter(name, spoilt.level, events, spoilt.lost)
        self._count(events)
        return events

    def _tell_plainly(self, message: Message) -> None:
        self.seq += 1
        frame = frames.encode(message, self.seq)
        self._append(Effect.SEND, frame)
        self._earlier.append((self.seq, frame))

    def _take_due(self, message: Message) -> str:
        for at, name in enumerate(self._due):
            if faults.suits(name, message):
                return self._due.pop(at)
        return ""

    def _add_faults(self) -> None:
        """Put what is due beside the message just told."""
        due, self._due = self._due, []
        for name in due:
            if name in faults.MESSAGES:
                self._tell_plainly(self._extra_message(name))
                self.note(name)
            elif faults.can_be_added(name, self._earlier):
                for effect, frame in faults.ADDED[name](faults.Surroundings(self._earlier, self._rng)):
                    self._append(effect, frame)
                self.note(name)
            else:
                self._due.append(name)

    def _extra_message(self, name: str) -> Message:
        """Make a message of which nothing may come: it has a number, but no correct consumer takes it."""
        did = self._rng.choice(self.world.present).did
        if name == "malformed_did":
            return self.world.identify(did)._replace(did=faults.malformed_did(self._rng))
        return self.world.write_block(did, "com.example.deep", faults.deep_record())

    def _append(self, effect: Effect, frame: bytes) -> None:
        self._items.append(Item(self.seq, effect, frame))
        if self._record is not None and frame:
            self._record(frame)

    def _count(self, events: list[Event]) -> None:
        self._events += len(events)
        if self._truth is not None:
            for event in events:
                self._truth(truth.to_json(event))

    def _enter(self, fault: str, level: str | None, events: list[Event], lost: Iterable[int]) -> None:
        """Write a line into the ledger. The events are named by their place in the truth, counted from 0."""
        if self._ledger is None:
            return
        named = [
            {"index": self._events + i, "did": events[i]["did"], "kind": events[i]["kind"]}
            for i in lost
            if i < len(events)
        ]
        self._ledger(orjson.dumps({"seq": self.seq, "fault": fault, "level": level, "events": named}))

    def _trim(self) -> None:
        excess = len(self._items) - self._window
        if excess > self._window // 4:
            del self._items[:excess]
            self.first += excess
            self._fired = {place for place in self._fired if place >= self.first}
