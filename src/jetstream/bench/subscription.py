"""The bytes of one connection, checked message by message or only counted. No sockets here.

A *checked* connection decodes every message. A *counted* one decodes the first message and, at the end, one
more, which tells its position in the stream. The bytes between the two must be as many as the truth has
there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from jetstream.bench import stream
from jetstream.bench.check import Findings, Truth
from jetstream.bench.delays import Delays
from jetstream.bench.mix import Wanted
from jetstream.bench.transport import WEBSOCKET, Transport

IN_FLIGHT_US: Final = 1_000_000  # an event of the last second may not have arrived yet


@dataclass(slots=True)
class Readings:
    """What all checked connections measure and find together."""

    delays: Delays = field(
        default_factory=Delays
    )  # from `time_us` to the reader, of all events while `timed`
    findings: Findings = field(default_factory=Findings)  # what was received and must not be, or was not
    timed: bool = False  # whether delays are measured at present; set by `Meter`
    # Decompresses a message, which is binary then; raises ValueError for other bytes. None: they are text.
    decompress: Callable[[bytes], bytes] | None = None

    transport: Transport = WEBSOCKET  # what all connections are

    @property
    def opcode(self) -> int:
        """The opcode of messages."""
        return stream.TEXT if self.decompress is None else stream.BINARY

    def event(self, payload: bytes) -> Any:
        """Return the JSON value of a message. Raises ValueError."""
        message = self.transport.message(payload)
        return orjson.loads(message if self.decompress is None else self.decompress(message))

    def reset_delays(self) -> None:
        """Discard the delays so far."""
        self.delays = Delays()

    def time(self, event: dict[str, Any], now_us: int) -> None:
        """Add the delay of an event that was received at `now_us`."""
        self.delays.add(now_us - event["time_us"])


@dataclass(slots=True)
class Subscription:
    """What one connection asked for and received."""

    name: str  # in findings
    wanted: Wanted
    readings: Readings
    cursor: int | None = None  # as requested
    checked: bool = True  # every message is decoded; else only the first
    truth: Truth | None = None  # what this connection writes, if it is the reference
    since_us: int = 0  # when it was accepted, unix microseconds
    first_us: int = 0  # `time_us` of the first event; 0 before it
    last_us: int = 0  # `time_us` of the last event that was decoded
    events: int = 0  # decoded
    size: int = 0  # bytes from the first event on; of a checked connection without control frames
    close: str = ""  # code and reason of the server's close frame
    rest: bytes = b""  # received, but not a complete frame yet

    def receive(self, data: bytes, now_us: int) -> bytes:
        """Take bytes of the stream. Return the bytes to answer with."""
        data = self.rest + data
        transport = self.readings.transport
        frames, used = transport.frames(data)
        self.rest = data[used:]
        answer = b""
        for frame in frames:
            if frame.opcode == self.readings.opcode:
                self._message(frame, now_us)
                if not self.checked:
                    # From here on bytes are counted, including the rest of these.
                    self.size = len(data) - frame.start
                    self.rest = b""
                    return answer
            elif frame.opcode in (stream.PING, stream.CLOSE):
                answer += transport.answer(frame)
                if frame.opcode == stream.CLOSE:
                    self.close = self.close or transport.close(frame.payload)
            else:
                self.readings.findings.add("frame", f"{self.name} received opcode {frame.opcode}")
        return answer

    def _message(self, frame: stream.Frame, now_us: int) -> None:
        """Check one message, and count it."""
        readings = self.readings
        try:
            event = readings.event(frame.payload)
            time_us, did = event["time_us"], event["did"]
        except (ValueError, TypeError, KeyError):
            readings.findings.add("not an event", f"{self.name} received {frame.payload[:80]!r}")
            return
        commit: dict[str, Any] = event.get("commit") or {}
        collection = commit.get("collection", "")
        if time_us <= self.last_us:
            readings.findings.add("out of order", f"{self.name} received {time_us} after {self.last_us}")
        if not self.wanted.wants(did, collection):
            readings.findings.add("not wanted", f"{self.name} received {did} {collection}")
        size = readings.transport.size(frame.payload)
        self.first_us = self.first_us or time_us
        self.last_us = time_us
        self.events += 1
        self.size += size
        if self.truth is not None:
            self.truth.add(time_us, size, did, collection)
        elif readings.timed and self.checked:
            readings.time(event, now_us)


def check_start(one: Subscription, truth: Truth) -> None:
    """Add a finding if the first events that it must receive are missing."""
    from_us = one.cursor if one.cursor is not None else one.since_us + IN_FLIGHT_US
    until_us = min(one.first_us or truth.everything.last_us, truth.everything.last_us - IN_FLIGHT_US)
    missed = truth.amount(one.wanted, from_us, until_us).events
    if missed:
        one.readings.findings.add("nothing received", f"{one.name} missed the first {missed} events")


def check_all(one: Subscription, truth: Truth) -> None:
    """Add a finding if a checked connection missed or repeated something between its first and last event."""
    if not one.events:
        return
    got = (one.events, one.size)
    first_us = one.first_us if one.cursor is None else min(one.cursor, one.first_us)
    expected = truth.amount(one.wanted, first_us, one.last_us + 1)
    if got != expected:
        numbers = f"{got[0]} events in {got[1]} bytes, not {expected.events} in {expected.size}"
        one.readings.findings.add("lost or repeated", f"{one.name} received {numbers}")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a counted connection is in the stream: at an event, so many bytes after its first one."""

    time_us: int
    size: int


def find_position(one: Subscription, data: bytes) -> Position | None:
    """Find the last complete event in the next bytes of a counted connection. They begin and end anywhere."""
    readings, transport = one.readings, one.readings.transport
    for start in transport.starts(data, readings.opcode):
        frame = transport.frame_at(data, start)
        if frame is None:
            continue
        try:
            event = readings.event(frame.payload)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("time_us"), int):
            return Position(event["time_us"], one.size + start)
    return None


def check_bytes(one: Subscription, position: Position | None, truth: Truth, pings_max: int) -> None:
    """Add a finding if a counted connection received too few or too many bytes up to its position.

    Without a position, nothing more was received at the end: then what it has must reach into the last
    second. There may be up to `pings_max` pings in between.
    """
    first_us = one.first_us if one.cursor is None else min(one.cursor, one.first_us)
    pings = pings_max * one.readings.transport.keep_alive_bytes
    findings = one.readings.findings
    if position is not None:
        expected = truth.amount(one.wanted, first_us, position.time_us).size
        if not expected <= position.size <= expected + pings:
            numbers = f"{position.size} bytes from {first_us} to {position.time_us}, not {expected}"
            findings.add("lost or repeated", f"{one.name} received {numbers}")
        return
    newest_us = truth.everything.last_us
    most = truth.amount(one.wanted, first_us, newest_us + 1).size
    if one.size > most + pings:
        findings.add("lost or repeated", f"{one.name} received {one.size} bytes from {first_us}, not {most}")
    elif one.size < (least := truth.amount(one.wanted, first_us, newest_us - IN_FLIGHT_US).size):
        findings.add("stalled", f"{one.name} receives nothing more, {least - one.size} bytes behind")
