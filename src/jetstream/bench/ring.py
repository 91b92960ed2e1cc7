"""Frames held in memory as the bytes of WebSocket messages, sent round and round.

What must differ each time is written over in place: `seq`, which rises by one; the account, one of as many as
are asked for; `time`; and `rev`, the TID of the moment of sending, so that whoever sees an event knows how
long it took. What the signed commit inside says of them stays as it was: a consumer that checks the CIDs of
records accepts such frames, one that checks signatures and revisions does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from struct import Struct
from typing import Any, Final, NamedTuple

import libipld

from jetstream.atproto.cbor_encoder import cbor_head
from jetstream.atproto.tid import CLOCK_IDS, tid
from jetstream.simulator import frames
from jetstream.simulator.recording import message_head
from jetstream.simulator.records import datetime_of, plc_did
from jetstream.simulator.world import Population, SteadyClock, World

# A number this high takes eight bytes, as those of today's relays do: it can be written over in place.
FIRST_SEQ: Final = 30_000_000_000
_UINT64: Final = Struct(">BQ")
_UINT64_HEAD: Final = 0x1B
_SEQ: Final = b"\x63seq"
_REV: Final = b"\x63rev\x6d"  # a text of 13 bytes
_TIME: Final = b"\x64time\x78\x18"  # a text of 24 bytes
_DIDS: Final = (b"\x64repo\x78\x20", b"\x63did\x78\x20")  # a text of 32 bytes: `did:plc:` and 24
_START_US: Final = 1_780_000_000_000_000
_STEP_US: Final = 500
# A TID's last two characters are its clock: those of one moment differ in nothing else.
_CLOCKS: Final = tuple(tid(0, clock)[11:].encode() for clock in range(CLOCK_IDS))


class Slot(NamedTuple):
    """Where a frame stands in the ring, where the fields are that change, and how many events it gives.

    0 is the place of a field that is not there, or not of the usual length.
    """

    start: int
    stop: int
    seq: int
    rev: int
    time: int
    did: int
    events: int


class Ring:
    """An endless stream out of a few thousand frames.

    So many `accounts` take turns in it; none of them ever goes. `data` is what spans are spans of.
    """

    def __init__(self, messages: Iterable[bytes], repos: int) -> None:
        """Take whole frames. Raises ValueError for one whose `seq` or `time` is not found."""
        self._dids = [did.encode() for did in accounts(repos)]
        self.data = bytearray()
        bodies = ((message, libipld.decode_dag_cbor_multi(message)[1]) for message in messages)
        # A server forgets the records of an account that goes: then a replay is not what was live.
        self.slots = [
            _append(self.data, message, body) for message, body in bodies if body.get("active") is not False
        ]

    def __len__(self) -> int:
        return len(self.slots)

    def write(self, first: int, stop: int, now_us: int) -> tuple[list[tuple[int, int]], int]:
        """Make frames `first` to `stop` of the stream ready to be sent at `now_us`.

        They are no more than the ring has, and must be sent before others are written. Returns the byte
        ranges that hold them, in order, and how many events they give.
        """
        assert stop - first <= len(self)
        data, slots, dids = self.data, self.slots, self._dids
        rev, time = tid(now_us, 0)[:11].encode(), datetime_of(now_us).encode()
        events = 0
        spans: list[tuple[int, int]] = []
        for number in range(first, stop):
            slot = slots[number % len(slots)]
            _UINT64.pack_into(data, slot.seq, _UINT64_HEAD, FIRST_SEQ + number)
            data[slot.time : slot.time + 24] = time
            if slot.rev:
                data[slot.rev : slot.rev + 13] = rev + _CLOCKS[number & 1023]
            if slot.did:
                data[slot.did : slot.did + 32] = dids[number % len(dids)]
            events += slot.events
            if spans and spans[-1][1] == slot.start:
                spans[-1] = (spans[-1][0], slot.stop)
            else:
                spans.append((slot.start, slot.stop))
        return spans, events


def _append(data: bytearray, frame: bytes, body: dict[str, Any]) -> Slot:
    """Append a frame as a WebSocket message, with room for a `seq` of eight bytes."""
    old = _SEQ + cbor_head(0, body["seq"])
    at = frame.index(old)
    frame = frame[:at] + _SEQ + _UINT64.pack(_UINT64_HEAD, body["seq"]) + frame[at + len(old) :]
    start = len(data)
    data += message_head(len(frame))
    base = len(data)
    data += frame

    def place(mark: bytes) -> int:
        found = frame.find(mark)
        return 0 if found < 0 else base + found + len(mark)

    time = place(_TIME + body["time"].encode())
    if not time:
        raise ValueError(f"frame {body['seq']} has no time of 24 characters: {body['time']!r}")
    rev = place(_REV) if "rev" in body else 0
    did = place(_DIDS[0 if "repo" in body else 1])
    return Slot(start, len(data), base + at + len(_SEQ), rev, time - 24, did, _events(body))


def _events(body: dict[str, Any]) -> int:
    """Return how many events a message gives: one for each op; one; none for a sync."""
    if "ops" in body:
        return len(body["ops"])
    return 0 if "blocks" in body else 1


def accounts(count: int) -> list[str]:
    """Make up DIDs, the same each time: those that the frames are said to come from."""
    rng = Random(1)  # noqa: S311 - repeatable is what they must be
    return [plc_did(rng) for _ in range(count)]


def simulated(count: int = 5_000) -> Iterator[bytes]:
    """Make some frames of a small network of the simulator's: they are shorter (3 kB) than real ones."""
    messages = World(Population(), 1, SteadyClock(_START_US, _STEP_US)).messages()
    for seq in range(1, count + 1):
        yield frames.encode(next(messages), seq)
