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
from benches.synthetic import Network

from jetstream.events import Batch
from jetstream.filters import EVERYTHING, Filter
from jetstream.hub.wires import CLASSIC, V1
from jetstream.log import Log, UpstreamCursor
from jetstream.log.block import BLOCK_EVENTS
from jetstream.log.database import DATABASE
from jetstream.log.sqlite import SqliteLog

EVENTS: Final = 1_000_000
LARGE: Final = 10  # so many times as many for opening
RARE_EVERY: Final = 10 * BLOCK_EVENTS
RARE_DID: Final = b"did:plc:raretrararerarerarerare"
RARE_COLLECTION: Final = b"com.example.rare"
SLICE_EVENTS: Final = 500  # of a reader between two turns of the loop, as the hub's
STALL_S: Final = 10.0
LIVE_S: Final = 5.0

CURSOR: Final = UpstreamCursor("relay.example:443", 1)
Row = tuple[str, float, str, float | None]


def main(events: int = EVENTS) -> dict[str, float]:
    """Run all, print a table, and return the figures by name."""
    directory = Path(tempfile.mkdtemp(prefix="jetstream-bench-log-"))
    try:
        rows = uvloop.run(measure(directory, events))
    finally:
        shutil.rmtree(directory)
    print(f"{'log: ' + format(events, ',') + ' events':52} {'measured':>14} {'target':>12}")
    for name, figure, unit, target in rows:
        bound = "" if target is None else f"{target:>12,g}"
        print(f"{name:52} {figure:>14,.4g} {bound:>12} {unit}")
    return {name: figure for name, figure, _, _ in rows}


async def measure(directory: Path, events: int) -> list[Row]:
    """Fill a log, and measure it in every way."""
    network = Network()
    rows = await commits(directory / "commits", network)
    filled = directory / "filled"
    json_bytes = await fill(filled, network, events)
    stored = (filled / DATABASE).stat().st_size
    rows.append(("bytes on disk an event", stored / events, "B", None))
    rows.append(("bytes on disk over bytes of v1 JSON", stored / json_bytes, "", 0.25))
    log = await SqliteLog.open(filled, forget=frozenset())
    rows += await replays(log)
    rows += await sparse(log, events)
    rows.append(("live p99 while ten readers replay", await live_delay(log, network) * 1e3, "ms", 25))
    await log.close()
    rows += await stalls(directory / "stalls", network)
    rows += await opening(filled)
    return rows


async def commits(directory: Path, network: Network) -> list[Row]:
    """Commit batches of several sizes, and take the median."""
    rows: list[Row] = []
    for size, target in ((1, 100.0), (20, None), (100, 500.0)):
        log = await SqliteLog.open(directory / str(size))
        took = [await timed(log.append(batch, CURSOR)) for batch in network.batches(1000 * size, size)]
        await log.close()
        rows.append((f"commit of {size} events, median", sorted(took)[500] * 1e6, "us", target))
    return rows


async def timed(action: Awaitable[None]) -> float:
    """Return the seconds that an action takes."""
    began = time.perf_counter()
    await action
    return time.perf_counter() - began


async def fill(directory: Path, network: Network, events: int) -> int:
    """Append and seal all; return what the same events take as v1 JSON."""
    log = await SqliteLog.open(directory, forget=frozenset())
    json_bytes = count = 0
    for batch in network.batches(events, 100):
        if count % RARE_EVERY == 0:
            batch.dids[0], batch.dids[1] = RARE_DID, RARE_DID
            batch.collections[2] = RARE_COLLECTION
        json_bytes += sum(len(V1.message(batch, index)) for index in range(len(batch)))
        await log.append(batch, CURSOR)
        count += len(batch)
        if count % BLOCK_EVENTS == 0:
            await log.maintain()
    await log.close()
    return json_bytes


async def replays(log: Log) -> list[Row]:
    """Read everything and make frames of it, for one reader and for ten that began at once."""
    one_s = await timed(replay(log))
    ten_s = await timed(together(log, 10))
    events = log.statistics().events
    return [
        ("unfiltered replay, one reader", events / one_s, "events/s", 350_000),
        ("unfiltered replay, ten readers together", 10 * events / ten_s, "events/s", 800_000),
    ]


async def together(log: Log, readers: int) -> None:
    """Let several readers replay everything at once."""
    turn = asyncio.Lock()
    await asyncio.gather(*(replay(log, EVERYTHING, turn) for _ in range(readers)))


async def replay(log: Log, wanted: Filter = EVERYTHING, turn: asyncio.Lock | None = None) -> None:
    """Read from the oldest event to the newest as a subscriber of the classic wire: frames, in slices.

    As in the hub, readers that share `turn` make one slice in each turn of the loop.
    """
    turn = turn or asyncio.Lock()
    position, stop = log.floor, log.tip + 1
    while (batch := await log.read(position, stop, wanted)) is not None:
        chosen = wanted.select(batch, batch.index(position), batch.index(stop))
        position = batch.last + 1
        await render(batch, chosen, turn)


async def render(batch: Batch, chosen: Sequence[int], turn: asyncio.Lock) -> None:
    """Make the bytes for the socket, a slice a turn."""
    for start in range(0, len(chosen), SLICE_EVENTS):
        some = chosen[start : start + SLICE_EVENTS]
        async with turn:
            if isinstance(some, range):
                b"".join(CLASSIC.frames(batch, some.stop)[some.start : some.stop])
            else:
                b"".join(CLASSIC.some_frames(batch, some))
            await asyncio.sleep(0)


async def sparse(log: Log, events: int) -> list[Row]:
    """Read the little that a filter wants of everything."""
    cases = (
        ("one DID, in a tenth of the blocks", Filter(dids=frozenset([RARE_DID])), 5e6),
        ("one DID that is absent", Filter(dids=frozenset([b"did:plc:absent"])), 20e6),
        ("one collection, in a tenth of the blocks", Filter(collections=frozenset([RARE_COLLECTION])), 5e6),
        ("one collection that is absent", Filter(collections=frozenset([b"com.example.absent"])), 20e6),
    )
    return [
        (f"scan for {name}", events / await timed(replay(log, wanted)), "events/s", target)
        for name, wanted, target in cases
    ]


async def live_delay(log: SqliteLog, network: Network) -> float:
    """Return the 99th percentile of what lies between an append and its frames, beside ten replays."""
    delays: list[float] = []
    turn = asyncio.Lock()
    readers = [asyncio.create_task(forever(log, turn)) for _ in range(10)]
    appended: dict[int, float] = {}

    async def deliver() -> None:
        position = log.tip + 1
        while True:
            await log.wait(position)
            batch = await log.read(position, log.tip + 1, EVERYTHING)
            assert batch is not None
            CLASSIC.frames(batch, len(batch))
            position = batch.last + 1
            delays.append(time.perf_counter() - appended[batch.last])

    live = asyncio.create_task(deliver())
    began = time.perf_counter()
    for number, batch in enumerate(network.batches(int(LIVE_S * 1000), 5)):
        due = began + number * 0.005
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        # From when it was due: an append that comes late because the loop was busy is late for its readers.
        appended[batch.last] = due
        await log.append(batch, CURSOR)
    for task in (live, *readers):
        task.cancel()
    await asyncio.gather(live, *readers, return_exceptions=True)
    return percentile(delays, 0.99)


async def forever(log: Log, turn: asyncio.Lock) -> None:
    """Replay again and again."""
    while True:
        await replay(log, EVERYTHING, turn)


async def stalls(directory: Path, network: Network) -> list[Row]:
    """Append 5,000 events a second, and watch how late the loop is with and without."""
    log = await SqliteLog.open(directory)
    batches = list(network.batches(int(5_000 * STALL_S), 50))
    idle = await lateness(asyncio.sleep(STALL_S / 2))
    took: list[float] = []

    async def append() -> None:
        began = time.perf_counter()
        for number, batch in enumerate(batches):
            await asyncio.sleep(max(0.0, began + number * 0.01 - time.perf_counter()))
            took.append(await timed(log.append(batch, CURSOR)))

    busy = await lateness(append())
    await log.close()
    return [
        ("loop late, idle, p99.9", percentile(idle, 0.999) * 1e3, "ms", None),
        ("loop late, sealing 5,000 events/s, p99", percentile(busy, 0.99) * 1e3, "ms", None),
        ("loop late, sealing 5,000 events/s, p99.9", percentile(busy, 0.999) * 1e3, "ms", None),
        ("append while sealing, p99", percentile(took, 0.99) * 1e3, "ms", None),
        ("append while sealing, longest", max(took) * 1e3, "ms", None),
    ]


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


async def opening(directory: Path) -> list[Row]:
    """Open a log ten times as large: the same blocks again and again, further on in time."""
    before = resident_bytes()
    multiply(directory / DATABASE)
    began = time.perf_counter()
    log = await SqliteLog.open(directory)
    opened_s = time.perf_counter() - began
    events = log.statistics().events
    grown = resident_bytes() - before
    await log.close()
    return [
        (f"opening {events:,} events", opened_s, "s", 1),
        ("memory that takes", grown / 1e6, "MB", None),
    ]


def multiply(path: Path) -> None:
    """Store every block again, further on in time; what is inside is not looked at when a log is opened."""
    with sqlite3.connect(path) as connection:
        first, last, events = connection.execute(
            "SELECT min(first_us), max(last_us), sum(events) FROM block"
        ).fetchone()
        connection.execute("DELETE FROM tail")
        for number in range(1, LARGE):
            shift = number * (last - first + 1)
            connection.execute(
                "INSERT INTO block SELECT last_us + ?, first_us + ?, events, collection_set, did_bits,"
                " accounts, times, kinds, dids, collections, rkeys, revs, cids, bodies FROM block"
                " WHERE last_us <= ?",
                (shift, shift, last),
            )
        end = last + (LARGE - 1) * (last - first + 1)
        connection.execute("UPDATE state SET tip_us = ?, events = ?", (end, events * LARGE))
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
