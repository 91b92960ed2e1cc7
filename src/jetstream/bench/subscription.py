"""One connection's bytes: what it was sent, checked message by message or counted. No sockets here.

A *checked* connection reads every message. A *counted* one reads the first, and later one more, to know where
in the stream it stands: what lies between the two must be as many bytes as the truth has there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import orjson

from jetstream.bench import stream
from jetstream.bench.check import Findings, Truth
from jetstream.bench.delays import Delays
from jetstream.bench.mix import Wanted

_DIGITS: Final = str.maketrans("234567abcdefghijklmnopqrstuvwxyz", "0123456789abcdefghijklmnopqrstuv")
_TEXT_HEAD: Final = 0x80 | stream.TEXT
CONTROL_BYTES: Final = 2  # of a ping without words
STILL_US: Final = 1_000_000  # what may be on its way at any time


@dataclass(slots=True)
class Readings:
    """What all checked connections tell together: delays, and what was wrong.

    `delays` are from the stamp of the server, `relay_delays` from the moment a frame was due to be sent, by
    the `rev` that our own relay writes. `timed` says whether they are taken down at present.
    """

    delays: Delays = field(default_factory=Delays)
    relay_delays: Delays = field(default_factory=Delays)
    findings: Findings = field(default_factory=Findings)
    fed: bool = False
    timed: bool = False


@dataclass(slots=True)
class Subscription:
    """What one connection asked for and got, from the first event on.

    `size` counts the bytes from the head of the first event's frame, control frames of a checked connection
    left out. `cursor` is the one it asked with, `since_us` when it was let in.
    """

    name: str
    wanted: Wanted
    readings: Readings
    cursor: int | None = None
    checked: bool = True
    truth: Truth | None = None
    since_us: int = 0
    first_us: int = 0
    last_us: int = 0
    events: int = 0
    size: int = 0
    close: str = ""
    rest: bytes = b""

    def take(self, data: bytes, now_us: int) -> bytes:
        """Read bytes of the stream; return what must be answered."""
        data = self.rest + data
        frames, used = stream.frames(data)
        self.rest = data[used:]
        answer = b""
        for frame in frames:
            if frame.opcode == stream.TEXT:
                self._message(frame, now_us)
                if not self.checked:
                    # From here on bytes are counted, and those of this chunk are there already.
                    self.size = len(data) - frame.start
                    self.rest = b""
                    return answer
            elif frame.opcode == stream.PING:
                answer += stream.control(stream.PONG, frame.payload, masked=True)
            elif frame.opcode == stream.CLOSE:
                self.close = close_words(frame.payload)
                answer += stream.control(stream.CLOSE, frame.payload[:2], masked=True)
            else:
                self.readings.findings.note("frame", f"{self.name} got one of opcode {frame.opcode}")
        return answer

    def _message(self, frame: stream.Frame, now_us: int) -> None:
        readings = self.readings
        try:
            event = orjson.loads(frame.payload)
            time_us, did = event["time_us"], event["did"]
        except (ValueError, TypeError, KeyError):
            readings.findings.note("no event", f"{self.name} got {frame.payload[:80]!r}")
            return
        commit: dict[str, Any] = event.get("commit") or {}
        collection = commit.get("collection", "")
        if time_us <= self.last_us:
            readings.findings.note("not rising", f"{self.name} got {time_us} after {self.last_us}")
        if not self.wanted.wants(did, collection):
            readings.findings.note("not wanted", f"{self.name} got {did} {collection}")
        size = len(frame.payload) + stream.head_bytes(len(frame.payload))
        self.first_us = self.first_us or time_us
        self.last_us = time_us
        self.events += 1
        self.size += size
        if self.truth is not None:
            self.truth.add(time_us, size, did, collection)
        elif readings.timed and self.checked:
            readings.delays.add(now_us - time_us)
            if readings.fed and commit:
                readings.relay_delays.add(now_us - tid_us(commit["rev"]))


def judge_begin(one: Subscription, truth: Truth) -> None:
    """Note where nothing came for longer than it may although there was something, from the beginning on."""
    from_us = one.cursor if one.cursor is not None else one.since_us + STILL_US
    until_us = min(one.first_us or truth.everything.last_us, truth.everything.last_us - STILL_US)
    missed = truth.amount(one.wanted, from_us, until_us).events
    if missed:
        one.readings.findings.note("nothing came", f"{one.name} got none of the first {missed} events")


def judge_checked(one: Subscription, truth: Truth) -> None:
    """Note where a checked connection's events are not those between its first and its last."""
    if not one.events:
        return
    got = (one.events, one.size)
    first_us = one.first_us if one.cursor is None else min(one.cursor, one.first_us)
    must = truth.amount(one.wanted, first_us, one.last_us + 1)
    if got != must:
        words = f"{one.name} got {got[0]} events in {got[1]} bytes, not {must.events} in {must.size}"
        one.readings.findings.note("lost or repeated", words)


@dataclass(frozen=True, slots=True)
class Sight:
    """Where a counted connection stands: the event whose frame begins `size` bytes after its first one's."""

    time_us: int
    size: int


def sight(one: Subscription, data: bytes) -> Sight | None:
    """Find the last whole event in the next bytes of a counted connection, which begin and end anywhere."""
    start = len(data)
    while (start := data.rfind(_TEXT_HEAD, 0, start)) >= 0:
        frame = stream.frame_at(data, start)
        if frame is None or not frame.payload.startswith(b"{"):
            continue
        try:
            event = orjson.loads(frame.payload)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("time_us"), int):
            return Sight(event["time_us"], one.size + start)
    return None


def judge_counted(one: Subscription, seen: Sight | None, truth: Truth, pings_max: int) -> None:
    """Note where a counted connection's bytes are not those between its first event and the one seen last.

    Without a last one nothing came any more: what it got must reach into the last second. Pings come in
    between.
    """
    first_us = one.first_us if one.cursor is None else min(one.cursor, one.first_us)
    pings = pings_max * CONTROL_BYTES
    findings = one.readings.findings
    if seen is not None:
        must = truth.amount(one.wanted, first_us, seen.time_us).size
        if not must <= seen.size <= must + pings:
            words = f"{one.name} had {seen.size} bytes from {first_us} to {seen.time_us}, not {must}"
            findings.note("lost or repeated", words)
        return
    newest_us = truth.everything.last_us
    most = truth.amount(one.wanted, first_us, newest_us + 1).size
    if one.size > most + pings:
        findings.note("lost or repeated", f"{one.name} got {one.size} bytes from {first_us} on, not {most}")
    elif one.size < (least := truth.amount(one.wanted, first_us, newest_us - STILL_US).size):
        findings.note("standing still", f"{one.name} got nothing more, {least - one.size} bytes behind")


def close_words(payload: bytes) -> str:
    """Write the code and the reason of a close frame."""
    code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
    return f"{code} {payload[2:].decode(errors='replace')}".strip()


@lru_cache(maxsize=4096)  # several checked connections have the same events at about the same time
def tid_us(tid: str) -> int:
    """Return the moment that a TID names, in unix microseconds."""
    return int(tid.translate(_DIGITS), 32) >> 10
