"""What a benchmark of the whole path stands on: a relay and a server, each a process, gone afterwards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

from benches.frames import recording

from jetstream.bench import process

STOP_TIMEOUT_S: Final = 20.0


class Relay:
    """The relay process: told what to send, it says what it sent."""

    def __init__(self, repos: int) -> None:
        command = [sys.executable, "-m", "jetstream.bench.relay", "--frames", str(recording())]
        self._process = subprocess.Popen(
            [*command, "--repos", str(repos)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = int(self._said("port")["port"])

    @property
    def url(self) -> str:
        """Where a server finds it."""
        return f"ws://127.0.0.1:{self.port}"

    def wait_connected(self) -> None:
        """Return when a server has connected."""
        self._said("connected")

    def begin(self, *, rate: float = 0, events: int = 10**9, seconds: float = 600) -> None:
        """Begin to send, at `rate` events a second or, with 0, as fast as the server reads."""
        assert self._process.stdin is not None
        order = {"rate": rate, "events": events, "seconds": seconds}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def wait_sent(self) -> dict[str, Any]:
        """Return what was sent, when all of it is: events, frames, seconds and cpu_s."""
        return self._said("events")

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _said(self, key: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            facts: dict[str, Any] = json.loads(line)
            if key in facts:
                return facts
        raise RuntimeError("the relay process has ended")


class Server:
    """`jetstream serve` on a free port of the loopback."""

    def __init__(self, upstream: str, data_dir: Path, options: list[str]) -> None:
        command = [sys.executable, "-m", "jetstream", "serve", "--upstream", upstream]
        command += ["--listen", "127.0.0.1:0", "--data-dir", str(data_dir), "--log-format", "json", *options]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.warnings: list[str] = []
        assert self._process.stderr is not None
        address = urlsplit(self._listening(self._process.stderr)).netloc
        self.url = f"ws://{address}"
        self.port = int(address.rpartition(":")[2])
        threading.Thread(target=self._listen_on, args=[self._process.stderr], daemon=True).start()

    def cpu_s(self) -> float:
        """Return the CPU seconds that it has used."""
        return process.cpu_s(self.pid)

    def stop(self) -> None:
        """End it as an operator would; by force when it takes longer than it may."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.warnings.append(f"the server did not stop within {STOP_TIMEOUT_S:.0f} s")
            self._process.kill()
            self._process.wait()

    def _listening(self, lines: IO[str]) -> str:
        for line in lines:
            facts = json.loads(line)
            if facts["event"] == "listening":
                return str(facts["subscribe"])
        raise RuntimeError("the server has ended before it listened")

    def _listen_on(self, lines: IO[str]) -> None:
        for line in lines:
            if '"level": "info"' not in line:
                self.warnings.append(line.strip())


@contextmanager
def stand(*options: str, repos: int = 50_000) -> Iterator[tuple[Relay, Server]]:
    """Start a relay and a server that reads it; stop both, and remove what the server stored."""
    directory = Path(tempfile.mkdtemp(prefix="jetstream-bench-"))
    relay = Relay(repos)
    try:
        server = Server(relay.url, directory / "data", list(options))
        try:
            relay.wait_connected()
            yield relay, server
        finally:
            server.stop()
            for warning in server.warnings:
                print(f"  server: {warning}", flush=True)
    finally:
        relay.stop()
        shutil.rmtree(directory)


def settle(seconds: float = 0.5) -> None:
    """Let the server finish what it began with: imports, the first connections."""
    time.sleep(seconds)
