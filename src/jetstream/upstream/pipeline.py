"""The stages that turn the frames of one upstream into events, driven one after another. Pure.

    frame ──envelope──▶ fields ──sequence──▶ accepted ──(verify)──▶ authentic ──extract──▶ events, drops
                                    │
                                    ├──▶ repeat: counted, and not extracted
                                    └──▶ in doubt: the log is asked for its keys

`Pipeline.read` takes a run of frames and returns a `DecodedBatch`: their events, the cursor after them, and
all counts. Most frames carry the next number and go straight through. The sequence stage may answer *in
doubt* (see `seq_tracker`): then only the log can tell a repeat from an event. So the batch ends before such a
frame, for what precedes it must be stored when the log is asked. The next batch begins with it, and names the
keys to look up; `Pipeline.resolve` takes the answer and finishes the batch. A frame in doubt costs what its
keys need: its records are decoded only if the log does not have it.

In *tracked mode* somebody else (`admission`) keeps the state of each repository, verifies messages and makes
events of them. Then accepted messages are passed on as they are, and a commit or #sync is first compared with
that state (`knows`): the state alone tells whether it is a repeat, whatever its number. Numbers and keys
decide what is left: the first message of a repository, identities and accounts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from jetstream.limits import UpstreamLimits
from jetstream.model.event import Event, Key
from jetstream.upstream.envelope import Envelope, read_envelope
from jetstream.upstream.extract import MESSAGES, extract, possible_keys
from jetstream.upstream.seq_tracker import SeqTracker

# The messages that have a rev, and all that may be events.
_IN_REPOSITORIES: Final = frozenset({"commit", "sync"})
_EVENTFUL: Final = _IN_REPOSITORIES | MESSAGES.keys()
# Tells whether the state of a repository shows that a commit or #sync was taken before, from this upstream or
# another. None: there is no state.
Knows = Callable[[Envelope], bool | None]


@dataclass(slots=True)
class DecodedBatch:
    """What a run of frames came to: events and a cursor to store, and counts.

    While `lookups` is not empty, it waits for `Pipeline.resolve`, and has nothing else yet. A batch may
    have no events: its cursor must be stored all the same.
    """

    # In the order of the frames, and of the ops in each. Empty in tracked mode.
    events: list[Event] = field(default_factory=list)
    # The cursor after these frames: see `SeqTracker`. `seq` is None while nothing is known.
    seq: int | None = None
    provisional: int | None = None
    fell_from: int | None = None
    # In tracked mode: the messages that were accepted and may be events, in order, each with its `seq`.
    accepted_messages: list[tuple[int, Envelope]] = field(default_factory=list)
    # In tracked mode: how many messages the state of their repository has shown to be repeats.
    known: int = 0
    # In tracked mode: how many ops these messages have: each may become an event.
    ops: int = 0
    # How many frames were read, how many of them were accepted, and how many have no number.
    frames: int = 0
    accepted: int = 0
    without_seq: int = 0
    # Keys that the log must be asked for.
    lookups: list[Key] = field(default_factory=list)
    # Frames by type, and drops by reason.
    types: dict[str, int] = field(default_factory=dict)
    drops: defaultdict[str, int] = field(default_factory=partial(defaultdict, int))
    # The error and info frames, in order.
    notices: list[Envelope] = field(default_factory=list)
    # Commits whose producer left records out.
    too_big: int = 0
    # Upstream's clock in the last accepted frame that shows it: the text of its `time`, unchecked.
    # Empty: none has.
    time: str = ""

    @property
    def has_new(self) -> bool:
        """In tracked mode: whether a commit or #sync may be new."""
        return any(envelope.type in _IN_REPOSITORIES for _, envelope in self.accepted_messages)

    def add(self, envelope: Envelope, events: Sequence[Event], drops: Sequence[str]) -> None:
        """Add what was extracted from an accepted frame, and count what was left out of it."""
        self.events += events
        for reason in drops:
            self.drops[reason] += 1
        _, _, fields, drop = envelope
        if fields.get("tooBig") is True and not drop:
            self.too_big += 1
        time = fields.get("time")
        if type(time) is str:
            self.time = time


class _BatchKeys:
    """The keys of what a batch has taken, which is not in the log yet. Made only when a frame is in doubt.

    They are added to it when they are asked for, so a batch without frames in doubt costs nothing.
    """

    def __init__(self, batch: DecodedBatch) -> None:
        self._batch = batch
        # The keys of the first `_events` events and of the first `_messages` messages of the batch.
        self._keys: set[Key] = set()
        self._events = 0
        self._messages = 0

    def has_any(self, keys: Sequence[Key]) -> bool:
        """Return whether the batch has an event of one of these keys."""
        events, messages = self._batch.events, self._batch.accepted_messages
        self._keys.update(event.key for event in events[self._events :])
        for _, envelope in messages[self._messages :]:
            self._keys.update(possible_keys(envelope))
        self._events, self._messages = len(events), len(messages)
        return not self._keys.isdisjoint(keys)


class Pipeline:
    """The stages of one upstream, over all its connections.

    `clock` returns monotonic seconds. Without `check_cid`, a record is passed on whatever it hashes to. With
    `knows`, the pipeline is in tracked mode.
    """

    def __init__(
        self,
        tracker: SeqTracker,
        clock: Callable[[], float],
        *,
        check_cid: bool = True,
        limits: UpstreamLimits = UpstreamLimits(),
        knows: Knows | None = None,
    ) -> None:
        # The sequence stage. Its owner tells it of connections; only the methods here give it numbers.
        self.tracker = tracker
        # Keys of the oldest events in the log, which come first when history is sent again. `History` sets
        # them while `tracker.may_recur`; else empty.
        self.history_keys: AbstractSet[Key] = frozenset()
        # The log's position of the frame that was recognised last by a lookup; 0 before the first.
        self.known_at = 0
        # How records are extracted, and what they may cost.
        self._check_cid = check_cid
        self._limits = limits
        self._clock = clock
        # Asks for the state of a repository; None: the pipeline is not in tracked mode.
        self._knows = knows
        # How many frames in doubt the next lookup is for. Doubles while all of them turn out to be known.
        self._lookup_frames = limits.lookup_frames_min
        # Frames that wait for `resolve`, each with its keys. Empty between two batches.
        self._deferred: list[tuple[Envelope, list[Key]]] = []

    def read(self, frames: Sequence[bytes], until: float = float("inf")) -> DecodedBatch:
        """Read frames of one connection, in order. Never raises for what they hold.

        Stops after the frame at which the clock passes `until`, and before a frame in doubt. If the first
        frame is in doubt, the batch has only `lookups`, for it and a few frames after it: `resolve` must
        follow before the next `read`. `DecodedBatch.frames` says how many frames were read; the others
        are to be given again.
        """
        if self._knows is not None:
            return self._read_tracked(frames, until)
        advance, clock = self.tracker.advance, self._clock
        check_cid, limits = self._check_cid, self._limits
        items_max = limits.frame_items_max
        batch = DecodedBatch()
        add = batch.add
        types: list[str] = []
        batch_keys = _BatchKeys(batch)
        for frame in frames:
            envelope = read_envelope(frame, items_max)
            seq = envelope.seq
            if seq is None:
                _note_without_seq(envelope, batch)
            elif advance(seq):
                events, drops = extract(envelope, check_cid, limits)
                add(envelope, events, drops)
            elif not self._sequence(seq, envelope, batch, batch_keys):
                if not types:
                    return self._defer(frames, until, batch)
                break
            types.append(envelope.type)
            if clock() > until:
                break
        return self._finish(types, batch)

    def _read_tracked(self, frames: Sequence[bytes], until: float) -> DecodedBatch:
        """Do what `read` does, in tracked mode."""
        batch = DecodedBatch()
        types: list[str] = []
        batch_keys = _BatchKeys(batch)
        for frame in frames:
            envelope = read_envelope(frame, self._limits.frame_items_max)
            seq = envelope.seq
            if seq is None:
                _note_without_seq(envelope, batch)
            elif self._state_decides(seq, envelope, batch):
                pass
            elif self.tracker.advance(seq):
                _pass_on(seq, envelope, batch)
            elif not self._sequence(seq, envelope, batch, batch_keys):
                if not types:
                    return self._defer(frames, until, batch)
                break
            types.append(envelope.type)
            if self._is_full(batch, until):
                break
        return self._finish(types, batch)

    def resolve(self, batch: DecodedBatch, known: Mapping[Key, int], until: float = float("inf")) -> None:
        """Finish a batch that has `lookups`: `known` are those that the log holds, each with a position.

        In tracked mode, also those of messages that wait to be judged, with 0.

        Stops after the frame at which the clock passes `until`. The frames after it are in doubt still,
        and belong to the next batch. A frame may also be the repeat of one before it in the same batch:
        so the keys of what is taken here count as known.
        """
        tracker = self.tracker
        batch.lookups = []
        # The keys of `known`, and those of what is taken here, with 0: they have no position yet.
        seen = dict(known)
        all_known = True
        types: list[str] = []
        for envelope, keys in self._deferred:
            seq = envelope.seq
            found = next((key for key in keys if key in seen), None)
            if seq is None:
                _note_without_seq(envelope, batch)
            elif self._state_decides(seq, envelope, batch):
                pass
            elif found is not None and (at := seen[found]):
                tracker.repeat(seq)
                self.known_at = at
            elif found is not None:
                self._repeat_unjudged(seq, envelope, batch)
            elif taken := self._take(seq, envelope, batch):
                seen.update(dict.fromkeys(taken, 0))
                all_known = False
            types.append(envelope.type)
            if self._is_full(batch, until):
                break
        self._deferred = []
        # Where all frames were known, more of them are likely to be: the next lookup is for twice as
        # many.
        limits, more = self._limits, 2 * self._lookup_frames
        self._lookup_frames = min(more, limits.lookup_frames_max) if all_known else limits.lookup_frames_min
        self._finish(types, batch)

    def _is_full(self, batch: DecodedBatch, until: float) -> bool:
        """Return whether a batch must end: its time is over, or its messages may become too many events."""
        return batch.ops >= self._limits.batch_ops_max or self._clock() > until

    def _state_decides(self, seq: int, envelope: Envelope, batch: DecodedBatch) -> bool:
        """Accept or drop a commit or #sync by the state of its repository; return False if there is none."""
        known = self._is_known(envelope)
        if known is None:
            return False
        if known:
            self.tracker.pass_over(seq)
            batch.known += 1
        else:
            self.tracker.accept(seq)
            _pass_on(seq, envelope, batch)
        return True

    def _is_known(self, envelope: Envelope) -> bool | None:
        """Return whether the state of its repository shows a message to be a repeat. None: it cannot."""
        if self._knows is None or envelope.drop or envelope.type not in _IN_REPOSITORIES:
            return None
        return self._knows(envelope)

    def _sequence(self, seq: int, envelope: Envelope, batch: DecodedBatch, batch_keys: _BatchKeys) -> bool:
        """Accept or drop a frame that is not simply the next one; return False if only the log can tell."""
        tracker = self.tracker
        in_doubt = tracker.in_doubt(seq)
        if in_doubt or self.history_keys:
            keys = possible_keys(envelope)
            if not self.history_keys.isdisjoint(keys):
                tracker.recur(seq)
                return True
            if in_doubt and keys:
                if not batch_keys.has_any(keys):
                    return False
                self._repeat_unjudged(seq, envelope, batch)
                return True
        self._take(seq, envelope, batch)
        return True

    def _repeat_unjudged(self, seq: int, envelope: Envelope, batch: DecodedBatch) -> None:
        """Note a frame with the keys of one that was taken, and is not stored yet.

        In tracked mode, that one may turn out to be forged. So this one is judged as well.
        """
        self.tracker.repeat(seq)
        if self._knows is not None and envelope.type in _IN_REPOSITORIES:
            _pass_on(seq, envelope, batch)

    def _take(self, seq: int, envelope: Envelope, batch: DecodedBatch) -> Sequence[Key]:
        """Accept a frame that is no repeat; return the keys of its events.

        One without events is judged by its number, because the log cannot know it.
        """
        if self._knows is not None:
            keys = possible_keys(envelope)
        else:
            events, drops = extract(envelope, self._check_cid, self._limits)
            keys = [event.key for event in events]
        if keys:
            self.tracker.accept(seq)
        elif not self.tracker.skip(seq):
            return ()
        if self._knows is not None:
            _pass_on(seq, envelope, batch)
        else:
            batch.add(envelope, events, drops)
        return keys

    def _defer(self, frames: Sequence[bytes], until: float, batch: DecodedBatch) -> DecodedBatch:
        """Keep the first frames for `resolve`, and name the keys that tell which of them are known."""
        for frame in frames[: self._lookup_frames]:
            envelope = read_envelope(frame, self._limits.frame_items_max)
            keys = possible_keys(envelope) if self._is_known(envelope) is None else []
            self._deferred.append((envelope, keys))
            batch.lookups += keys
            if self._clock() > until:
                break
        return batch

    def _finish(self, types: list[str], batch: DecodedBatch) -> DecodedBatch:
        """Set the counts and the cursor of a batch, as the tracker has them after its last frame; return it.

        `types` has the type of each frame that was read, in order.
        """
        tracker = self.tracker
        repeats, tracker.repeats = tracker.repeats, 0
        if repeats:
            batch.drops["repeat"] += repeats
        batch.frames = len(types)
        batch.types = {name: types.count(name) for name in set(types)}
        batch.accepted = batch.frames - batch.without_seq - repeats
        batch.seq, batch.provisional = tracker.cursor, tracker.unconfirmed
        batch.fell_from = tracker.fell_from
        return batch


def _pass_on(seq: int, envelope: Envelope, batch: DecodedBatch) -> None:
    """Add an accepted frame to a batch of tracked mode: as a message, if it may be an event."""
    if envelope.drop:
        batch.add(envelope, (), (envelope.drop,))
        return
    batch.add(envelope, (), ())
    if envelope.type in _EVENTFUL:
        batch.accepted_messages.append((seq, envelope))
        batch.ops += len(envelope.fields["ops"]) if envelope.type == "commit" else 1


def _note_without_seq(envelope: Envelope, batch: DecodedBatch) -> None:
    """Count a frame that has no number, which is never an event."""
    batch.without_seq += 1
    if envelope.drop:
        batch.drops[envelope.drop] += 1
    elif envelope.type == "error" or envelope.type == "info":
        batch.notices.append(envelope)
