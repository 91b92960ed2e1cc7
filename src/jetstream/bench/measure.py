"""The figures of a load over an interval: what was delivered, with which delay, and at which cost."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from jetstream.bench import process
from jetstream.bench.delays import Delays
from jetstream.bench.load import Load
from jetstream.bench.mix import Wanted

PROGRESS_EVERY_S: Final = 2.0
PING_EVERY_S: Final = 15.0  # servers ping less often

Print = Callable[[str], None]


@dataclass(slots=True)
class Figures:
    """The figures of one interval. Those of the server are None if its process is not known."""

    subscribers: int
    accepted: int
    last_accepted_s: float  # from the first connection to the last acceptance
    seconds: float  # the length of the interval
    events_per_s: float  # received by the reference connection
    messages_per_s: float  # received by all subscribers
    bytes_per_s: float
    delay_ms: tuple[float, float, float]  # from `time_us` to the reader: p50, p99, maximum
    lag_ms: float  # how far behind the slowest counted connection was at the end, without slow readers
    load_cores: float  # CPU seconds a second of this process
    load_waited: float  # seconds a second for which it was runnable but had no core
    server_cores: float | None = None
    server_waited: float | None = None
    server_rss_mib: float | None = None  # the highest value
    ends: dict[str, int] = field(default_factory=dict)  # connections by why they ended
    wrong: dict[str, int] = field(default_factory=dict)  # findings by kind
    examples: list[str] = field(default_factory=list)  # findings as sentences


class Meter:
    """Measures a load, and prints its progress. `pid` is the server's process, if it runs on this machine."""

    def __init__(self, load: Load, pid: int | None, print_line: Print) -> None:
        self._load = load
        self._pid = pid
        self._print = print_line
        self._began = time.monotonic()
        self._rss = 0  # the server's highest resident memory in this interval, bytes
        # Time, bytes received and the server's CPU time at the last progress line.
        self._progress_at = self._began
        self._progress_size = 0
        self._progress_cpu_s = self._server_cpu_s()
        load.on_tick = self._tick

    def measure(self, seconds: float, last_accepted_s: float) -> Figures:
        """Read for a number of seconds, then check everything that was received. Return the figures."""
        load, readings = self._load, self._load.readings
        readings.reset_delays()
        readings.timed = True
        self._rss = 0
        own = os.getpid()
        began, load_cpu_s, load_waited_s = time.monotonic(), time.process_time(), process.waited_s(own)
        server_cpu_s, server_waited_s = self._server_cpu_s(), self._server_waited_s()
        first_us = load.truth.everything.last_us + 1
        sizes = {id(one): one.subscription.size for one in load.connections}
        load.run(seconds)
        took_s = time.monotonic() - began
        load_cpu_s, load_waited_s = time.process_time() - load_cpu_s, process.waited_s(own) - load_waited_s
        server_cpu_s = self._server_cpu_s() - server_cpu_s
        server_waited_s = self._server_waited_s() - server_waited_s
        self._read_memory()
        readings.timed = False
        stop_us = load.truth.everything.last_us + 1
        gained: Counter[Wanted] = Counter()
        for one in load.connections:
            gained[one.subscription.wanted] += one.subscription.size - sizes.get(id(one), 0)
        self.check()
        amounts = {wanted: load.truth.amount(wanted, first_us, stop_us) for wanted in gained}
        # Only bytes were counted; the truth knows the mean size of the messages of a filter.
        messages = sum(
            gained[wanted] * amount.events / amount.size for wanted, amount in amounts.items() if amount.size
        )
        local = self._pid is not None
        return Figures(
            subscribers=len(load.connections),
            accepted=sum(1 for one in load.connections if one.accepted),
            last_accepted_s=last_accepted_s,
            seconds=took_s,
            events_per_s=load.truth.everything.amount(first_us, stop_us).events / took_s,
            messages_per_s=messages / took_s,
            bytes_per_s=gained.total() / took_s,
            delay_ms=percentiles_ms(readings.delays),
            lag_ms=load.lag_ms(),
            load_cores=load_cpu_s / took_s,
            load_waited=load_waited_s / took_s,
            server_cores=server_cpu_s / took_s if local else None,
            server_waited=server_waited_s / took_s if local else None,
            server_rss_mib=self._rss / 2**20 if local else None,
            ends=dict(load.totals.ends),
            wrong=dict(readings.findings.counts),
            examples=readings.findings.examples,
        )

    def check(self) -> None:
        """Compare what every connection has received so far with the truth."""
        self._load.check(int((time.monotonic() - self._began) / PING_EVERY_S) + 1)

    def _read_memory(self) -> None:
        if self._pid is not None:
            self._rss = max(self._rss, process.memory_bytes(self._pid))

    def _server_cpu_s(self) -> float:
        return 0.0 if self._pid is None else process.cpu_s(self._pid)

    def _server_waited_s(self) -> float:
        return 0.0 if self._pid is None else process.waited_s(self._pid)

    def _tick(self) -> None:
        """Print a line of progress if one is due."""
        now = time.monotonic()
        passed = now - self._progress_at
        if passed < PROGRESS_EVERY_S:
            return
        totals, delays = self._load.totals, self._load.readings.delays
        size_per_s = (totals.size - self._progress_size) / passed
        words = f"{now - self._began:5.0f} s  {totals.open:6,} open  {size_per_s / 1e6:8,.1f} MB/s"
        if delays.count:
            p50, p99, _ = percentiles_ms(delays)
            words += f"  p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        if self._pid is not None:
            cpu_s = self._server_cpu_s()
            self._read_memory()
            words += f"  server {(cpu_s - self._progress_cpu_s) / passed:.2f} cores"
            words += f", {self._rss / 2**20:,.0f} MiB"
            self._progress_cpu_s = cpu_s
        self._print(words)
        self._progress_at, self._progress_size = now, totals.size


def percentiles_ms(delays: Delays) -> tuple[float, float, float]:
    """Return p50, p99 and the maximum in milliseconds."""
    return (delays.percentile_us(50) / 1000, delays.percentile_us(99) / 1000, delays.max_us / 1000)


def table(figures: Figures) -> list[tuple[str, str]]:
    """Return figures as rows of a name and a value."""
    rows = [
        ("subscribers", f"{figures.subscribers:,}"),
        ("accepted", f"{figures.accepted:,}, the last after {figures.last_accepted_s:.2f} s"),
        ("measured", f"{figures.seconds:.1f} s at {figures.events_per_s:,.0f} events/s"),
        ("messages", f"{figures.messages_per_s:,.0f} /s"),
        ("bytes", f"{figures.bytes_per_s / 1e6:,.1f} MB/s"),
        ("delay, stamp to reader", spread(figures.delay_ms)),
        ("furthest behind at the end", f"{figures.lag_ms:,.1f} ms"),
    ]
    if figures.server_cores is not None:
        words = f"{figures.server_cores:.2f} cores, {figures.server_rss_mib:,.0f} MiB"
        rows.append(("server", f"{words}, waited for a core {figures.server_waited:.0%} of the time"))
    waited = f"waited for a core {figures.load_waited:.0%} of the time"
    rows.append(("load generator", f"{figures.load_cores:.2f} cores, {waited}"))
    rows += [(f"ended: {why}", f"{count:,}") for why, count in sorted(figures.ends.items())]
    rows += [(f"WRONG: {kind}", f"{count:,}") for kind, count in sorted(figures.wrong.items())]
    return rows


def spread(ms: tuple[float, float, float]) -> str:
    """Return p50, p99 and the maximum as text."""
    return f"p50 {ms[0]:,.2f} ms, p99 {ms[1]:,.2f} ms, max {ms[2]:,.1f} ms"
