"""Many subscribers: each scenario starts a relay, a server and a load, and compares the figures with limits.

python -m benches.fanout [--seconds S] [fan5000 lat800 …]     (no name: all of them)
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from random import Random
from typing import Annotated, Final

from benches.limits import Limit, compare
from benches.relay_delays import RelayReadings
from benches.relay_process import RelayProcess
from benches.ring import accounts
from benches.stand import Server, stand
from benches.storm import CUT, WATCH_S, StormLoad, raise_storm
from cyclopts import App, Parameter

from jetstream.bench import mix
from jetstream.bench.compression import decompressor
from jetstream.bench.load import Connection, Load, Target, subscribers
from jetstream.bench.measure import Figures, Meter, percentiles_ms, spread, table
from jetstream.bench.transport import TRANSPORTS
from jetstream.dictionary.own import OWN

REPOS: Final = 50_000
WARM_UP_S: Final = (
    10.0  # until then the kernel allocates memory for thousands of sockets, and writes are slower
)
AFTER_STORM_S: Final = 3.0
CONNECT_TIMEOUT_S: Final = 60.0
CONNECT_RATE: Final = 1_000
CATCH_UP_MAX_S: Final = 15.0
CAUGHT_UP_S: Final = 0.1
STORM_AGE_S: Final = 2.0
SLOW_SHARE: Final = 0.1  # of the stream, that a slow reader reads

app = App(name="fanout", help="Many subscribers of one server.")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One benchmark with many subscribers."""

    title: str
    subscribers: int
    rate: float  # events a second; 0: as fast as the server reads
    limits: tuple[Limit, ...]
    filter_mix: str = "unfiltered"
    slow: int = 0  # subscribers that read only a tenth of the stream
    storm: int = 0  # subscribers that are cut and come back
    compressed: bool = False  # whether all of them ask for compressed messages
    transport: str = "websocket"  # how they subscribe; others are compared with it
    checked: int = 16  # subscribers of each kind of filter that are checked message by message, at least
    seconds: float = 60  # to measure


SCENARIOS: Final = {
    "fan5000": Scenario(
        "5,000 unfiltered subscribers at 1,000 events/s",
        5_000,
        1_000,
        (
            Limit("messages_per_s", 4_900_000, least=True),
            Limit("relay_p99_ms", 250),
            Limit("server_cores", 1),
            Limit("last_accepted_s", 10),
        ),
        seconds=30,
    ),
    "sse5000": Scenario(
        "The same with Server-Sent Events, and the CPU of a message as a multiple of that over WebSockets",
        5_000,
        1_000,
        (Limit("messages_per_s", 4_900_000, least=True), Limit("cpu_ratio", 1.2), Limit("relay_p99_ms", 250)),
        transport="sse",
        seconds=30,
    ),
    "lat800": Scenario(
        "Latency of 800 unfiltered subscribers at 420 events/s",
        800,
        420,
        (Limit("relay_p50_ms", 6), Limit("relay_p99_ms", 14), Limit("server_cores", 0.8)),
    ),
    "lat1000": Scenario(
        "Latency of 1,000 unfiltered subscribers at 2,000 events/s",
        1_000,
        2_000,
        (Limit("relay_p50_ms", 8), Limit("relay_p99_ms", 24), Limit("server_cores", 0.9)),
    ),
    "zstd1000": Scenario(
        "The same with 1,000 subscribers that all ask for compressed messages, after as many plain ones",
        1_000,
        2_000,
        (Limit("relay_p50_ms", 8), Limit("relay_p99_ms", 24), Limit("cores_ratio", 1.3)),
        compressed=True,
    ),
    "lat10": Scenario(
        "Latency of 10 unfiltered subscribers at 500 events/s", 10, 500, (Limit("relay_p50_ms", 1),)
    ),
    "dids10000": Scenario(
        "10,000 subscribers with 20 DIDs each, none equal, out of 50,000, at 2,000 events/s",
        10_000,
        2_000,
        (Limit("server_cores", 0.5), Limit("relay_p99_ms", 20)),
        filter_mix="dids:20",
        seconds=30,
    ),
    "collections2000": Scenario(
        "2,000 subscribers over 50 collection filters at 1,000 events/s",
        2_000,
        1_000,
        (Limit("server_cores", 0.8),),
        filter_mix="collections:50",
        seconds=30,
    ),
    "slow100": Scenario(
        "100 subscribers that read a tenth, among 1,000 that keep up, at 1,000 events/s",
        1_100,
        1_000,
        (Limit("p99_ratio", 1.5), Limit("cut", 0), Limit("rss_mib", 300)),
        slow=100,
        seconds=120,
    ),
    "storm5000": Scenario(
        "5,000 subscribers come back at once with cursors up to 2 s old, 100 stay, at 500 events/s",
        5_100,
        500,
        (Limit("last_served_s", 10), Limit("lag_ms_after", 250), Limit("p99_ratio", 2)),
        storm=5_000,
        seconds=10,
    ),
    "fullspeed100": Scenario(
        "100 unfiltered subscribers and an upstream without a limit",
        100,
        0,
        (Limit("events_per_s", 40_000, least=True), Limit("messages_per_s", 4_000_000, least=True)),
        checked=2,
        seconds=20,
    ),
}


def run(name: str, seconds: float | None = None) -> dict[str, float]:
    """Run a scenario once, measure for `seconds` or as long as it says, and print its figures."""
    scenario = SCENARIOS[name]
    scenario = scenario if seconds is None else replace(scenario, seconds=seconds)
    print(f"{name}: {scenario.title}", flush=True)
    figures = _compared(scenario)
    compare(scenario.limits, figures)
    return figures


def _compared(scenario: Scenario) -> dict[str, float]:
    """Measure a scenario and, where it is compared with another, that one too."""
    if scenario.slow:
        return _with_and_without_slow(scenario)
    if scenario.transport != "websocket":
        return _with_and_without_http(scenario)
    if scenario.compressed:
        return _plain_and_compressed(scenario)
    return _measure(scenario)


def _with_and_without_http(scenario: Scenario) -> dict[str, float]:
    """Measure WebSockets, then event streams."""
    sockets = _measure(replace(scenario, transport="websocket"))
    figures = _measure(scenario)
    ratio = _cpu_us(figures) / _cpu_us(sockets)
    return figures | {"cpu_ratio": ratio, "server_cores_websocket": sockets["server_cores"]}


def _cpu_us(figures: dict[str, float]) -> float:
    """Return the CPU time of a message, in microseconds."""
    return figures["server_cores"] / figures["messages_per_s"] * 1e6


def _with_and_without_slow(scenario: Scenario) -> dict[str, float]:
    """Measure without slow readers, then with them."""
    without = _measure(replace(scenario, subscribers=scenario.subscribers - scenario.slow, slow=0))
    figures = _measure(scenario)
    p99_ms = without["relay_p99_ms"]
    return figures | {"p99_ratio": figures["relay_p99_ms"] / p99_ms, "relay_p99_ms_without": p99_ms}


def _plain_and_compressed(scenario: Scenario) -> dict[str, float]:
    """Measure plain messages, then compressed ones."""
    plain = _measure(replace(scenario, compressed=False))
    figures = _measure(scenario)
    ratios = {"cores_ratio": figures["server_cores"] / plain["server_cores"]}
    ratios["bytes_ratio"] = plain["bytes_per_s"] / figures["bytes_per_s"]
    return figures | ratios | {f"{name}_plain": plain[name] for name in ("server_cores", "relay_p99_ms")}


def _measure(scenario: Scenario) -> dict[str, float]:
    readings = RelayReadings(transport=TRANSPORTS[scenario.transport])
    path, query = readings.transport.path or "/subscribe", [("wire", "classic")]
    if scenario.compressed:
        query.append(("zstdDictionary", str(OWN.dictionary_id)))
        readings.decompress = decompressor(OWN.data)
    with stand(repos=REPOS) as (relay, server):
        kind = StormLoad if scenario.storm else Load
        load = kind(Target("127.0.0.1", server.port, path, tuple(query)), readings, slow_share=SLOW_SHARE)
        try:
            return _under_load(scenario, relay, server, load, readings)
        finally:
            load.close()


def _under_load(
    scenario: Scenario, relay: RelayProcess, server: Server, load: Load, readings: RelayReadings
) -> dict[str, float]:
    rng = Random(1)
    wanted = mix.filters(mix.parse(scenario.filter_mix), scenario.subscribers, accounts(REPOS), rng)
    steady = scenario.subscribers - scenario.storm
    connections = subscribers(wanted[:steady], readings, rng, check=scenario.checked, slow=scenario.slow)
    victims = subscribers(wanted[steady:], readings, rng, check=scenario.checked, name="victim")
    meter = Meter(load, server.pid, lambda line: print(f"  {line}", flush=True))
    load.begin()
    relay.begin(rate=scenario.rate)
    last_accepted_s = load.connect(connections + victims, CONNECT_RATE, CONNECT_TIMEOUT_S)
    caught_up_s = _catch_up(load) if scenario.rate else 0.0
    load.run(WARM_UP_S)
    figures = meter.measure(scenario.seconds, last_accepted_s)
    flat = _flat(figures, readings) | {"caught_up_s": caught_up_s}
    if isinstance(load, StormLoad):
        flat |= _storm(load, readings, meter, victims, rng) | {"relay_p99_ms_before": flat["relay_p99_ms"]}
        flat["p99_ratio"] = flat["relay_p99_ms"] / flat["relay_p99_ms_before"]
    return flat


def _catch_up(load: Load) -> float:
    """Wait until the server has worked off what arrived while all connected. Return the seconds that took."""
    began = time.monotonic()
    newest = load.truth.everything
    load.run_until(lambda: time.time() - newest.last_us / 1e6 < CAUGHT_UP_S, CATCH_UP_MAX_S)
    return time.monotonic() - began


def _storm(
    load: StormLoad, readings: RelayReadings, meter: Meter, victims: list[Connection], rng: Random
) -> dict[str, float]:
    """Let the victims come back at once, and measure the delays of the others meanwhile."""
    readings.reset_delays()
    readings.timed = True
    storm = raise_storm(load, victims, STORM_AGE_S, rng)
    p99_ms = readings.relay_delays.percentile_us(99) / 1000
    load.run(WATCH_S - storm.seconds)
    after = _flat(meter.measure(AFTER_STORM_S, 0), readings)
    return {
        "relay_p99_ms": p99_ms,
        "relay_p99_ms_after": after["relay_p99_ms"],
        "lag_ms_after": after["lag_ms"],
        "last_served_s": storm.last_served_s if storm.served == storm.returned else float("inf"),
        "wrong": after["wrong"],
        "rss_mib": after["rss_mib"],
    }


def _flat(figures: Figures, readings: RelayReadings) -> dict[str, float]:
    """Print figures. Return those that are kept, by name."""
    relay_ms = percentiles_ms(readings.relay_delays)
    for row, value in [*table(figures), ("delay, relay to reader", spread(relay_ms))]:
        print(f"    {row:<28} {value}", flush=True)
    for example in figures.examples:
        print(f"    {example}")
    assert figures.server_cores is not None
    assert figures.server_rss_mib is not None
    assert figures.server_waited is not None
    return {
        "subscribers": figures.subscribers,
        "accepted": figures.accepted,
        "last_accepted_s": figures.last_accepted_s,
        "events_per_s": figures.events_per_s,
        "messages_per_s": figures.messages_per_s,
        "bytes_per_s": figures.bytes_per_s,
        "p50_ms": figures.delay_ms[0],
        "p99_ms": figures.delay_ms[1],
        "max_ms": figures.delay_ms[2],
        "relay_p50_ms": relay_ms[0],
        "relay_p99_ms": relay_ms[1],
        "lag_ms": figures.lag_ms,
        "server_cores": figures.server_cores,
        "server_waited": figures.server_waited,
        "rss_mib": figures.server_rss_mib,
        "load_cores": figures.load_cores,
        "load_waited": figures.load_waited,
        "cut": sum(count for why, count in figures.ends.items() if why != CUT),
        "wrong": sum(figures.wrong.values()),
    }


@app.default
def main(
    *names: str,
    seconds: Annotated[float | None, Parameter(help="How long to measure; else each its own.")] = None,
) -> None:
    """Run scenarios by name, or all."""
    for name in names or SCENARIOS:
        run(name, seconds)


if __name__ == "__main__":
    sys.exit(app())
