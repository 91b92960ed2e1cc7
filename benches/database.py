"""What edges cost a PostgreSQL database: its CPU time while one process appends and others follow.

python -m benches.database [--edges 0,25,50] [--rate 500] [--batch 20] [--seconds 10]

The database is one of its own, of Debian's binaries, with `synchronous_commit = on`. All edges are in one
process, each with connections of its own; nobody reads what is older. From the difference between two numbers
of edges follows what one costs, and how many a core carries.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import uvloop
from benches.edges import cpu_s
from cyclopts import App, Parameter
from tests.foreign.postgresql.engine import Leading, PostgresEngine, new_engine
from tests.foreign.postgresql.server import Server, running

from jetstream.cluster.postgres import PostgresMissing, find_binaries
from jetstream.eventlog import Changes, SourceCursor
from jetstream.eventlog.postgresql.store import PostgresLog
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, Event

TITLE: Final = "CPU time of a database, in % of a core, with so many edges that follow it"
SETTINGS: Final = {
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "max_connections": "400",
}
EVENTS: Final = 10_000  # that are appended in turn

app = App(name="database", help=TITLE)


@app.default
def main(
    *,
    edges: Annotated[str, Parameter(help="Numbers of edges, with commas between them.")] = "0,25,50",
    rate: Annotated[float, Parameter(help="Events a second.")] = 500.0,
    batch: Annotated[int, Parameter(help="Events of an append.")] = 20,
    seconds: Annotated[float, Parameter(help="To measure.")] = 10.0,
) -> dict[str, float]:
    """Run all. Return percents of a core by the number of edges, and how many edges a core carries."""
    try:
        programs = find_binaries()
    except PostgresMissing as error:
        sys.exit(str(error))
    dice = random.Random(1)
    events = [like(dice) for _ in range(EVENTS)]
    figures: dict[str, float] = {}
    counts = [int(count) for count in edges.split(",")]
    with running(programs, **SETTINGS) as server:
        for count in counts:
            used, done = uvloop.run(measure(server, count, events, rate, batch, seconds))
            figures[f"database_{count}"] = used * 100
            print(f"edges {count}: database {used * 100:.2f} % of a core, {done:.0f} commits/s", flush=True)
    fewest, most = min(counts), max(counts)
    if most > fewest:
        each = (figures[f"database_{most}"] - figures[f"database_{fewest}"]) / (most - fewest)
        figures["edge"], figures["edges_a_core"] = each, 100 / each
        print(f"an edge: {each:.3f} %, {100 / each:.0f} edges a core", flush=True)
    return figures


def like(dice: random.Random) -> Event:
    """Return an event whose bytes are as random as those of a real one."""
    did, subject = (b"did:plc:%024x" % dice.getrandbits(96) for _ in range(2))
    key, cid = b"3l%011x" % dice.getrandbits(44), b"bafyrei%052x" % dice.getrandbits(208)
    body = b'{"$type":"app.bsky.feed.like","createdAt":"2026-01-01T00:00:00.000Z","subject":{"cid":"%b","uri":"at://%b"}}'
    return Event(CREATE, did, b"app.bsky.feed.like", key, key, cid, body % (cid, subject))


async def measure(
    server: Server, edges: int, events: list[Event], rate: float, batch: int, seconds: float
) -> tuple[float, float]:
    """Return the share of a core that a database takes while edges follow it, and its commits a second."""
    engine = await new_engine(server.address, f"edges_{edges}_{time.monotonic_ns()}")
    log = await engine.open()
    try:
        with following(engine.address, edges):
            await append(log, events, rate, batch, 1.0)
            looks, before, began = await commits(engine), database_s(server), time.monotonic()
            await append(log, events, rate, batch, seconds)
            used, passed_s = database_s(server) - before, time.monotonic() - began
            return used / passed_s, (await commits(engine) - looks) / passed_s
    finally:
        await log.close()


async def append(log: Leading, events: list[Event], rate: float, batch: int, seconds: float) -> None:
    """Append batches at a rate, for some seconds."""
    began, sent = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        now = max(time.time_ns() // 1_000, log.tip + 1)
        some = [events[(sent + i) % len(events)] for i in range(batch)]
        await log.append(Batch.of(some, range(now, now + batch)), Changes({"relay": SourceCursor(now)}))
        sent += batch
        await asyncio.sleep(began + sent / rate - time.monotonic())


async def commits(engine: PostgresEngine) -> int:
    """Return how many transactions the database has ended: each look of an edge is one."""
    await asyncio.sleep(1.5)  # until sessions have told
    ((count,),) = await engine.execute("SELECT sum(xact_commit)::bigint FROM pg_stat_database")
    return int(count)


def database_s(server: Server) -> float:
    """Return the seconds of CPU of all processes of a server, and of those that have ended."""
    pid = server.pid
    assert pid is not None
    return ended_s(pid) + sum(cpu_s(each) for each in [pid, *children(pid)])


def ended_s(pid: int) -> float:
    """Return the seconds of CPU of the child processes of a process that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


@contextmanager
def following(address: str, edges: int) -> Iterator[None]:
    """Let so many edges follow a log, in a process of their own."""
    if not edges:
        yield
        return
    command = [sys.executable, "-m", "benches.database", "follow", address, str(edges)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


@app.command
def follow(address: str, edges: int) -> None:
    """Follow a log with so many edges, until standard input ends."""
    uvloop.run(_follow(address, edges))


async def _follow(address: str, edges: int) -> None:
    logs = [await PostgresLog.open(address) for _ in range(edges)]
    print("ready", flush=True)
    await asyncio.to_thread(os.read, sys.stdin.fileno(), 1)
    for log in logs:
        await log.close()


if __name__ == "__main__":
    app()
