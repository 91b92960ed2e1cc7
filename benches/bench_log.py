"""The log by itself: commits, size, replay, sparse filters, opening, and what the loop feels of sealing."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Final

import uvloop
from benches.events import Network
from benches.limits import Limit, number

from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.render_cache import RenderCache
from jetstream.delivery.renderers.classic import CLASSIC
from jetstream.delivery.renderers.v1 import V1
from jetstream.delivery.subscriber import Encoding
from jetstream.eventlog import Changes, LogReader, SourceCursor
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import DeliveryLimits, LogLimits
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.filter import EVERYTHING, Filter

EVENTS: Final = 1_000_000
LARGE: Final = 10  # so many times as many for opening
SEGMENT_EVENTS: Final = LogLimits().segment_events
RARE_EVERY: Final = 10 * SEGMENT_EVENTS
RARE_DID: Final = b"did:plc:raretrararerarerarerare"
RARE_COLLECTION: Final = b"com.example.rare"
CHUNK_EVENTS: Final = 500  # of a reader between two turns of the loop
STALL_S: Final = 10.0
LIVE_S: Final = 5.0

ENCODING: Final = Encoding(CLASSIC, WEBSOCKET)
CHANGES: Final = Changes({"relay.example:443": SourceCursor(1)})
LIMITS: Final = (
    Limit("commit of 1 event, µs", 100),
    Limit("commit of 100 events, µs", 500),
    Limit("bytes on disk over bytes of v1 JSON", 0.25),
    Limit("replay to one reader, events/s", 350_000, least=True),
    Limit("replay to ten readers together, events/s", 800_000, least=True),
    Limit("scan for one DID in a tenth of the segments, events/s", 5e6, least=True),
    Limit("scan for one DID that is absent, events/s", 20e6, least=True),
    Limit("scan for one collection in a tenth of the segments, events/s", 5e6, least=True),
    Limit("scan for one collection that is absent, events/s", 20e6, least=True),
    Limit("live p99 while ten readers replay, ms", 25),
    Limit("opening ten million events, s", 1),
)


def main(events: int = EVENTS) -> dict[str, float]:
    """Run all, print a table, and return the figures by name."""
    directory = Path(tempfile.mkdtemp(prefix="jetstream-bench-log-"))
    try:
        figures = uvloop.run(measure(directory, events))
    finally:
        shutil.rmtree(directory)
    limits = {limit.figure: limit for limit in LIMITS}
    print(f"{'log: ' + format(events, ',') + ' events':60} {'measured':>14} {'target':>14}")
    for name, figure in figures.items():
        print(f"{name:60} {number(figure):>14} {limits.get(name, '')!s:>14}")
    return figures


async def measure(directory: Path, events: int) -> dict[str, float]:
    """Fill a log, and measure it in every way."""
    network = Network()
    figures = await commits(directory / "commits", network)
    filled = directory / "filled"
    json_bytes, _ = await fill(filled, network, events)
    stored = (filled / DATABASE).stat().st_size
    figures["bytes on disk an event"] = stored / events
    figures["bytes on disk over bytes of v1 JSON"] = stored / json_bytes
    log = await SqliteLog.open(filled, erase=frozenset())
    figures |= await replays(log)
    figures |= await sparse(log, events)
    figures["live p99 while ten readers replay, ms"] = await live_delay(log, network) * 1e3
    await log.close()
    figures |= await stalls(directory / "stalls", network)
    figures |= await opening(filled, events)
    return figures


async def commits(directory: Path, network: Network) -> dict[str, float]:
    """Commit batches of several sizes, and take the median."""
    figures: dict[str, float] = {}
    for size, name in ((1, "1 event"), (20, "20 events"), (100, "100 events")):
        log = await SqliteLog.open(directory / str(size))
        took = [await timed(log.append(batch, CHANGES)) for batch in network.batches(1000 * size, size)]
        await log.close()
        figures[f"commit of {name}, µs"] = sorted(took)[500] * 1e6
    return figures


async def timed(action: Awaitable[None]) -> float:
    """Return the seconds that an action takes."""
    began = time.perf_counter()
    await action
    return time.perf_counter() - began


async def fill(directory: Path, network: Network, events: int) -> tuple[int, int]:
    """Append and seal all; return what the same events take as v1 JSON, and how many messages that is."""
    log = await SqliteLog.open(directory, erase=frozenset())
    json_bytes = count = messages = 0
    for batch in network.batches(events, 100):
        if count % RARE_EVERY == 0:
            batch.dids[0], batch.dids[1] = RARE_DID, RARE_DID
            batch.collections[2] = RARE_COLLECTION
        rendered = V1.render(batch, range(len(batch)))
        json_bytes += sum(map(len, rendered))
        messages += sum(map(bool, rendered))  # v1 has no syncs
        await log.append(batch, CHANGES)
        count += len(batch)
        if count % SEGMENT_EVENTS == 0:
            await log.maintain()
    await log.close()
    return json_bytes, messages


async def replays(log: LogReader) -> dict[str, float]:
    """Read everything and make frames of it, for one reader and for ten that began at once."""
    one_s = await timed(replay(log))
    ten_s = await timed(together(log, 10))
    events = log.statistics().events
    return {
        "replay to one reader, events/s": events / one_s,
        "replay to ten readers together, events/s": 10 * events / ten_s,
    }


async def together(log: LogReader, readers: int) -> None:
    """Let several readers replay everything at once."""
    shared = Shared()
    await asyncio.gather(*(replay(log, EVERYTHING, shared) for _ in range(readers)))


class Shared:
    """What readers share in the server: turns of the event loop, and what is rendered."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.cache = RenderCache(DeliveryLimits().render_cache_bytes)

    def frames(self, batch: Batch, indices: Sequence[int]) -> bytes:
        """Return the bytes for the socket."""
        return b"".join(self.cache.render(batch, indices, ENCODING).frames(indices))


async def replay(log: LogReader, wanted: Filter = EVERYTHING, shared: Shared | None = None) -> None:
    """Read from the oldest event to the newest as a subscriber of the classic wire: frames, in chunks.

    As in the server, readers make one chunk in each turn of the event loop.
    """
    shared = shared or Shared()
    position, stop = log.floor, log.tip + 1
    while (batch := await log.read(position, stop, wanted)) is not None:
        chosen = wanted.select(batch, batch.index(position), batch.index(stop))
        position = batch.last + 1
        for start in range(0, len(chosen), CHUNK_EVENTS):
            async with shared.turn:
                shared.frames(batch, chosen[start : start + CHUNK_EVENTS])
                await asyncio.sleep(0)


async def sparse(log: LogReader, events: int) -> dict[str, float]:
    """Read the little that a filter wants of everything."""
    cases = (
        ("one DID in a tenth of the segments", Filter(dids=DidSet([RARE_DID]))),
        ("one DID that is absent", Filter(dids=DidSet([b"did:plc:absent"]))),
        ("one collection in a tenth of the segments", Filter(collections=frozenset([RARE_COLLECTION]))),
        ("one collection that is absent", Filter(collections=frozenset([b"com.example.absent"]))),
    )
    return {f"scan for {name}, events/s": events / await timed(replay(log, wanted)) for name, wanted in cases}


async def live_delay(log: SqliteLog, network: Network) -> float:
    """Return the 99th percentile of what lies between an append and its frames, beside ten replays."""
    delays: list[float] = []
    shared = Shared()
    readers = [asyncio.create_task(forever(log, shared)) for _ in range(10)]
    appended: dict[int, float] = {}

    async def deliver() -> None:
        position = log.tip + 1
        while True:
            await log.wait(position)
            batch = await log.read(position, log.tip + 1, EVERYTHING)
            assert batch is not None
            shared.frames(batch, range(batch.index(position), len(batch)))
            position = batch.last + 1
            delays.append(time.perf_counter() - appended[batch.last])

    live = asyncio.create_task(deliver())
    began = time.perf_counter()
    for count, batch in enumerate(network.batches(int(LIVE_S * 1000), 5)):
        due = began + count * 0.005
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        # From when it was due: an append that comes late because the loop was busy is late for its readers.
        appended[batch.last] = due
        await log.append(batch, CHANGES)
    for task in (live, *readers):
        task.cancel()
    await asyncio.gather(live, *readers, return_exceptions=True)
    return percentile(delays, 0.99)


async def forever(log: LogReader, shared: Shared) -> None:
    """Replay again and again."""
    while True:
        await replay(log, EVERYTHING, shared)


async def stalls(directory: Path, network: Network) -> dict[str, float]:
    """Append 5,000 events a second, and watch how late the loop is with and without."""
    log = await SqliteLog.open(directory)
    batches = list(network.batches(int(5_000 * STALL_S), 50))
    idle = await lateness(asyncio.sleep(STALL_S / 2))
    took: list[float] = []

    async def append() -> None:
        began = time.perf_counter()
        for count, batch in enumerate(batches):
            await asyncio.sleep(max(0.0, began + count * 0.01 - time.perf_counter()))
            took.append(await timed(log.append(batch, CHANGES)))

    busy = await lateness(append())
    await log.close()
    return {
        "loop late, idle, p99.9, ms": percentile(idle, 0.999) * 1e3,
        "loop late, sealing 5,000 events/s, p99, ms": percentile(busy, 0.99) * 1e3,
        "loop late, sealing 5,000 events/s, p99.9, ms": percentile(busy, 0.999) * 1e3,
        "append while sealing, p99, ms": percentile(took, 0.99) * 1e3,
        "append while sealing, longest, ms": max(took) * 1e3,
    }


async def lateness(work: Awaitable[None]) -> list[float]:
    """Return how late each millisecond's timer was while something ran."""
    late: list[float] = []
    running = asyncio.ensure_future(work)
    while not running.done():
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - began - 0.001)
    await running
    return late


async def opening(directory: Path, events: int) -> dict[str, float]:
    """Open a log ten times as large: the same segments again and again, further on in time."""
    before = resident_bytes()
    multiply(directory / DATABASE)
    began = time.perf_counter()
    log = await SqliteLog.open(directory)
    opened_s = time.perf_counter() - began
    assert log.statistics().events >= LARGE * events
    grown = resident_bytes() - before
    await log.close()
    return {"opening ten million events, s": opened_s, "memory that takes, MB": grown / 1e6}


def multiply(path: Path) -> None:
    """Store every segment again, further on in time; what is inside is not looked at when a log is opened."""
    with sqlite3.connect(path) as connection:
        first, last, events = connection.execute(
            "SELECT min(first_us), max(last_us), sum(events) FROM segment"
        ).fetchone()
        connection.execute("DELETE FROM tail")
        for number in range(1, LARGE):
            shift = number * (last - first + 1)
            connection.execute(
                "INSERT INTO segment SELECT last_us + ?, first_us + ?, events, collection_set, did_bits,"
                " accounts, times, kinds, dids, collections, rkeys, revs, cids, bodies FROM segment"
                " WHERE last_us <= ?",
                (shift, shift, last),
            )
        end = last + (LARGE - 1) * (last - first + 1)
        connection.execute("UPDATE state SET tip_us = ?, appended = ?", (end, events * LARGE))
    connection.close()


def resident_bytes() -> int:
    """Return the memory this process has."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of all are."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


if __name__ == "__main__":
    main()
