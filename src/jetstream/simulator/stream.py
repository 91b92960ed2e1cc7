"""The firehose of a host as one sequence of items: every frame, in order, and every fault at its place.

The sequence does not depend on its readers, so the same seed makes the same sequence. A subscriber is a
position in it, as in the replay window of a relay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import fields
from random import Random
from typing import Any, Final

import orjson

from jetstream.simulator import faults, frames, truth
from jetstream.simulator.added import Context
from jetstream.simulator.corrupted import Corrupted
from jetstream.simulator.faults import Effect, Faults
from jetstream.simulator.frames import Commit, Message, Sync
from jetstream.simulator.ledger import Ledger, Sink, named
from jetstream.simulator.truth import Event
from jetstream.simulator.verdicts import REPLAY, Consumer, Verdict
from jetstream.simulator.window import WINDOW_FRAMES, Item, Window
from jetstream.simulator.world import World

__all__ = ["NAME", "WINDOW_FRAMES", "Item", "Stream"]

_RECENT_FRAMES: Final = 1000  # how far back the faults `repeat` and `go_back` reach
_PENDING_MAX: Final = 1000  # faults that wait for a message to which they apply; more are not drawn
_SENT_AGAIN: Final = frozenset(("repeat", "go_back"))
NAME: Final = "relay"  # of the only relay of a network


class Stream(Window):
    """The numbered frames of a host, with the faults among them.

    `truth`, `ledger` and `verdicts` are called with a line of JSON for each event, for each fault, and for
    each commit and sync; `record` with each frame, when it becomes part of the stream. `share` is called with
    a message that the world has made for a fault, and that other hosts must send too. The first frame has the
    number after `seq`.
    """

    def __init__(  # noqa: PLR0913 - all have names
        self,
        world: World,
        rates: Faults | None = None,
        seed: int | str = 0,
        *,
        name: str = NAME,
        seq: int = 0,
        window: int = WINDOW_FRAMES,
        truth: Sink | None = None,
        ledger: Sink | None = None,
        verdicts: Sink | None = None,
        record: Sink | None = None,
        share: Callable[[Message], None] | None = None,
    ) -> None:
        super().__init__(window)
        rates = rates or Faults()
        self.world = world
        self.name = name
        self.seq = seq  # of the newest frame
        self.ledger = Ledger(ledger, name)
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
            maxlen=min(_RECENT_FRAMES, window)
        )  # intact frames with their number
        self._consumer = Consumer()  # what a reader of the stream knows
        self._events = 0  # how many the truth has
        self._truth, self._verdicts, self._record = truth, verdicts, record
        self._share = share

    def advance(self) -> list[Event]:
        """Append a random message of the world. Return the events that must result."""
        return self.append(next(self._messages))

    def append(self, message: Message, index: int | None = None) -> list[Event]:
        """Append a message, with faults by chance. Return the events that must result.

        `index` is that of its first event in a truth which somebody else writes.
        """
        if index is not None:
            self._events = index
        for name, rate in self._rates:
            if self._rng.random() < rate and len(self._pending) < _PENDING_MAX:
                self._pending.append(name)
        events = self._append_message(message)
        if self._pending:
            self._add_faults()
        self.trim()
        return events

    def append_intact(self, message: Message) -> Verdict | None:
        """Append a message without faults. Return the verdict that it must get, if it gets one."""
        self.seq += 1
        frame = frames.encode(message, self.seq)
        self._append_item(Effect.SEND, frame)
        self._recent.append((self.seq, frame))
        verdict = self._consumer.judge(message)
        self._log_verdict(message, verdict)
        return verdict

    def lose(self, message: Message, fault: str, index: int | None = None) -> None:
        """Leave out a message that this host never gets. It has no number, so no number is missing."""
        if index is not None:
            self._events = index
        events = truth.events_of(message, self.seq + 1)
        lost = named(events, self._events, range(len(events)))
        self.ledger.add(fault, self.seq, level="frame", events=lost, did=message.did)
        self._add_truth(events)

    def inject(self, name: str) -> None:
        """Let a fault occur at the next message to which it applies. Raises ValueError if it is unknown."""
        if name not in faults.STREAM_FAULTS:
            raise ValueError(f"{name} is not one of {', '.join(faults.STREAM_FAULTS)}")
        self._pending.append(name)

    def clear_faults(self) -> None:
        """Let no more faults occur by chance, and forget those that have not occurred yet."""
        self._rates.clear()
        self._pending.clear()

    def log_fault(self, fault: str, *, verdict: Verdict | None = None, **details: Any) -> None:
        """Log a fault by which no event is lost to the ledger."""
        self.ledger.add(fault, self.seq, verdict=verdict, **details)

    def _append_message(self, message: Message) -> list[Event]:
        """Append a message with the next number, forged or corrupted if such a fault is pending."""
        name = self._take_pending(message)
        events = truth.events_of(message, self.seq + 1)
        if name in faults.CORRUPTED:
            self._append_corrupted(name, message, events)
        elif name in faults.FORGED:
            assert isinstance(message, Commit), "applies_to() checks it"
            events = self._append_forged(name, message)
        else:
            self.append_intact(message)
        self._add_truth(events)
        return events

    def _append_forged(self, name: str, message: Commit) -> list[Event]:
        key = self.world.all_accounts[message.did].repo.key
        forged = faults.FORGED[name](message, key, self._rng)
        self.seq += 1
        frame = frames.encode(forged, self.seq)
        self._append_item(Effect.SEND, frame)
        self._recent.append((self.seq, frame))
        verdict = self._consumer.judge(forged, name)
        self._log_verdict(forged, verdict)
        events = truth.events_of(forged, self.seq)
        rejected = verdict is not None and verdict.name in ("refused", "replay")
        lost = named(events, self._events, range(len(events)) if rejected else ())
        self.ledger.add(
            name, self.seq, level="full" if rejected else None, events=lost, did=message.did, verdict=verdict
        )
        return events

    def _append_corrupted(self, name: str, message: Message, events: list[Event]) -> None:
        self.seq += 1
        corrupted = faults.CORRUPTED[name](message, self.seq, self._rng)
        if corrupted.frame is not None:
            self._append_item(Effect.SEND, corrupted.frame)
        lost = named(events, self._events, corrupted.lost)
        details = self._refusal(message, corrupted, len(events))
        self.ledger.add(name, self.seq, level=corrupted.level, events=lost, did=message.did, **details)

    def _refusal(self, message: Message, corrupted: Corrupted, events: int) -> dict[str, Any]:
        """Return what a full verifier says of a corrupted commit, and the events that it loses with it."""
        if corrupted.reason is None:
            return {}
        verdict = Verdict("refused", corrupted.reason)
        self._log_verdict(message, verdict)
        return {"verdict": verdict, "refused": list(range(self._events, self._events + events))}

    def _take_pending(self, message: Message) -> str:
        """Return the first pending fault that changes this message, or an empty string."""
        follows = bool(self._pending) and self._consumer.follows(message)
        for name in dict.fromkeys(self._pending):
            if faults.applies_to(name, message, follows=follows):
                self._pending.remove(name)
                return name
        return ""

    def _add_faults(self) -> None:
        """Append the pending faults that add something beside the newest message."""
        pending, self._pending = self._pending, []
        for name in pending:
            if name in faults.ADDED_MESSAGES:
                self._add_message(name)
            elif faults.can_be_added(name, self._recent):
                for effect, frame in faults.ADDED[name](Context(self._recent, self._rng)):
                    self._append_item(effect, frame)
                self.log_fault(name, verdict=REPLAY if name in _SENT_AGAIN else None)
            else:
                self._pending.append(name)

    def _add_message(self, name: str) -> None:
        """Append a message from which no event may result: a correct consumer drops it."""
        did = self._rng.choice(self.world.accounts).did
        if name == "malformed_did":
            message: Message = self.world.identify(did)._replace(did=faults.malformed_did(self._rng))
        else:
            message = self.world.write_block(did, "com.example.deep", faults.deep_record())
        verdict = self.append_intact(message)
        if self._share is not None and isinstance(message, Commit):
            self._share(message)
        self.log_fault(name, verdict=verdict)

    def _append_item(self, effect: Effect, frame: bytes) -> None:
        self.add(Item(self.seq, effect, frame))
        if self._record is not None and frame:
            self._record(frame)

    def _add_truth(self, events: list[Event]) -> None:
        self._events += len(events)
        if self._truth is not None:
            for event in events:
                self._truth(truth.to_json(event))

    def _log_verdict(self, message: Message, verdict: Verdict | None) -> None:
        if self._verdicts is None or verdict is None:
            return
        assert isinstance(message, Commit | Sync), "no other message has a verdict"
        rev = message.revision.rev if isinstance(message, Commit) else message.rev
        line = {"relay": self.name, "seq": self.seq, "did": message.did, "rev": rev, "verdict": verdict.name}
        self._verdicts(orjson.dumps(line if verdict.reason is None else line | {"reason": verdict.reason}))
