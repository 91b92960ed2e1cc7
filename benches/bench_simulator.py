"""The simulator: signed commits a second, and frames a second from a recording.

python -m benches.bench_simulator

The network of the first figure is 1,000 repositories of 300 records. The recordings are read by a raw socket
in another process than the server's, so they need two cores.
"""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

from jetstream.runtime import tune_gc
from jetstream.simulator import frames, recording, server
from jetstream.simulator.frames import Commit
from jetstream.simulator.world import Population, SteadyClock, World

REPOS, RECORDS = 1000, 300
ROUNDS, ROUND_COMMITS = 12, 1000
RECORDED: Final = 30_000
REPLAYS: Final = 7
LIMITS: Final = {
    "signed commits/s of one core": 6_000,
    "replayed frames/s, from the file": 100_000,
    "replayed frames/s, from memory": 300_000,
}
_START_US: Final = 1_767_225_600_000_000
_READ_BYTES: Final = 1 << 20


def main() -> dict[str, float]:
    """Measure, print and return the figures: the median and the maximum of several rounds."""
    world = World(Population(repos=REPOS, records=RECORDS, did_web=0.01), 1, SteadyClock(_START_US, 2500))
    tune_gc()  # as `jetstream simulate` does
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.bin.zst"
        _report(figures, "signed commits/s of one core", _commit_rates(world))
        size = _record(world, path)
        _report(figures, "replayed frames/s, from the file", _replay_rates(path, size, in_memory=False))
        _report(figures, "replayed frames/s, from memory", _replay_rates(path, size, in_memory=True))
    return figures


def _report(figures: dict[str, float], name: str, rates: list[float]) -> None:
    figures[name], figures[f"{name}, best"] = median(rates), max(rates)
    print(f"{name:34} {median(rates):9,.0f}   best {max(rates):9,.0f}   (at least {LIMITS[name]:,})")


def _commit_rates(world: World) -> list[float]:
    """Return commits a second of CPU time, from the text of the record to the frame."""
    messages = world.messages()
    rates = []
    for _ in range(ROUNDS):
        done, start = 0, time.process_time()
        while done < ROUND_COMMITS:
            message = next(messages)
            frames.encode(message, done + 1)
            done += isinstance(message, Commit)
        rates.append(done / (time.process_time() - start))
    return rates


def _record(world: World, path: Path) -> int:
    """Record the world. Return the bytes of messages that a subscriber gets."""
    size = 0
    with recording.writing(path) as add:
        for seq, message in zip(range(1, RECORDED + 1), world.messages(), strict=False):
            frame = frames.encode(message, seq)
            size += len(recording.message_head(len(frame))) + len(frame)
            add(frame)
    return size


def _replay_rates(path: Path, size: int, *, in_memory: bool) -> list[float]:
    with _serving(path, in_memory=in_memory) as port:
        return [RECORDED / _read(port, size) for _ in range(REPLAYS)]


@contextmanager
def _serving(path: Path, *, in_memory: bool) -> Iterator[int]:
    """Run `jetstream simulate --replay`, and yield its port once it listens."""
    with socket.socket() as free:
        free.bind((server.HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jetstream", "simulate", "--rate", "0", "--port", str(port)]
    command += ["--replay", str(path), *(["--in-memory"] if in_memory else [])]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()  # logs that it listens
        try:
            yield port
        finally:
            process.send_signal(signal.SIGTERM)


def _read(port: int, size: int) -> float:
    """Read `size` bytes of messages from a new connection. Return the seconds from the first one on."""
    key = base64.b64encode(os.urandom(16)).decode()
    request = (
        f"GET {server.SUBSCRIBE} HTTP/1.1\r\nHost: {server.HOST}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    buffer = bytearray(_READ_BYTES)
    with socket.create_connection((server.HOST, port)) as reader:
        reader.sendall(request.encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += reader.recv(1)
        start, left = time.perf_counter(), size
        while left:
            count = reader.recv_into(buffer, min(left, _READ_BYTES))
            assert count, "the server ended the connection"
            left -= count
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
