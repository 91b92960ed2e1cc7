"""A live reader that checks every event: a process that subscribes, and says at its end what it saw.

    python -m benches.live_reader PORT ATTACKER_DID

It reads until its standard input ends. Told a line, it answers with what it saw so far, and begins to take
delays afresh. Events of the attacker are counted apart. An event is known by (did, rev, path).
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections import deque
from typing import Any, Final

import orjson
from benches.counter import connect
from benches.relay_delays import cached_tid_us

from jetstream.bench import stream
from jetstream.bench.delays import Delays

KNOWN_MAX: Final = 20_000  # of the newest events, among which a repeat is looked for
_READ_BYTES: Final = 1 << 20


class Reader:
    """What was seen."""

    def __init__(self, attacker: str) -> None:
        self._attacker = attacker
        self._known: set[tuple[str, str, str]] = set()
        self._order: deque[tuple[str, str, str]] = deque()
        self._last_us = 0
        self.good = self.attacks = self.wrong = 0
        self.largest = 0  # bytes of a message
        self.heard_at = 0.0  # the newest good event, unix seconds
        self.closed = ""
        self.delays = Delays()

    def take(self, frame: stream.Frame, now_us: int) -> None:
        """Check one message."""
        event: dict[str, Any] = orjson.loads(frame.payload)
        self.largest = max(self.largest, len(frame.payload))
        self.wrong += event["time_us"] <= self._last_us
        self._last_us = event["time_us"]
        if event["did"] == self._attacker:
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
        """Write what was seen, and begin to take delays afresh."""
        delays, self.delays = self.delays, Delays()
        facts = {"good": self.good, "attacks": self.attacks, "wrong": self.wrong, "closed": self.closed}
        facts |= {"largest": self.largest, "heard_at": self.heard_at, "timed": delays.count}
        facts |= {f"p{percent}_ms": delays.percentile_us(percent) / 1000 for percent in (50, 99)}
        print(json.dumps(facts | {"max_ms": delays.max_us / 1000}), flush=True)


def main(port: int, attacker: str) -> None:
    """Subscribe to everything, say so, and read."""
    connection, rest = connect("127.0.0.1", port)
    reader, data = Reader(attacker), bytearray(rest)
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
    main(int(sys.argv[1]), sys.argv[2])
