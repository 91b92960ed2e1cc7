"""`jetstream bench` against a real server under load."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Literal
from urllib.parse import urlsplit

import pytest
from tests.programs import jetstream, simulated_relay
from tests.unit.bench.streams import DICTIONARY

from jetstream.bench import mix
from jetstream.bench.compression import decompressor
from jetstream.bench.load import Load, RefusedError, Target, subscribers
from jetstream.bench.measure import Meter, table
from jetstream.bench.subscription import Readings
from jetstream.bench.transport import TRANSPORTS
from jetstream.cli.bench import Options, bench

TIMEOUT_S = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Target, int]]:
    """Run a server that reads a simulated network; give its address and process."""
    data = tmp_path_factory.mktemp("data")
    dictionary = data / "dictionary"
    dictionary.write_bytes(DICTIONARY)
    with (
        simulated_relay("--rate", "400", "--repos", "30", "--seed", "1") as upstream,
        jetstream(
            *("serve", "--upstream", upstream, "--data-dir", data),
            *("--listen", "127.0.0.1:0", "--log-format", "json", "--zstd-dictionary", dictionary),
            awaited="listening",
        ) as (process, facts),
    ):
        yield Target("127.0.0.1", urlsplit(facts["subscribe"]).port or 0), process.pid


@pytest.fixture
def load(server: tuple[Target, int]) -> Iterator[Load]:
    load = Load(server[0], Readings())
    yield load
    load.close()


@pytest.fixture
def compressed(server: tuple[Target, int]) -> Iterator[Load]:
    target = replace(server[0], query=(("compress", "true"), ("wire", "classic")))
    load = Load(target, Readings(decompress=decompressor(DICTIONARY)))
    yield load
    load.close()


def over_http(name: str, server: Target) -> Load:
    transport = TRANSPORTS[name]
    target = replace(server, path=transport.path, query=(("wire", "classic"),))
    return Load(target, Readings(transport=transport))


@pytest.fixture
def ndjson(server: tuple[Target, int]) -> Iterator[Load]:
    load = over_http("ndjson", server[0])
    yield load
    load.close()


@pytest.fixture
def sse(server: tuple[Target, int]) -> Iterator[Load]:
    load = over_http("sse", server[0])
    yield load
    load.close()


@pytest.mark.parametrize("kind", ["load", "compressed", "ndjson", "sse"])
def test_all_get_what_they_asked_for(
    kind: str, server: tuple[Target, int], request: pytest.FixtureRequest
) -> None:
    rng = Random(1)
    load: Load = request.getfixturevalue(kind)
    load.begin()
    load.run_until(lambda: len(load.truth.dids) >= 10, TIMEOUT_S)
    parts = mix.parse("unfiltered=2,dids:3=1,collections:4=1")
    connections = subscribers(
        mix.filters(parts, 60, load.truth.dids, rng), load.readings, rng, check=8, slow=3
    )
    meter = Meter(load, server[1], lambda _: None)
    figures = meter.measure(0.5, load.connect(connections, 0, TIMEOUT_S))

    assert load.readings.findings.examples == []
    assert (figures.subscribers, figures.accepted, figures.ends) == (60, 60, {})
    assert figures.messages_per_s > figures.events_per_s > 0
    assert 0 < figures.delay_ms[0] <= figures.delay_ms[1] <= figures.delay_ms[2]
    assert figures.server_rss_mib is not None
    assert dict(table(figures))["subscribers"] == "60"


def test_the_command_fetches_the_dictionary_of_the_server(server: tuple[Target, int], tmp_path: Path) -> None:
    url = f"ws://{server[0].host}:{server[0].port}"
    sizes = {}
    for compress in (False, True):
        report = tmp_path / "report.json"
        bench(url, Options(subscribers=5, warm_up=0.1, seconds=0.5, compress=compress, json=report))
        figures = json.loads(report.read_bytes())
        sizes[compress] = figures["bytes_per_s"] / figures["messages_per_s"]
    assert sizes[True] < sizes[False] / 2


def test_a_refusal_is_reported(load: Load) -> None:
    load.target = Target(load.target.host, load.target.port, "/nowhere")
    with pytest.raises(RefusedError, match=r"/nowhere: refused: 404"):
        load.begin()


def test_the_command_prints_a_table_and_writes_its_figures(
    server: tuple[Target, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(
        subscribers=20,
        warm_up=0.1,
        seconds=0.3,
        filter_mix="unfiltered,dids:2",
        learn=0.5,
        wire="v1",
        pid=server[1],
        json=tmp_path / "figures.json",
    )
    bench(f"127.0.0.1:{server[0].port}", options)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["url"] == f"ws://127.0.0.1:{server[0].port}/v1/subscribe"
    assert (figures["accepted"], figures["wrong"]) == (20, {})
    assert "delay, stamp to reader" in capsys.readouterr().out


@pytest.mark.parametrize("transport", ["ndjson", "sse"])
def test_the_command_reads_event_streams(
    transport: Literal["ndjson", "sse"], server: tuple[Target, int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(subscribers=5, warm_up=0.1, seconds=0.3, wire="v1", transport=transport)
    bench(f"127.0.0.1:{server[0].port}", options)
    assert "accepted                     5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("until", "words"),
    [
        ("reference", "interrupted before any subscriber was connected"),
        ("warm up", "interrupted before anything was measured: 3 of 3 connected"),
        ("measuring", "messages  "),
    ],
)
def test_an_interrupt_prints_what_was_measured_until_then(
    until: str,
    words: str,
    server: tuple[Target, int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signal comes when the load has reached a state; without it this would take an hour."""
    hour = 3600.0
    before = signal.getsignal(signal.SIGINT)
    turn = Load.turn

    def turn_and_interrupt(load: Load) -> None:
        turn(load)
        reached = {
            "reference": bool(load.reference.accepted),
            "warm up": len(load.connections) == 3 and all(one.accepted for one in load.connections),
            "measuring": load.readings.timed and load.readings.delays.count > 0,
        }
        if reached[until] and not load.interrupted:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Load, "turn", turn_and_interrupt)
    options = Options(
        subscribers=3,
        warm_up=hour if until == "warm up" else 0.1,
        seconds=hour,
        learn=hour,
        filter_mix="dids:2",
    )
    if until != "reference":
        options = replace(options, filter_mix="unfiltered")
    with pytest.raises(SystemExit) as ended:
        bench(f"127.0.0.1:{server[0].port}", options)
    assert ended.value.code == 130
    out = capsys.readouterr().out
    assert words in out
    assert ("interrupted after 0." in out) == (until == "measuring")
    assert signal.getsignal(signal.SIGINT) is before
