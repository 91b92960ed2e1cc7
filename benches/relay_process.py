"""The relay (`benches.relay`) as a process: start it, order it to send, and read what it sent."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
EVENTS_MAX: Final = 10**12  # no limit, in effect


class RelayEndedError(Exception):
    """The relay process ended by itself."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the relay sent on one order, in how many seconds and with how much CPU time."""

    events: int
    frames: int
    seconds: float
    cpu_s: float


class RelayProcess:
    """A relay process that sends the frames of a recording, from `repos` accounts; 0: from their own."""

    def __init__(self, frames: Path, repos: int) -> None:
        """Start it on a free port. Raises RelayEndedError if the recording cannot be read."""
        command = [sys.executable, "-m", "benches.relay", str(frames), str(repos)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = f"ws://127.0.0.1:{self._wait_for('port')['port']}"

    def wait_connected(self) -> None:
        """Return when a server connects or disconnects."""
        self._wait_for("connected")

    def begin(self, *, rate: float = 0, events: int = EVENTS_MAX, seconds: float = 600) -> None:
        """Start sending, at `rate` events a second or, with 0, as fast as the server reads."""
        assert self._process.stdin is not None
        order = {"rate": rate, "events": events, "seconds": seconds}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def wait_sent(self) -> Sent:
        """Wait until everything that was ordered is sent. Return what that was."""
        return Sent(**self._wait_for("events"))

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()

    def _wait_for(self, key: str) -> dict[str, Any]:
        """Return the next line of output that has a key."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            facts: dict[str, Any] = json.loads(line)
            if key in facts:
                return facts
        self._process.communicate()
        raise RelayEndedError(f"the relay process ended with status {self._process.returncode}")
