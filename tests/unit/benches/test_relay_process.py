from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from benches.frames import kept, simulated
from benches.relay_process import RelayEndedError, RelayProcess
from benches.ring import FIRST_SEQ
from tests.decoding import Message, decode
from websockets.sync.client import connect

from jetstream.simulator.world import Population


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "frames.bin.zst"
    return kept(path, islice(simulated(Population(repos=20, records=5), 500), 50))


@pytest.fixture
def relay(frames: Path) -> Iterator[RelayProcess]:
    relay = RelayProcess(frames, repos=10)
    yield relay
    relay.stop()


def read(relay: RelayProcess, rate: float, events: int) -> list[Message]:
    """Connect, order events, and return the messages that arrive."""
    with connect(relay.url) as server:
        relay.wait_connected()
        relay.begin(rate=rate, events=events)
        sent = relay.wait_sent()
        messages = [decode(server.recv(timeout=10, decode=False)) for _ in range(sent.frames)]
    relay.wait_connected()  # it reports that we disconnected
    assert sent.events == sum(len(message.events) for message in messages) >= events
    return messages


@pytest.mark.parametrize("rate", [0, 2_000])
def test_a_server_gets_what_was_ordered_and_the_next_one_what_follows(
    relay: RelayProcess, rate: float
) -> None:
    first = read(relay, rate, 120)
    second = read(relay, rate, 30)
    seqs = [message.seq for message in first + second]
    assert seqs == list(range(FIRST_SEQ, FIRST_SEQ + len(seqs)))


def test_a_ping_is_answered_while_nothing_is_sent(relay: RelayProcess) -> None:
    with connect(relay.url) as server:
        assert server.ping(b"there?").wait(timeout=10)


def test_without_a_server_nothing_is_sent(relay: RelayProcess) -> None:
    relay.begin(events=10)
    assert relay.wait_sent().frames == 0


def test_a_file_that_is_no_recording_ends_the_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "frames").write_bytes(b"no recording")
    with pytest.raises(RelayEndedError, match="ended with status 1"):
        RelayProcess(tmp_path / "frames", repos=1)
    assert "frames" in capfd.readouterr().err
