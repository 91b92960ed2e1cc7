"""The messages of a Jetstream to a batch: which are new, and which position each event has. Pure.

A stream of one of ours (`OwnStream`) has positions. They must rise: what is at or below the newest one that
was taken is a repeat, or an error of the upstream, and is dropped. The stream begins with the event at which
it ended before, which must be the same: else the two logs are not of one stream.

A stream of any other Jetstream (`ForeignStream`) has numbers of that server, which are its cursor. The events
get positions here. Each is known by its DID, rev and path, since such a server may send events again with
other numbers. Those that were stored last are remembered. For one at or below the cursor that is not among
them, the log is asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from jetstream.limits import UpstreamLimits
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, IDENTITY, SYNC, Event, Key
from jetstream.upstream.drops import Dropped
from jetstream.upstream.mirror.foreign import is_error, parse_foreign
from jetstream.upstream.mirror.message import MirrorMessage, Notice, parse, parse_notice
from jetstream.upstream.mirror.recent import Recent
from jetstream.upstreams import AHEAD_MAX_US

# Events in doubt for which the log is asked at once, and how many of them at the beginning of a connection
# must be new for the numbers to have begun again.
LOOKUPS_MAX: Final = 64
_RESTART: Final = 10
# Repositories of which an event in doubt was new, and which are remembered.
_RETAKEN_MAX: Final = 10_000
_PROBLEM_CHARS_MAX: Final = 200  # that are logged
_INACTIVE: Final = b'"active":false'
_TYPES: Final = {IDENTITY: "identity", ACCOUNT: "account", SYNC: "sync"}


@dataclass(slots=True)
class Taken:
    """What a run of messages came to."""

    # The events to store, in order, and with `OwnStream` the position of each.
    events: list[Event] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    # The number or position of the last event that was read; None: there was none.
    newest: int | None = None
    # How many messages were read; how many by type; how many were dropped by reason.
    frames: int = 0
    types: defaultdict[str, int] = field(default_factory=partial(defaultdict, int))
    drops: defaultdict[str, int] = field(default_factory=partial(defaultdict, int))
    # The error and info messages, in order.
    notices: list[Notice] = field(default_factory=list)
    # Keys that the log must be asked for, and the messages that wait for the answer. See `ForeignStream`.
    lookups: list[Key] = field(default_factory=list)
    waiting: list[MirrorMessage] = field(default_factory=list)
    # What went wrong with a message for which the parsers are not made; empty: nothing did.
    problem: str = ""
    # Whether the log has another event at the position at which this stream begins.
    is_other: bool = False

    def note(self, type_: str) -> None:
        """Count a message."""
        self.frames += 1
        self.types[type_] += 1

    def drop(self, reason: str) -> None:
        """Count what was dropped."""
        self.drops[reason] += 1

    def batch(self) -> Batch:
        """Return the events with their positions, of `OwnStream`."""
        return Batch.of(self.events, self.times)


class OwnStream:
    """The stream of one of our own Jetstreams, over one connection.

    `tip` is the position of the newest event that is stored, `newest` that event; None: it is not known, or
    was erased. `clock` gives monotonic seconds. A message over `bytes_max` is dropped.
    """

    def __init__(
        self,
        tip: int,
        newest: Event | None,
        clock: Callable[[], float],
        bytes_max: int = UpstreamLimits().jetstream_message_bytes_max,
    ) -> None:
        # The position of the newest event that was taken. Only rises.
        self.last = tip
        # What is stored at `last`; None after the first event.
        self._newest = newest
        self._clock = clock
        self._bytes_max = bytes_max

    def read(self, messages: Sequence[bytes], now_us: int, until: float = float("inf")) -> Taken:
        """Read messages, in order; stop after the one at which the clock passes `until`. Raises nothing."""
        taken, clock = Taken(), self._clock
        for message in messages:
            self._read(message, now_us + AHEAD_MAX_US, taken)
            if taken.is_other or clock() > until:
                break
        return taken

    def _read(self, message: bytes, highest: int, taken: Taken) -> None:
        if (found := read_message(message, parse, self._bytes_max, taken)) is None:
            return
        position, event, _ = found
        if self.last < position <= highest:
            taken.events.append(event)
            taken.times.append(position)
            self.last = taken.newest = position
        elif position == self.last:
            taken.is_other = self._newest is not None and event != self._newest
            taken.drop("repeat")
        else:
            taken.drop("position")
        self._newest = None


class ForeignStream:
    """The stream of any other Jetstream, over one connection.

    `cursor` is the highest number that is stored; None: nothing is. `recent` has the events that were stored
    last, and gets those that are new. `clock` gives monotonic seconds. A message over `bytes_max` is dropped.
    """

    def __init__(
        self,
        cursor: int | None,
        recent: Recent,
        clock: Callable[[], float],
        bytes_max: int = UpstreamLimits().jetstream_message_bytes_max,
    ) -> None:
        # What is stored is up to here. Falls when the numbers have begun again.
        self.cursor = cursor
        # The number with which the stream has begun; None before the first event.
        self.began: int | None = None
        self._recent = recent
        self._clock = clock
        self._bytes_max = bytes_max
        # Events in doubt that were new; None: the numbers have not begun again, since one was known.
        self._unknown: int | None = 0
        # The DIDs of events in doubt that were new. If one has been deleted, its records were erased, and
        # these are its records: the event of its deletion is then taken once more.
        self._retaken: set[bytes] = set()

    def read(self, messages: Sequence[bytes], until: float = float("inf")) -> Taken:
        """Read messages, in order; stop after the one at which the clock passes `until`. Raises nothing.

        If the result has `lookups`, it must be finished by `resolve`.
        """
        taken, clock = Taken(), self._clock
        for message in messages:
            self._read(message, taken)
            if len(taken.lookups) >= LOOKUPS_MAX or clock() > until:
                break
        if not taken.lookups:
            self.resolve(taken, ())
        return taken

    def _read(self, message: bytes, taken: Taken) -> None:
        parser = parse_notice if is_error(message) else parse_foreign
        found = read_message(message, parser, self._bytes_max, taken)
        if found is None:
            return
        if self.began is None:
            self.began = found.position
        in_doubt = self.cursor is not None and found.position <= self.cursor
        if in_doubt and found.event.key not in self._recent:
            taken.lookups.append(found.event.key)
        taken.waiting.append(found)

    def resolve(self, taken: Taken, known: Collection[Key]) -> None:
        """Finish a result: `known` are the keys of `lookups` of which the log has an event."""
        for message in taken.waiting:
            taken.newest = message.position
            if self._is_new(message, known):
                taken.events.append(message.event)
                self._recent.add(message.event.key)
            else:
                taken.drop("repeat")
        taken.lookups, taken.waiting = [], []

    def _is_new(self, message: MirrorMessage, known: Collection[Key]) -> bool:
        """Tell whether an event is to be taken, and move the cursor."""
        number, event, _ = message
        is_known = event.key in self._recent or event.key in known
        if self.cursor is None or number > self.cursor:
            self.cursor = number
            return not is_known
        if is_known:
            self._unknown = None
            return event.kind == ACCOUNT and _INACTIVE in event.body and event.did in self._retaken
        if len(self._retaken) < _RETAKEN_MAX:
            self._retaken.add(event.did)
        if self._unknown is not None:
            self._unknown += 1
            if self._unknown >= _RESTART:
                self.cursor = number
        return True


def read_message(
    message: bytes, parser: Callable[[bytes], MirrorMessage | Notice], bytes_max: int, taken: Taken
) -> MirrorMessage | None:
    """Read a message, and note what it is; return it if it is an event.

    Raises nothing: a parser that fails on what a peer has sent must not end the server, which would read the
    same after each restart.
    """
    try:
        found: MirrorMessage | Notice | str = parser(message) if len(message) <= bytes_max else "frame_size"
    except Dropped as dropped:
        found = dropped.reason
    except Exception as error:  # noqa: BLE001 - whatever a parser was not made for
        found = "unforeseen"
        taken.problem = f"{type(error).__name__}: {error}"[:_PROBLEM_CHARS_MAX]
    if isinstance(found, MirrorMessage):
        taken.note(_TYPES.get(found.event.kind, "commit"))
        for reason in found.drops:
            taken.drop(reason)
        return found
    if isinstance(found, Notice):
        taken.note(found.type)
        taken.notices.append(found)
    else:
        taken.note("unknown")
        taken.drop(found)
    return None
