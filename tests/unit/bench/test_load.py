"""Small servers that do what no server should, and what is refused before a load begins."""

from __future__ import annotations

from threading import Thread

import pytest
from tests.unit.bench.streams import event
from websockets.sync.server import ServerConnection, serve

from jetstream.bench.load import Load, RefusedError, Target
from jetstream.bench.subscription import Readings
from jetstream.cli.bench import DeliveryError, Options, bench
from jetstream.errors import SettingError

TIMEOUT_S = 30


def test_a_server_without_a_dictionary_is_an_error() -> None:
    with pytest.raises(SettingError, match=r"--compress: '.+/zstd-dictionary' is not a dict"):
        bench("ws://127.0.0.1:9", Options(compress=True))


def test_a_server_that_does_not_listen_is_reported() -> None:
    load = Load(Target("127.0.0.1", 1), Readings())
    with pytest.raises(RefusedError, match="cannot connect: Connection refused"):
        load.begin()
    load.close()


def losing_one(connection: ServerConnection) -> None:
    """Send a hundred events; leave one out for clients that ask for a collection."""
    assert connection.request is not None
    for time_us in range(1, 101):
        if time_us != 50 or "wantedCollections" not in connection.request.path:
            connection.send(event(time_us, collection="app.bsky.feed.like").frame[4:].decode())
    for _ in connection:  # until the client disconnects
        pass


def test_the_command_fails_when_an_event_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(losing_one, "127.0.0.1", 0) as fake:
        Thread(target=fake.serve_forever, daemon=True).start()
        port = fake.socket.getsockname()[1]
        bench(f"ws://127.0.0.1:{port}", Options(subscribers=3, warm_up=0.1, seconds=0.1))
        options = Options(subscribers=40, warm_up=0.1, seconds=0.1, filter_mix="collections:9")
        with pytest.raises(DeliveryError, match="were wrong"):
            bench(f"ws://127.0.0.1:{port}", options)
        fake.shutdown()
    assert "lost or repeated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(filter_mix="all"), "not one of unfiltered"),
        (Options(subscribers=5, slow=6), "fewer than the 6 slow ones"),
        (Options(subscribers=99_999), "open files"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anyone_connects(options: Options, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        bench("ws://127.0.0.1:1", options)


def test_a_close_by_the_server_is_reported_with_its_reason() -> None:
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
