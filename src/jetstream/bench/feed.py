"""The relay process, from outside: start it, tell it what to send, hear what it sent."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jetstream.errors import JetstreamError

EVENTS_MAX = 10**12  # as good as no limit


class RelayEndedError(JetstreamError):
    """The relay process has ended before it was told to."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the relay sent on one order, and what that took."""

    events: int
    frames: int
    seconds: float
    cpu_s: float


class Feed:
    """A relay process (`jetstream.bench.relay`)."""

    def __init__(self, frames: Path | None, repos: int, host: str = "127.0.0.1", port: int = 0) -> None:
        """Start it: with a recording, or without one with simulated frames, which takes some seconds.

        Raises RelayEndedError when it cannot listen.
        """
        command = [sys.executable, "-m", "jetstream.bench.relay", "--repos", str(repos)]
        command += ["--host", host, "--port", str(port)]
        if frames is not None:
            command += ["--frames", str(frames)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own module
        self.url = f"ws://{host}:{self._hear('port')['port']}"

    def wait_connected(self) -> None:
        """Return when a server has connected."""
        self._hear("connected")

    def begin(self, *, rate: float = 0, events: int = EVENTS_MAX, seconds: float = 600) -> None:
        """Begin to send, at `rate` events a second or, with 0, as fast as the server reads."""
        assert self._process.stdin is not None
        order = {"rate": rate, "events": events, "seconds": seconds}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def wait_sent(self) -> Sent:
        """Return what was sent, when all of it is."""
        return Sent(**self._hear("events"))

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _hear(self, key: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            facts: dict[str, Any] = json.loads(line)
            if key in facts:
                return facts
        self._process.communicate()
        raise RelayEndedError(f"the relay process ended with status {self._process.returncode}")
