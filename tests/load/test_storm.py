"""A relay, a server and a load with a storm, all real: what the fan-out benchmarks are made of."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

from benches.frames import kept, simulated
from benches.relay_delays import RelayReadings
from benches.relay_process import RelayProcess
from benches.ring import accounts
from benches.stand import Server
from benches.storm import CUT, StormLoad, raise_storm

from jetstream.bench import mix
from jetstream.bench.load import Target, subscribers
from jetstream.bench.measure import Meter
from jetstream.simulator.world import Population

REPOS = 30
TIMEOUT_S = 30
SMALL = Population(repos=20, records=5)


def test_all_get_what_they_asked_for_and_after_a_storm_still_do(tmp_path: Path) -> None:
    relay = RelayProcess(kept(tmp_path / "frames.bin.zst", islice(simulated(SMALL, 500), 2_000)), REPOS)
    server = Server(relay.url, tmp_path / "data", [])
    relay.wait_connected()
    readings = RelayReadings()
    load = StormLoad(Target("127.0.0.1", server.port), readings)
    try:
        _run(relay, server, load, readings)
    finally:
        load.close()
        server.stop()
        relay.stop()


def _run(relay: RelayProcess, server: Server, load: StormLoad, readings: RelayReadings) -> None:
    rng = Random(1)
    wanted = mix.filters(mix.parse("unfiltered=2,dids:3=1,collections:4=1"), 60, accounts(REPOS), rng)
    steady = subscribers(wanted[:30], readings, rng, check=8, slow=3)
    victims = subscribers(wanted[30:], readings, rng, check=8)
    meter = Meter(load, server.pid, lambda _: None)
    load.begin()
    accepted_s = load.connect(steady + victims, 0, TIMEOUT_S)
    relay.begin(rate=800, events=1_500, seconds=TIMEOUT_S)  # last: events come while it is measured
    load.run_until(lambda: load.reference.subscription.events >= 200, TIMEOUT_S)
    figures = meter.measure(0.5, accepted_s)
    storm = raise_storm(load, victims, 0.5, rng)
    sent = relay.wait_sent()
    load.run_until(lambda: load.reference.subscription.events >= sent.events, TIMEOUT_S)
    meter.check()

    assert readings.findings.examples == []
    assert load.reference.subscription.events == sent.events
    assert (figures.subscribers, figures.accepted, figures.ends) == (60, 60, {})
    assert figures.messages_per_s > figures.events_per_s > 0
    assert readings.relay_delays.percentile_us(50) > readings.delays.percentile_us(50) > 0
    assert (storm.returned, storm.served) == (30, 30)
    assert load.totals.ends == {CUT: 30}
