"""Compressed messages with our own dictionary: how small, how fast, and how the work is shared.

python -m benches.compression
"""

from __future__ import annotations

import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvloop
from benches.bench_log import CHANGES, SEGMENT_EVENTS
from benches.events import Network
from benches.limits import Limit, number
from benches.stand import Server
from tests.unit.delivery.fakes import FakeSink, MemoryLog, running, until

from jetstream.bench import stream
from jetstream.delivery.delivery import Delivery
from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.framing.zstd import ZstdFraming
from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.renderers.v1 import V1
from jetstream.delivery.subscriber import Encoding, SubscriberOptions
from jetstream.dictionary.own import OWN
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch

TITLE: Final = "Compressed messages, v1 wire, our own dictionary: replays of 300,000 events, and live"
EVENTS: Final = 300_000  # more than the caches hold, in either encoding
READERS: Final = 50
RUNS: Final = 5
LIVE_EVENTS: Final = 10_000
LIVE_BATCH: Final = 20
LIMITS: Final = (
    Limit("replay, compressed over plain", 0.45, least=True),
    Limit(f"CPU of replay, {READERS} compressed readers over one", READERS / 5),
    Limit("CPU of compression, 1,000 subscribers over one", 1.3),
)
QUERIES: Final = {"plain": [], "compressed": [("zstdDictionary", str(OWN.dictionary_id))]}
_READ_BYTES: Final = 1 << 20


def main(events: int = EVENTS) -> dict[str, float]:
    """Run all, print the figures, and return them by name."""
    directory = Path(tempfile.mkdtemp(prefix="jetstream-bench-compression-"))
    try:
        sizes = uvloop.run(fill(directory, events))
        figures = ratios()
        with served(directory) as server:
            figures |= replays(server, sizes, events)
            figures |= crowds(server, sizes)
    finally:
        shutil.rmtree(directory)
    figures |= uvloop.run(live())
    limits = {limit.figure: limit for limit in LIMITS}
    for name, figure in figures.items():
        print(f"{name:60} {number(figure):>14} {limits.get(name, '')!s:>14}", flush=True)
    return figures


async def fill(directory: Path, events: int) -> dict[str, int]:
    """Store events, all sealed. Return how many bytes they are on a socket, plain and compressed."""
    log, sizes, stored = await SqliteLog.open(directory, erase=frozenset()), dict.fromkeys(QUERIES, 0), 0
    for batch in Network().batches(events, 100):
        await log.append(batch, CHANGES)
        messages = V1.render(batch, range(len(batch)))
        sizes["plain"] += sum(map(len, WEBSOCKET.frames(messages)))
        sizes["compressed"] += sum(map(len, OWN.framing.frames(messages)))
        stored += len(batch)
        if stored % SEGMENT_EVENTS == 0:
            await log.maintain()
    await log.close()
    return sizes


def ratios() -> dict[str, float]:
    """Compress simulated events in every wire."""
    [batch] = Network().batches(LIVE_EVENTS, LIVE_EVENTS)
    figures = {}
    for name, renderer in RENDERERS.items():
        messages = renderer.render(batch, range(len(batch)))
        began = time.thread_time()
        frames = OWN.framing.frames(messages)
        figures[f"µs to compress an event, {name}"] = (time.thread_time() - began) / len(frames) * 1e6
        figures[f"times smaller, {name}"] = sum(map(len, messages)) / sum(map(len, frames))
    return figures


@contextmanager
def served(directory: Path) -> Iterator[Server]:
    """Serve a log, with an upstream that is not there."""
    server = Server("ws://127.0.0.1:9", directory, ["--retention", "3650d", "--zstd-dictionary", "none"])
    try:
        yield server
    finally:
        server.stop()


def replays(server: Server, sizes: dict[str, int], events: int) -> dict[str, float]:
    """Replay everything to one reader at a time, plain and compressed in turn."""
    rates: dict[str, list[float]] = {name: [] for name in QUERIES}
    costs: dict[str, list[float]] = {name: [] for name in QUERIES}
    for _ in range(RUNS):
        for name in QUERIES:
            took_s, cpu_s = replay(server, name, sizes[name], 1)
            rates[name].append(events / took_s)
            costs[name].append(cpu_s / events * 1e6)
    figures = {f"replay, {name}, events/s": statistics.median(rates[name]) for name in QUERIES}
    figures |= {f"replay, {name}, µs of CPU an event": statistics.median(costs[name]) for name in QUERIES}
    pairs = zip(rates["compressed"], rates["plain"], strict=True)
    return figures | {"replay, compressed over plain": statistics.median(one / other for one, other in pairs)}


def crowds(server: Server, sizes: dict[str, int]) -> dict[str, float]:
    """Replay everything to many readers that come at once."""
    figures = {}
    for name, size in sizes.items():
        one, many = (replay(server, name, size, readers)[1] for readers in (1, READERS))
        figures[f"CPU of replay, {READERS} {name} readers over one"] = many / one
        figures[f"CPU s of replay, {READERS} {name} readers"] = many
    return figures


def replay(server: Server, name: str, size: int, readers: int) -> tuple[float, float]:
    """Let readers replay everything. Return the seconds it took, and the CPU seconds of the server."""
    cpu_s, began = server.cpu_s(), time.perf_counter()
    connections = [connect(server.port, name) for _ in range(readers)]
    left = dict.fromkeys(connections, size)
    while left:
        for connection in list(left):
            left[connection] -= len(connection.recv(_READ_BYTES))
            if left[connection] <= 0:
                del left[connection]
    took_s = time.perf_counter() - began
    cpu_s = server.cpu_s() - cpu_s
    for connection in connections:
        connection.close()
    return took_s, cpu_s


def connect(port: int, name: str) -> socket.socket:
    """Subscribe from the first event on."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(
        stream.request(f"127.0.0.1:{port}", "/v1/subscribe", [("cursor", "0"), *QUERIES[name]])
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # nothing of the events
        head += connection.recv(1)
    if stream.status(head) != 101:
        raise SystemExit(head.decode())
    return connection


class Timed(ZstdFraming):
    """Knows for how long it has compressed, in CPU seconds."""

    seconds = 0.0

    def frames(self, messages: list[bytes], times: Iterable[int] | None = None) -> list[bytes]:
        """Return the frames."""
        began = time.thread_time()
        made = super().frames(messages, times)
        self.seconds += time.thread_time() - began
        return made


async def live() -> dict[str, float]:
    """Publish the same events to more and more compressed subscribers, without sockets."""
    batches = list(Network().batches(LIVE_EVENTS, LIVE_BATCH))
    took = {}
    for subscribers in (1, 1, 10, 100, 1_000):  # the first time, memory is allocated
        took[subscribers] = await publish(batches, subscribers)
    figures = {
        f"CPU of compression, {subscribers:,} subscribers, µs an event": seconds / LIVE_EVENTS * 1e6
        for subscribers, seconds in took.items()
    }
    return figures | {"CPU of compression, 1,000 subscribers over one": took[1_000] / took[1]}


async def publish(batches: list[Batch], subscribers: int) -> float:
    """Publish to subscribers. Return how long events were compressed, in CPU seconds."""
    log, framing = MemoryLog(), Timed(OWN.data)
    delivery = Delivery(log, Metrics(RENDERERS))
    encoding = Encoding(V1, framing)
    async with running(delivery):
        for _ in range(subscribers):
            delivery.subscribe(Discarding(), encoding, SubscriberOptions(), None)
        for batch in batches:
            log.put(batch)
            await until(lambda: delivery.position > log.tip)
    return framing.seconds


class Discarding(FakeSink):
    """Keeps nothing of what is written."""

    def write(self, data: bytes) -> None:
        """Discard it."""


if __name__ == "__main__":
    main()
