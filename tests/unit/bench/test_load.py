"""A real server between a relay and a load, and small servers that do what no server should."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from threading import Thread
from urllib.parse import urlsplit

import pytest
from tests.unit.bench.streams import event
from websockets.sync.server import ServerConnection, serve

from jetstream.bench import mix
from jetstream.bench.feed import Feed
from jetstream.bench.load import Load, RefusedError, Target, subscribers
from jetstream.bench.measure import Meter, table
from jetstream.bench.ring import accounts
from jetstream.bench.storm import raise_storm
from jetstream.bench.subscription import Readings
from jetstream.cli.bench import Options, WrongError, bench
from jetstream.errors import SettingError

REPOS = 30
TIMEOUT_S = 30


@pytest.fixture(scope="module")
def feed() -> Iterator[Feed]:
    feed = Feed(None, REPOS)
    yield feed
    feed.stop()


@pytest.fixture(scope="module")
def server(feed: Feed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Target, int]]:
    command = [sys.executable, "-m", "jetstream", "serve", "--upstream", feed.url, "--log-format", "json"]
    command += ["--listen", "127.0.0.1:0", "--data-dir", str(tmp_path_factory.mktemp("data"))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        urls = (json.loads(line).get("subscribe") for line in process.stderr)
        port = urlsplit(next(url for url in urls if url)).port or 0
        Thread(target=process.stderr.read, daemon=True).start()
        feed.wait_connected()
        yield Target("127.0.0.1", port), process.pid
        process.terminate()


@pytest.fixture
def load(server: tuple[Target, int]) -> Iterator[Load]:
    load = Load(server[0], Readings(fed=True))
    yield load
    load.close()


def test_all_get_what_they_asked_for_and_after_a_storm_still_do(
    feed: Feed, server: tuple[Target, int], load: Load
) -> None:
    rng, said = Random(1), list[str]()
    parts = mix.parse("unfiltered=2,dids:3=1,collections:4=1")
    made = subscribers(
        mix.filters(parts, 60, accounts(REPOS), rng), load.readings, rng, check=8, slow=3, storm=30
    )
    meter = Meter(load, server[1], said.append)
    load.begin()
    feed.begin(rate=400, events=1_500, seconds=TIMEOUT_S)
    accepted_s = load.connect(made, 0, TIMEOUT_S)
    load.run_until(lambda: load.reference.subscription.events >= 200, TIMEOUT_S)
    figures = meter.measure(0.5, accepted_s)
    storm = raise_storm(load, made[30:], 0.5, rng)
    sent = feed.wait_sent()
    load.run_until(lambda: load.reference.subscription.events >= sent.events, TIMEOUT_S)
    meter.judge()

    assert load.readings.findings.examples == []
    assert load.reference.subscription.events == sent.events
    assert (figures.subscribers, figures.accepted, figures.ends) == (60, 60, {})
    assert figures.messages_per_s > figures.events_per_s > 0
    assert 0 < figures.delay_ms[0] <= figures.delay_ms[1] <= figures.delay_ms[2]
    assert figures.relay_ms[0] > figures.delay_ms[0]
    assert figures.server_rss_mib is not None
    assert (storm.returned, storm.served) == (30, 30)
    assert load.totals.ends == {"cut by the bench": 30}
    assert dict(table(figures))["subscribers"] == "60"


def test_who_is_not_let_in_is_told_why(load: Load) -> None:
    load.target = Target(load.target.host, load.target.port, "/nowhere")
    with pytest.raises(RefusedError, match=r"/nowhere: refused: 404"):
        load.begin()


def test_where_nobody_listens_is_said() -> None:
    load = Load(Target("127.0.0.1", 1), Readings())
    with pytest.raises(RefusedError, match="cannot connect: Connection refused"):
        load.begin()
    load.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetstream.cli.bench.WARM_UP_S", 0.1)
    monkeypatch.setattr("jetstream.cli.bench.STORM_WATCH_S", 0.5)


@pytest.mark.usefixtures("impatient")
def test_the_command_prints_a_table_and_writes_its_figures(
    feed: Feed, server: tuple[Target, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feed.begin(rate=300, seconds=5)
    options = Options(
        subscribers=20,
        seconds=0.3,
        filter_mix="unfiltered,dids:2",
        learn=0.5,
        storm=5,
        wire="v1",
        pid=server[1],
        json=tmp_path / "figures.json",
    )
    bench(f"127.0.0.1:{server[0].port}", options)
    feed.wait_sent()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["url"] == f"ws://127.0.0.1:{server[0].port}/v1/subscribe"
    assert (figures["accepted"], figures["storm"]["served"], figures["wrong"]) == (20, 5, {})
    assert figures["storm"]["lag_ms"] < 5_000
    assert "5 of 5 served" in capsys.readouterr().out


def losing_one(connection: ServerConnection) -> None:
    """Send a hundred events, all but one of them to those who ask for a collection."""
    assert connection.request is not None
    for time_us in range(1, 101):
        if time_us != 50 or "wantedCollections" not in connection.request.path:
            connection.send(event(time_us, collection="app.bsky.feed.like").frame[4:].decode())
    for _ in connection:  # until the other side leaves
        pass


@pytest.mark.usefixtures("impatient")
def test_the_command_fails_when_an_event_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(losing_one, "127.0.0.1", 0) as fake:
        Thread(target=fake.serve_forever, daemon=True).start()
        port = fake.socket.getsockname()[1]
        bench(f"ws://127.0.0.1:{port}", Options(subscribers=3, seconds=0.1))
        with pytest.raises(WrongError, match="were wrong"):
            bench(f"ws://127.0.0.1:{port}", Options(subscribers=40, seconds=0.1, filter_mix="collections:9"))
        fake.shutdown()
    assert "lost or repeated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(filter_mix="all"), "none of unfiltered"),
        (Options(subscribers=5, slow=3, storm=3), "fewer than the 6 slow and cut off"),
        (Options(subscribers=99_999), "open files"),
        (Options(feed=1, feed_listen="nowhere"), "is not an address"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anyone_connects(options: Options, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        bench("ws://127.0.0.1:1", options)


def test_a_server_that_cuts_is_told_with_its_words() -> None:
    def cut(connection: ServerConnection) -> None:
        connection.close(1008, "too many")

    with serve(cut, "127.0.0.1", 0) as fake:
        Thread(target=fake.serve_forever, daemon=True).start()
        load = Load(Target("127.0.0.1", fake.socket.getsockname()[1]), Readings())
        load.begin()
        load.run_until(lambda: bool(load.reference.end), TIMEOUT_S)
        assert load.reference.end == "1008 too many"
        load.close()
        fake.shutdown()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("wss://example.com", "is not ws://"),
        ("ws://nowhere.invalid", "cannot be resolved"),
        ("ws://127.0.0.1:x", "cannot be resolved"),
    ],
)
def test_a_url_that_cannot_be_loaded_is_a_bad_setting(url: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        bench(url)
