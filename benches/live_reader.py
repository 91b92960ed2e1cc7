"""A live subscriber that checks every event, in a process of its own.

    python -m benches.live_reader PORT ATTACKER_DID

It reads until its standard input ends. For each line of it, it prints the totals so far and the delays since
the last line, as JSON. Events of the attacker are counted separately. An event is identified by its DID, rev
and path.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections import deque
from typing import Any, Final, Protocol

import orjson
from benches.counter import connect
from benches.relay_delays import cached_tid_us

from jetstream.bench import stream
from jetstream.bench.delays import Delays

KNOWN_MAX: Final = 20_000  # the newest events, among which repeats are searched
_READ_BYTES: Final = 1 << 20


class Reader:
    """Checks and counts the events of one subscription."""

    def __init__(self, attacker: str) -> None:
        self._attacker = attacker  # how its DIDs begin
        self._known: set[tuple[str, str, str]] = set()  # the newest commits
        self._order: deque[tuple[str, str, str]] = deque()  # the same, the oldest first
        self._last_us = 0  # `time_us` of the newest event
        self.good = self.attacks = self.wrong = 0  # events; wrong: repeated, or out of order
        self.largest = 0  # bytes of a message
        self.heard_at = 0.0  # when the newest good event was received, unix seconds
        self.closed = ""  # why the connection ended
        self.delays = Delays()  # since `rev`, of good commits since the last report

    def take(self, frame: stream.Frame, now_us: int) -> None:
        """Check one message."""
        event: dict[str, Any] = orjson.loads(frame.payload)
        self.largest = max(self.largest, len(frame.payload))
        self.wrong += event["time_us"] <= self._last_us
        self._last_us = event["time_us"]
        if event["did"].startswith(self._attacker):
            self.attacks += 1
            return
        self.good += 1
        self.heard_at = now_us / 1e6
        commit = event.get("commit")
        if commit is not None:
            self.delays.add(now_us - cached_tid_us(commit["rev"]))
            self._know((event["did"], commit["rev"], f"{commit['collection']}/{commit['rkey']}"))

    def _know(self, key: tuple[str, str, str]) -> None:
        if key in self._known:
            self.wrong += 1
            return
        self._known.add(key)
        self._order.append(key)
        if len(self._order) > KNOWN_MAX:
            self._known.discard(self._order.popleft())

    def say(self) -> None:
        """Print the totals and delays, and reset the delays."""
        delays, self.delays = self.delays, Delays()
        facts = {"good": self.good, "attacks": self.attacks, "wrong": self.wrong, "closed": self.closed}
        facts |= {"largest": self.largest, "heard_at": self.heard_at, "timed": delays.count}
        facts |= {f"p{percent}_ms": delays.percentile_us(percent) / 1000 for percent in (50, 99)}
        print(json.dumps(facts | {"max_ms": delays.max_us / 1000}), flush=True)


class Checking(Protocol):
    """What is done with the messages of a subscription."""

    closed: str  # why the connection ended

    def take(self, frame: stream.Frame, now_us: int) -> None:
        """Check one message."""

    def say(self) -> None:
        """Print what was received, as JSON."""


def read(port: int, reader: Checking) -> None:
    """Subscribe to everything, report it, and read until standard input ends. For each line of it, `say`."""
    connection, rest = connect("127.0.0.1", port)
    data = bytearray(rest)
    print(json.dumps({"subscribed": True}), flush=True)
    while True:
        watched: list[Any] = [0] if reader.closed else [0, connection]
        ready, _, _ = select.select(watched, [], [])
        if connection in ready:
            received = connection.recv(_READ_BYTES)
            now_us = time.time_ns() // 1000
            data += received
            reader.closed = reader.closed or ("" if received else "lost")
            frames, used = stream.frames(bytes(data))
            del data[:used]
            for frame in frames:
                if frame.opcode == stream.TEXT:
                    reader.take(frame, now_us)
                elif frame.opcode == stream.PING:
                    connection.sendall(stream.control(stream.PONG, frame.payload))
                elif frame.opcode == stream.CLOSE:
                    reader.closed = stream.close_words(frame.payload)
        if 0 in ready:
            if not os.read(0, 4096):
                return
            reader.say()


if __name__ == "__main__":
    read(int(sys.argv[1]), Reader(sys.argv[2]))
