"""Figures of a load over a stretch of time: what was delivered, how late, and what it cost the server."""

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
PING_EVERY_S: Final = 15.0  # servers ping less often than that

Say = Callable[[str], None]


@dataclass(slots=True)
class Figures:
    """What one measured stretch came to.

    Delays run from the server's stamp to the reader, `relay_ms` from the moment the relay was due to send;
    each is (p50, p99, max) in milliseconds. `lag_ms` is how far behind the slowest counted connection that
    is not slow on purpose was at the end. Cores and memory are None where no process was named.
    """

    subscribers: int
    accepted: int
    last_accepted_s: float
    seconds: float
    events_per_s: float
    messages_per_s: float
    bytes_per_s: float
    delay_ms: tuple[float, float, float]
    relay_ms: tuple[float, float, float]
    lag_ms: float
    load_cores: float
    load_waited: float  # seconds a second, for a core that others had; as the server's
    server_cores: float | None = None
    server_waited: float | None = None
    server_rss_mib: float | None = None
    ends: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)


class Meter:
    """Takes figures of a load; `pid` is the server's, where it runs on this machine."""

    def __init__(self, load: Load, pid: int | None, say: Say) -> None:
        self._load = load
        self._pid = pid
        self._say = say
        self._began = time.monotonic()
        self._rss = 0
        self._progress_at = self._began
        self._progress_size = 0
        self._progress_cpu_s = self._server_cpu_s()
        load.on_tick = self._tick

    def measure(self, seconds: float, last_accepted_s: float) -> Figures:
        """Read for so long, and hold what was got against the truth."""
        load, readings = self._load, self._load.readings
        readings.delays, readings.relay_delays, readings.timed = Delays(), Delays(), True
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
        self._look_at_memory()
        readings.timed = False
        stop_us = load.truth.everything.last_us + 1
        gained: Counter[Wanted] = Counter()
        for one in load.connections:
            gained[one.subscription.wanted] += one.subscription.size - sizes.get(id(one), 0)
        self.judge()
        amounts = {wanted: load.truth.amount(wanted, first_us, stop_us) for wanted in gained}
        # What was read is bytes; how long a filter's messages are on average, the truth knows.
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
            delay_ms=_percentiles(readings.delays),
            relay_ms=_percentiles(readings.relay_delays),
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

    def judge(self) -> None:
        """Hold what every connection has got so far against the truth."""
        self._load.judge(int((time.monotonic() - self._began) / PING_EVERY_S) + 1)

    def _look_at_memory(self) -> None:
        if self._pid is not None:
            self._rss = max(self._rss, process.memory_bytes(self._pid))

    def _server_cpu_s(self) -> float:
        return 0.0 if self._pid is None else process.cpu_s(self._pid)

    def _server_waited_s(self) -> float:
        return 0.0 if self._pid is None else process.waited_s(self._pid)

    def _tick(self) -> None:
        """Say now and then how it goes."""
        now = time.monotonic()
        passed = now - self._progress_at
        if passed < PROGRESS_EVERY_S:
            return
        totals, delays = self._load.totals, self._load.readings.delays
        size_per_s = (totals.size - self._progress_size) / passed
        words = f"{now - self._began:5.0f} s  {totals.open:6,} open  {size_per_s / 1e6:8,.1f} MB/s"
        if delays.count:
            p50, p99, _ = _percentiles(delays)
            words += f"  p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        if self._pid is not None:
            cpu_s = self._server_cpu_s()
            self._look_at_memory()
            words += f"  server {(cpu_s - self._progress_cpu_s) / passed:.2f} cores"
            words += f", {self._rss / 2**20:,.0f} MiB"
            self._progress_cpu_s = cpu_s
        self._say(words)
        self._progress_at, self._progress_size = now, totals.size


def _percentiles(delays: Delays) -> tuple[float, float, float]:
    return (delays.percentile_us(50) / 1000, delays.percentile_us(99) / 1000, delays.max_us / 1000)


def table(figures: Figures) -> list[tuple[str, str]]:
    """Write figures as rows of a name and a value."""
    rows = [
        ("subscribers", f"{figures.subscribers:,}"),
        ("accepted", f"{figures.accepted:,}, the last after {figures.last_accepted_s:.2f} s"),
        ("measured", f"{figures.seconds:.1f} s at {figures.events_per_s:,.0f} events/s"),
        ("messages", f"{figures.messages_per_s:,.0f} /s"),
        ("bytes", f"{figures.bytes_per_s / 1e6:,.1f} MB/s"),
        ("delay, stamp to reader", _spread(figures.delay_ms)),
    ]
    if figures.relay_ms[2]:
        rows.append(("delay, relay to reader", _spread(figures.relay_ms)))
    rows.append(("furthest behind at the end", f"{figures.lag_ms:,.1f} ms"))
    if figures.server_cores is not None:
        words = f"{figures.server_cores:.2f} cores, {figures.server_rss_mib:,.0f} MiB"
        rows.append(("server", f"{words}, waited for a core {figures.server_waited:.0%} of the time"))
    waited = f"waited for a core {figures.load_waited:.0%} of the time"
    rows.append(("load generator", f"{figures.load_cores:.2f} cores, {waited}"))
    rows += [(f"ended: {why}", f"{count:,}") for why, count in sorted(figures.ends.items())]
    rows += [(f"WRONG: {kind}", f"{count:,}") for kind, count in sorted(figures.wrong.items())]
    return rows


def _spread(ms: tuple[float, float, float]) -> str:
    return f"p50 {ms[0]:,.2f} ms, p99 {ms[1]:,.2f} ms, max {ms[2]:,.1f} ms"
