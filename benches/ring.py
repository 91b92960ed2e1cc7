"""Frames in memory, as the bytes of WebSocket messages, which are sent again and again.

Four fields are overwritten in place before each use: `seq`, which rises by one; the account; `time`; and
`rev`, the TID of the time of sending, so that a reader can tell the delay. The signed commit inside is not
changed. So a consumer that checks the CIDs of records accepts such frames, and one that verifies signatures
and revisions does not. With no accounts (`repos` is 0), account and `rev` stay as they are: such frames can
be verified, once round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, repeat
from random import Random
from struct import Struct
from typing import Any, Final, NamedTuple

import libipld

from jetstream.atproto.cbor_encoder import cbor_head
from jetstream.atproto.tid import CLOCK_IDS, tid
from jetstream.simulator.recording import message_head
from jetstream.simulator.records import datetime_of, plc_did

# A number this high takes eight bytes, as those of today's relays, so that it can be overwritten in place.
FIRST_SEQ: Final = 30_000_000_000
_UINT64: Final = Struct(">BQ")
_UINT64_HEAD: Final = 0x1B
_SEQ: Final = b"\x63seq"
_REV: Final = b"\x63rev\x6d"  # a text of 13 bytes
_TIME: Final = b"\x64time\x78\x18"  # a text of 24 bytes
# A text of 32 bytes: `did:plc:` and 24.
_DIDS: Final = {"repo": b"\x64repo\x78\x20", "did": b"\x63did\x78\x20"}
# The last two characters of a TID are its clock ID: the TIDs of one time differ only in them.
_CLOCKS: Final = tuple(tid(0, clock)[11:].encode() for clock in range(CLOCK_IDS))


class Slot(NamedTuple):
    """A frame in the ring: offsets in its data, and the number of events that it makes.

    The offset of a field is 0 if the frame does not have it, or with another length, or if it must stay.
    """

    start: int  # of the WebSocket message
    stop: int
    seq: int
    rev: int
    time: int
    did: int
    events: int
    account: bytes  # whose it is, unless that is overwritten


class Ring:
    """An endless stream, made of a few thousand frames and a number of accounts that take turns."""

    def __init__(self, messages: Iterable[bytes], repos: int) -> None:
        """Take whole frames. Raises ValueError for one whose `seq` or `time` is not found."""
        self._dids = [did.encode() for did in accounts(repos)]
        self.data = bytearray()  # the messages of all slots
        bodies = ((message, libipld.decode_dag_cbor_multi(message)[1]) for message in messages)
        # Without deleted accounts: a server removes their records, so that a replay would differ.
        self.slots = [
            _append(self.data, message, body, as_signed=not repos)
            for message, body in bodies
            if body.get("active") is not False
        ]

    def __len__(self) -> int:
        return len(self.slots)

    def write(self, first: int, stop: int, now_us: int) -> tuple[list[tuple[int, int]], int]:
        """Prepare frames `first` to `stop` (excluded) of the stream to be sent at `now_us`.

        There must not be more of them than the ring has, and they must be sent before the next call. Returns
        their byte ranges in `data`, in order, and the number of their events.
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

    def accounts_of_events(self) -> Iterator[bytes]:
        """Yield the account of each event of the stream, without end."""
        slots, dids = self.slots, self._dids
        for number in count():
            slot = slots[number % len(slots)]
            yield from repeat(dids[number % len(dids)] if slot.did else slot.account, slot.events)


def _append(data: bytearray, frame: bytes, body: dict[str, Any], *, as_signed: bool) -> Slot:
    """Append a frame as a WebSocket message, with a `seq` of eight bytes."""
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
    rev = place(_REV) if "rev" in body and not as_signed else 0
    field = "repo" if "repo" in body else "did"
    did = 0 if as_signed else place(_DIDS[field])
    account = body[field].encode()
    return Slot(start, len(data), base + at + len(_SEQ), rev, time - 24, did, _events(body), account)


def _events(body: dict[str, Any]) -> int:
    """Return the number of events of a message: one for each op; none for a sync; else one."""
    if "ops" in body:
        return len(body["ops"])
    return 0 if "blocks" in body else 1


def accounts(count: int) -> list[str]:
    """Return the DIDs that the frames come from, the same every time."""
    rng = Random(1)
    return [plc_did(rng) for _ in range(count)]
