from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.decoding import Message, decode
from websockets.sync.client import connect

from jetstream.bench.feed import Feed, RelayEndedError
from jetstream.bench.ring import FIRST_SEQ, simulated
from jetstream.simulator import recording


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "frames.bin.zst"
    with recording.writing(path) as add:
        for frame in simulated(50):
            add(frame)
    return path


@pytest.fixture
def feed(frames: Path) -> Iterator[Feed]:
    feed = Feed(frames, repos=10)
    yield feed
    feed.stop()


def read(feed: Feed, rate: float, events: int) -> list[Message]:
    """Connect, have so many events sent, and return what came."""
    with connect(feed.url) as server:
        feed.wait_connected()
        feed.begin(rate=rate, events=events)
        sent = feed.wait_sent()
        messages = [decode(server.recv(timeout=10, decode=False)) for _ in range(sent.frames)]
    feed.wait_connected()  # it has noticed that we left
    assert sent.events == sum(len(message.events) for message in messages) >= events
    return messages


@pytest.mark.parametrize("rate", [0, 2_000])
def test_a_server_gets_what_was_ordered_and_the_next_one_what_follows(feed: Feed, rate: float) -> None:
    first = read(feed, rate, 120)
    second = read(feed, rate, 30)
    seqs = [message.seq for message in first + second]
    assert seqs == list(range(FIRST_SEQ, FIRST_SEQ + len(seqs)))


def test_a_ping_is_answered_while_nothing_is_sent(feed: Feed) -> None:
    with connect(feed.url) as server:
        assert server.ping(b"there?").wait(timeout=10)


def test_without_a_server_nothing_is_sent(feed: Feed) -> None:
    feed.begin(events=10)
    assert feed.wait_sent().frames == 0


def test_a_recording_that_is_none_is_told_as_an_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "frames").write_bytes(b"no recording")
    with pytest.raises(RelayEndedError, match="ended with status 1"):
        Feed(tmp_path / "frames", repos=1)
    assert "frames" in capfd.readouterr().err
