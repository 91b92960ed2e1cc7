"""The firehose as one sequence of items: every frame, in order, and every fault at its place.

The sequence does not depend on its readers, so the same seed makes the same sequence. A subscriber is a
position in it, as in the replay window of a relay.
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
_LAST: Final = frozenset(
    (Effect.ERROR, Effect.DROP, Effect.STALL)
)  # after these a connection gets nothing more
_RECENT_FRAMES: Final = 1000  # how far back the faults `repeat` and `go_back` reach
Sink = Callable[[bytes], None]


class Item(NamedTuple):
    """One item of the stream."""

    seq: int  # of the last frame so far
    effect: Effect
    frame: bytes  # empty for effects without a frame


class Stream:
    """The items so far, as far back as the window reaches.

    `truth` and `ledger` are called with a line of JSON for each event and each fault, `record` with each
    frame, when it becomes part of the stream.
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
        rates = rates or Faults()
        self.world = world
        self.seq = 0  # of the newest frame
        self.first = 0  # the position of the oldest item in the window
        self._items: list[Item] = []  # the window
        self._window = window  # its size in items, to within a quarter
        self._messages = world.messages()
        # The faults of the firehose that occur by chance, with their rates.
        self._rates = [
            (field.name, getattr(rates, field.name))
            for field in fields(Faults)
            if field.name in faults.STREAM_FAULTS and getattr(rates, field.name)
        ]
        self._rng = Random(f"faults {seed}")  # noqa: S311 - it must be repeatable
        self._pending: list[str] = []  # faults that have not found a message to which they apply
        self._recent: deque[tuple[int, bytes]] = deque(
            maxlen=_RECENT_FRAMES
        )  # intact frames with their number
        self._done: set[int] = set()  # positions of items that only one subscriber gets, and has got
        self._events = 0  # how many the truth has
        self._truth, self._ledger, self._record = truth, ledger, record

    @property
    def end(self) -> int:
        """The position after the newest item."""
        return self.first + len(self._items)

    @property
    def oldest_seq(self) -> int:
        """The number of the oldest frame in the window, 0 before the first frame."""
        return self._items[0].seq if self._items else 0

    def advance(self) -> list[Event]:
        """Append a random message of the world. Return the events that must result."""
        return self.append(next(self._messages))

    def append(self, message: Message) -> list[Event]:
        """Append a message, with faults by chance. Return the events that must result."""
        for name, rate in self._rates:
            if self._rng.random() < rate:
                self._pending.append(name)
        events = self._append_message(message)
        if self._pending:
            self._add_faults()
        self._trim()
        return events

    def inject(self, name: str) -> None:
        """Let a fault occur at the next message to which it applies. Raises ValueError if it is unknown."""
        if name not in faults.STREAM_FAULTS:
            raise ValueError(f"{name} is not one of {', '.join(faults.STREAM_FAULTS)}")
        self._pending.append(name)

    def clear_faults(self) -> None:
        """Let no more faults occur by chance, and forget those that have not occurred yet."""
        self._rates.clear()
        self._pending.clear()

    def log_fault(self, fault: str, **details: object) -> None:
        """Log a fault by which no event is lost to the ledger."""
        if self._ledger is not None:
            line = {"seq": self.seq, "fault": fault, **details, "level": None, "events": []}
            self._ledger(orjson.dumps(line))

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

    def _append_message(self, message: Message) -> list[Event]:
        """Append a message with the next number, forged or corrupted if such a fault is pending."""
        name = self._take_pending(message)
        if name in faults.CORRUPTED:
            return self._append_corrupted(name, message)
        if name in faults.FORGED:
            assert isinstance(message, Commit), "applies_to() checks it"
            key = self.world.all_accounts[message.did].repo.key
            message = faults.FORGED[name](message, key, self._rng)
        events = truth.events_of(message, self.seq + 1)
        self._append_intact(message)
        if name:
            level = None if name == "too_big" else "full"
            self._log_loss(name, level, events, range(len(events)) if level else ())
        self._add_truth(events)
        return events

    def _append_corrupted(self, name: str, message: Message) -> list[Event]:
        self.seq += 1
        events = truth.events_of(message, self.seq)
        corrupted = faults.CORRUPTED[name](message, self.seq, self._rng)
        if corrupted.frame is not None:
            self._append_item(Effect.SEND, corrupted.frame)
        self._log_loss(name, corrupted.level, events, corrupted.lost)
        self._add_truth(events)
        return events

    def _append_intact(self, message: Message) -> None:
        self.seq += 1
        frame = frames.encode(message, self.seq)
        self._append_item(Effect.SEND, frame)
        self._recent.append((self.seq, frame))

    def _take_pending(self, message: Message) -> str:
        """Return the first pending fault that changes this message, or an empty string."""
        for at, name in enumerate(self._pending):
            if faults.applies_to(name, message):
                return self._pending.pop(at)
        return ""

    def _add_faults(self) -> None:
        """Append the pending faults that add something beside the newest message."""
        pending, self._pending = self._pending, []
        for name in pending:
            if name in faults.ADDED_MESSAGES:
                self._append_intact(self._extra_message(name))
                self.log_fault(name)
            elif faults.can_be_added(name, self._recent):
                for effect, frame in faults.ADDED[name](faults.Context(self._recent, self._rng)):
                    self._append_item(effect, frame)
                self.log_fault(name)
            else:
                self._pending.append(name)

    def _extra_message(self, name: str) -> Message:
        """Return a message from which no event may result: a correct consumer drops it."""
        did = self._rng.choice(self.world.accounts).did
        if name == "malformed_did":
            return self.world.identify(did)._replace(did=faults.malformed_did(self._rng))
        return self.world.write_block(did, "com.example.deep", faults.deep_record())

    def _append_item(self, effect: Effect, frame: bytes) -> None:
        self._items.append(Item(self.seq, effect, frame))
        if self._record is not None and frame:
            self._record(frame)

    def _add_truth(self, events: list[Event]) -> None:
        self._events += len(events)
        if self._truth is not None:
            for event in events:
                self._truth(truth.to_json(event))

    def _log_loss(self, fault: str, level: str | None, events: list[Event], lost: Iterable[int]) -> None:
        """Log a fault to the ledger, with the events that are lost by their index in the truth."""
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
            self._done = {place for place in self._done if place >= self.first}
