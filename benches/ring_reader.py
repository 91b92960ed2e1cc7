"""A live subscriber that checks that it gets what the relay sends: each event once, in order. It is cheap.

    python -m benches.ring_reader PORT FILE REPOS

FILE and REPOS are those of the relay, which must not have sent anything before. Apart from that it is as
`benches.live_reader`. An event is identified by its account: those of neighbours differ.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benches.live_reader import read
from benches.ring import Ring

from jetstream.bench import stream
from jetstream.simulator import recording

_TIME_BYTES: Final = 16  # of unix microseconds, until the year 2286


class RingReader:
    """Checks and counts the events of one subscription. `accounts` are those of all events to come."""

    def __init__(self, accounts: Iterator[bytes]) -> None:
        # How each message to come begins.
        self._begins = (b'{"did":"%b","time_us":' % account for account in accounts)
        self._newest = b""  # `time_us` of the newest good event, as text
        self.good = self.wrong = 0  # events; wrong: not the next one, or not later than the one before
        self.heard_at = 0.0  # when the newest event was received, unix seconds
        self.closed = ""  # why the connection ended

    def take(self, frame: stream.Frame, now_us: int) -> None:
        """Check one message."""
        begin, message = next(self._begins), frame.payload
        time_us = message[len(begin) : len(begin) + _TIME_BYTES]
        if message.startswith(begin) and time_us > self._newest:
            self.good += 1
            self._newest = time_us
        else:
            self.wrong += 1
        self.heard_at = now_us / 1e6

    def say(self) -> None:
        """Print the totals, with the CPU time of this process so far."""
        facts = {"good": self.good, "wrong": self.wrong, "closed": self.closed}
        print(json.dumps(facts | {"heard_at": self.heard_at, "cpu_s": time.process_time()}), flush=True)


def main(port: int, frames: Path, repos: int) -> None:
    """Subscribe and check until standard input ends."""
    read(port, RingReader(Ring(recording.read(frames), repos).accounts_of_events()))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
