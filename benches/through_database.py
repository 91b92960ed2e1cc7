"""Events on their way through a database: relay, ingest, PostgreSQL, edge, and one reader of the edge.

python -m benches.through_database [--seconds S] [full steady]     (no name: both)

`full` sends as fast as the ingest reads. Its reader checks each event by its place in the stream, so that
none can be lost, or come twice. `steady` sends 500 events/s. Its reader measures the delay from the time at
which the relay was due to send. The database is one of its own, of Debian's binaries, with
`synchronous_commit = on`. The exit code is 1 when a limit was missed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final, Literal, NamedTuple
from urllib.request import urlopen

from benches import machine
from benches.database import SETTINGS, database_s
from benches.frames import recorded
from benches.helper import Helper, arrived, reading
from benches.limits import Limit, report
from benches.relay_process import RelayProcess, Sent
from benches.stand import Server, served, settle, started
from cyclopts import App, Parameter
from tests.foreign.postgresql.server import Server as Database
from tests.foreign.postgresql.server import running

from jetstream.cluster.postgres import PostgresMissing, find_binaries

TITLE: Final = "From a relay through an ingest, PostgreSQL and an edge to one reader"
SECONDS: Final = 60.0
RATE: Final = 500.0
REPOS: Final = 50_000
WARM_UP_S: Final = 5.0
AFTER_S: Final = 1.0  # for the last events, and for what must not come any more
STRETCH_S: Final = 10  # of which the slowest is told
_COMMITS: Final = "jetstream_commit_seconds_"  # how the metrics of appends begin
WHOLE: Final = (Limit("lost", 0), Limit("wrong", 0))
LIMITS: Final = {
    "full": (Limit("events_per_s", 20_000, least=True), *WHOLE),
    "steady": (Limit("relay_p50_ms", 15), Limit("relay_p99_ms", 60), *WHOLE),
}

Figures = dict[str, float]

app = App(name="through_database", help=TITLE)


class Chain(NamedTuple):
    """The processes that an event passes, but for the reader."""

    relay: RelayProcess
    ingest: Server
    database: Database
    edge: Server

    def totals(self) -> Figures:
        """Return the seconds of CPU of each but the relay, and the number and the seconds of all commits."""
        cpu_s = {"ingest": self.ingest.cpu_s(), "edge": self.edge.cpu_s()}
        return {**cpu_s, "database": database_s(self.database), **_commits(self.ingest)}


@contextmanager
def chain(programs: Path) -> Iterator[Chain]:
    """Start all, with an empty log. At the end stop all, and remove what they have stored."""
    with (
        TemporaryDirectory(prefix="jetstream-bench-") as name,
        running(programs, **SETTINGS) as database,
    ):
        relay, log = RelayProcess(recorded(), REPOS), ["--log", database.address]
        with (
            served([relay], Path(name) / "ingest", ["--role", "ingest", *log]) as ingest,
            started(None, Path(name) / "edge", ["--role", "edge", "--max-subscribers", "100", *log]) as edge,
        ):
            yield Chain(relay, ingest, database, edge)


def measure_full(programs: Path, seconds: float) -> Figures:
    """Send as fast as the ingest reads. Return events a second, from the first sent to the last read."""
    with (
        chain(programs) as parts,
        reading("benches.ring_reader", parts.edge.port, recorded(), REPOS) as reader,
    ):
        settle()
        before, read_s, began = parts.totals(), reader.ask()["cpu_s"], time.time()
        parts.relay.begin(seconds=seconds)
        counts = _counts(reader, seconds)
        sent = parts.relay.wait_sent()
        seen = arrived(reader, sent.events)
        used = _used(parts, before, sent)
        settle(AFTER_S)
        last = reader.ask()
    return {
        "events_per_s": seen["good"] / (seen["heard_at"] - began),
        "slowest_per_s": _slowest(counts),
        "behind_s": max(seen["heard_at"] - began - sent.seconds, 0.0),
        **_lost_and_wrong(last, sent.events),
        **used,
        "reader_us": (seen["cpu_s"] - read_s) / sent.events * 1e6,
    }


def measure_steady(programs: Path, seconds: float) -> Figures:
    """Send at a rate. Return the delays from the relay to the reader."""
    with (
        chain(programs) as parts,
        reading("benches.live_reader", parts.edge.port, "nobody") as reader,
    ):
        first = _sent(parts.relay, WARM_UP_S)
        reader.ask()
        before = parts.totals()
        sent = _sent(parts.relay, seconds)
        seen, used = reader.ask(), _used(parts, before, sent)
    return {
        "relay_p50_ms": seen["p50_ms"],
        "relay_p99_ms": seen["p99_ms"],
        "relay_max_ms": seen["max_ms"],
        "events_per_s": sent.events / sent.seconds,
        **_lost_and_wrong(seen, first.events + sent.events),
        **used,
    }


def _sent(relay: RelayProcess, seconds: float) -> Sent:
    """Let the relay send for some seconds; return what it sent, once it has arrived."""
    relay.begin(rate=RATE, seconds=seconds)
    sent = relay.wait_sent()
    settle(AFTER_S)
    return sent


def _counts(reader: Helper, seconds: float) -> list[int]:
    """Return how many events a reader has at the start of some seconds, and after each."""
    began, counts = time.monotonic(), [0]
    while len(counts) <= seconds:
        time.sleep(max(began + len(counts) - time.monotonic(), 0.0))
        counts.append(reader.ask()["good"])
    return counts


def _slowest(counts: list[int]) -> float:
    """Return the events a second of the slowest stretch."""
    stretch = min(STRETCH_S, len(counts) - 1)
    return min(after - before for before, after in zip(counts, counts[stretch:], strict=False)) / stretch


def _lost_and_wrong(seen: dict[str, float], sent: int) -> Figures:
    """Return how many events were lost, and how many were not to come, or not then."""
    more = seen["good"] - sent
    return {"lost": max(-more, 0), "wrong": seen["wrong"] + max(more, 0) + bool(seen["closed"])}


def _commits(ingest: Server) -> Figures:
    """Return how many appends an ingest has made, and how many seconds they took."""
    with urlopen(f"http://127.0.0.1:{ingest.port}/metrics") as response:
        lines = response.read().decode().splitlines()
    metrics = dict(line.rsplit(" ", 1) for line in lines if line.startswith(_COMMITS))
    return {name: float(metrics[_COMMITS + name]) for name in ("count", "sum")}


def _used(parts: Chain, before: Figures, sent: Sent) -> Figures:
    """Return the CPU time of each process for an event, in microseconds, and what commits were like."""
    spent = {name: value - before[name] for name, value in parts.totals().items()} | {"relay": sent.cpu_s}
    commits, commits_s = spent.pop("count"), spent.pop("sum")
    cpu_us = {f"{name}_us": cpu_s / sent.events * 1e6 for name, cpu_s in spent.items()}
    return {**cpu_us, "commit_events": sent.events / commits, "commit_ms": commits_s / commits * 1e3}


@app.default
def main(
    *names: Literal["full", "steady"],
    seconds: Annotated[float, Parameter(help="How long to send, each.")] = SECONDS,
) -> None:
    """Measure by name, or all. The load and the speed of the machine are of the time before each."""
    try:
        programs = find_binaries()
    except PostgresMissing as error:
        sys.exit(str(error))
    facts, held = machine.describe(), True
    print(f"{facts['processor']}, {facts['memory']}, Python {facts['Python']}, commit {facts['commit']}")
    for name in names or LIMITS:
        load, decode_us = os.getloadavg()[0], machine.decode_us()
        print(f"{name}: load {load:.1f}, decoding a frame's CBOR takes {decode_us:.1f} µs", flush=True)
        measure = measure_full if name == "full" else measure_steady
        held &= report(LIMITS[name], measure(programs, seconds))
    sys.exit(not held)


if __name__ == "__main__":
    app()
