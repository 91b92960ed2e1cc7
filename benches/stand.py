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
from typing import IO, Final
from urllib.parse import urlsplit

from benches.frames import recorded

from jetstream.bench import process
from jetstream.bench.feed import Feed

STOP_TIMEOUT_S: Final = 20.0


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
        """End it as an operator would; by force when it takes longer than it may.

        Raises RuntimeError when it has ended before.
        """
        if self._process.poll() is not None:
            raise RuntimeError("the server has ended by itself:\n" + "\n".join(self.warnings))
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
def stand(*options: str, repos: int = 50_000) -> Iterator[tuple[Feed, Server]]:
    """Start a relay and a server that reads it; stop both, and remove what the server stored."""
    directory = Path(tempfile.mkdtemp(prefix="jetstream-bench-"))
    relay = Feed(recorded(), repos)
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
