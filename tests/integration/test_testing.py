"""What users get for their own tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import subscriber

from jetstream.testing import SimulatedNetwork, jetstream, network, serving_jetstream, simulated_network

__all__ = ["jetstream", "network"]


async def test_a_jetstream_serves_the_events_of_the_network(
    network: SimulatedNetwork, jetstream: str
) -> None:
    port = int(jetstream.rpartition(":")[2])
    truth = network.emit(30)
    async with subscriber.subscribe(port, "/v1/subscribe", cursor=0) as reader:
        events = await reader.events(len(truth))
    for event in events:
        del event["time_us"]
    assert events == truth


async def test_a_jetstream_begins_with_messages_published_before_it(tmp_path: Path) -> None:
    network = simulated_network(repos=3, records=1)
    truth = network.emit(10)
    async with network.serving(), serving_jetstream(network, tmp_path, wire="v1") as url:
        port = int(url.rpartition(":")[2])
        async with subscriber.subscribe(port, cursor=0) as reader:
            kinds = [event["kind"] for event in await reader.events(len(truth))]
    assert kinds == [event["kind"] for event in truth]


async def test_an_error_of_the_server_ends_the_block(tmp_path: Path) -> None:
    network = simulated_network(repos=3, records=1)
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    async with network.serving():
        with pytest.raises(ExceptionGroup):
            async with serving_jetstream(network, blocked):
                pytest.fail("nothing can be served out of a file")


def test_emitted_events_are_the_truth_so_far() -> None:
    network = simulated_network()
    first, second = network.emit(5), network.emit(5)
    assert network.truth == first + second
    assert network.seq >= 10


def test_the_same_arguments_make_the_same_network() -> None:
    assert simulated_network(seed=3).emit(50) == simulated_network(seed=3).emit(50)
    assert simulated_network(seed=3).emit(50) != simulated_network(seed=4).emit(50)


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="earthquake is not one of"):
        simulated_network().emit(1, faults=["earthquake"])


def test_cleared_faults_do_not_occur() -> None:
    network = simulated_network()
    network.inject("wrong_cid", "drop")
    network.clear_faults()
    network.emit(20)
    assert network.ledger == []
