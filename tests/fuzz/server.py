"""A server in a process of its own, with a relay behind it, for fuzzers of its port."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.programs import simulated_relay

from jetstream.bench import stream

RATE = 100  # events a second
PATIENCE_S = 20.0  # for an answer or an end; the server's own deadlines are shorter
QUIET = re.compile(rb'"level": "(info|warning)"')  # what anything but an error is logged as
_READ_BYTES = 1 << 16


class Target:
    """The server under test. Its log goes to a file."""

    def __init__(self, server: subprocess.Popen[bytes], log: Path) -> None:
        self._server = server
        self._log = log
        self._read = 0  # bytes of the log that were looked at
        self.port = self._listening()

    def _listening(self) -> int:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self._server.poll() is None:
            for line in self._new_lines():
                facts = json.loads(line)
                if facts["event"] == "listening":
                    return urlsplit(str(facts["subscribe"])).port or 0
            time.sleep(0.02)
        raise AssertionError(f"the server does not listen: {self._log.read_text()}")

    def _new_lines(self) -> list[bytes]:
        """Return the whole lines of the log since the last call."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            whole = log.read().rpartition(b"\n")[0]
        self._read += len(whole) + bool(whole)
        return whole.splitlines()

    def send(self, *parts: bytes) -> bytes:
        """Send bytes, then FIN; return everything until the server closes the connection.

        Raises TimeoutError when it does not.
        """
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                connection.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: connection.recv(_READ_BYTES), b""))
            except TimeoutError:
                raise
            except OSError:
                return b""  # closed by the server before everything was sent

    def subscribe(self) -> socket.socket:
        """Open a subscription."""
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        connection.sendall(stream.request(f"127.0.0.1:{self.port}", "/subscribe", []))
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(_READ_BYTES)
        assert stream.status(head) == 101
        return connection

    def check(self) -> None:
        """Assert that it is alive, answers, and has logged no error."""
        assert self._server.poll() is None
        url = f"http://127.0.0.1:{self.port}/health"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            assert answer.status == 200
        assert [line for line in self._new_lines() if not QUIET.search(line)] == []


@contextmanager
def target(directory: Path) -> Iterator[Target]:
    """Start a relay and a server; stop both."""
    with simulated_relay("--rate", str(RATE), "--repos", "50", "--seed", "1") as upstream:
        command = [sys.executable, "-m", "jetstream", "serve", "--upstream", upstream]
        command += ["--listen", "127.0.0.1:0", "--data-dir", str(directory / "data"), "--log-format", "json"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JETSTREAM_")}
        log = directory / "log.jsonl"
        with log.open("wb") as file:
            server = subprocess.Popen(command, stderr=file, env=environment)
        try:
            yield Target(server, log)
        finally:
            server.kill()
            server.wait()
