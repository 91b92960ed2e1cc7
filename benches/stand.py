"""A relay and a server for benchmarks of the whole path, each a process, stopped and removed afterwards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from benches.frames import recorded
from benches.relay_process import RelayProcess

from jetstream.bench import process

STOP_TIMEOUT_S: Final = 20.0
NOWHERE: Final = "127.0.0.1:1"  # nothing listens on the lowest port


class Server:
    """`jetstream serve` on a free port of the loopback. An edge has no upstream."""

    def __init__(self, upstream: str | None, data_dir: Path, options: list[str]) -> None:
        command = [sys.executable, "-m", "jetstream", "serve"]
        command += [] if upstream is None else ["--upstream", upstream]
        command += ["--listen", "127.0.0.1:0", "--data-dir", str(data_dir), "--log-format", "json", *options]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.warnings: list[str] = []  # lines of its log above the level `info`, without their newline
        assert self._process.stderr is not None
        address = urlsplit(self._wait_listening(self._process.stderr)).netloc
        self.url = f"ws://{address}"
        self.port = int(address.rpartition(":")[2])
        self._reader = threading.Thread(target=self._read_log, args=[self._process.stderr], daemon=True)
        self._reader.start()

    def cpu_s(self) -> float:
        """Return the CPU seconds of the process."""
        return process.cpu_s(self.pid)

    def stop(self) -> None:
        """Terminate the process, or kill it if that takes too long.

        Raises RuntimeError if it has ended before.
        """
        if self._process.poll() is not None:
            raise RuntimeError("the server ended by itself:\n" + "\n".join(self.warnings))
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.warnings.append(f"the server did not stop within {STOP_TIMEOUT_S:.0f} s")
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def _wait_listening(self, lines: IO[str]) -> str:
        for line in lines:
            facts = json.loads(line)
            if facts["event"] == "listening":
                return str(facts["metrics"])  # which every role has
        raise RuntimeError("the server ended before it listened")

    def _read_log(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                if '"level": "info"' not in line:
                    self.warnings.append(line.strip())


@contextmanager
def stand(*options: str, repos: int = 50_000) -> Iterator[tuple[RelayProcess, Server]]:
    """Start a relay and a server that reads it. At the end stop both, and remove the server's data."""
    directory = Path(tempfile.mkdtemp(prefix="jetstream-bench-"))
    try:
        relay = RelayProcess(recorded(), repos)
        with served([relay], directory / "data", list(options)) as server:
            yield relay, server
    finally:
        shutil.rmtree(directory)


@contextmanager
def served(relays: Sequence[RelayProcess], data_dir: Path, options: list[str]) -> Iterator[Server]:
    """Start a server that reads relays. At the end stop all, and print what the server has warned of."""
    try:
        first, *others = (relay.url for relay in relays)
        more = [argument for url in others for argument in ("--upstream", url)]
        with started(first, data_dir, [*more, *options]) as server:
            for relay in relays:
                relay.wait_connected()
            yield server
    finally:
        for relay in relays:
            relay.stop()


@contextmanager
def started(upstream: str | None, data_dir: Path, options: list[str]) -> Iterator[Server]:
    """Start a server. At the end stop it, and print what it has warned of."""
    server = Server(upstream, data_dir, options)
    try:
        yield server
    finally:
        server.stop()
        for warning in server.warnings:
            print(f"  server: {warning}", flush=True)


@contextmanager
def alone(data_dir: Path | None = None, *options: str) -> Iterator[Server]:
    """Start a server whose upstream cannot be reached, on a new directory or on one with a log in it."""
    with tempfile.TemporaryDirectory(prefix="jetstream-bench-") as directory:
        server = Server(f"ws://{NOWHERE}", data_dir or Path(directory), list(options))
        try:
            yield server
        finally:
            server.stop()


def settle(seconds: float = 0.5) -> None:
    """Give the server time to finish starting."""
    time.sleep(seconds)
