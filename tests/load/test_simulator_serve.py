"""`jetstream serve` against the simulated network at its worst: every event of the truth, once, in order.

SIMULATED_MESSAGES says how many messages of the firehose each test runs over.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests import subscriber
from tests.serving import Start, quick, until

from jetstream.simulator import faults
from jetstream.testing import Faults, SimulatedNetwork, simulated_network

MESSAGES = int(os.environ.get("SIMULATED_MESSAGES", "2500"))
CONNECTIONS_LOST = 10  # by each of the faults that end one
HARMLESS = (*faults.ADDED, *faults.ADDED_MESSAGES, *faults.FORGED)
ENDING = ("drop", "stall", "error_frame", "oversized")

Event = dict[str, Any]


def rates(names: tuple[str, ...]) -> Faults:
    """Let each fault happen in one of a hundred messages; those that cost time less often."""
    seldom = CONNECTIONS_LOST / MESSAGES
    return Faults(**{name: seldom if name in ENDING else 0.01 for name in names})


# A stalled upstream is given up at once: these tests are of what comes after.
LIMITS = quick(ping_after_s=0.2, pong_timeout_s=0.2)


@pytest.fixture
def serve(start: Start) -> Callable[[SimulatedNetwork], Awaitable[list[Event]]]:
    """Give a function that runs a network to its end, and returns the events that were served of it."""

    async def serve(network: SimulatedNetwork) -> list[Event]:
        async with network.serving():
            service = await start(
                limits=LIMITS, upstream=network.firehose_url, upstream_cursor=0, forget="none"
            )
            async with subscriber.subscribe(service.port, "/v1/subscribe") as reader:
                events: list[Event] = []
                reading = asyncio.create_task(_read(reader, events))
                await network.run(MESSAGES)
                network.clear_faults()
                last = network.publish(network.world.identify(network.world.accounts[0].did))[-1]
                await until(lambda: events[-1:] == [last])
                reading.cancel()
                return events

    return serve


async def _read(reader: subscriber.Subscriber, events: list[Event]) -> None:
    while True:
        event = await reader.event()
        del event["time_us"]
        events.append(event)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1, 2])
async def test_under_every_harmless_fault_exactly_the_truth_is_served(serve: Any, seed: int) -> None:
    network = simulated_network(repos=50, seed=seed, faults=rates(HARMLESS))
    events = await serve(network)
    assert {line["fault"] for line in network.ledger} == set(HARMLESS)
    assert len(events) > MESSAGES * 0.9
    assert events == network.truth


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [3, 4])
async def test_of_corrupted_frames_exactly_the_events_named_are_missing(serve: Any, seed: int) -> None:
    network = simulated_network(repos=50, seed=seed, faults=rates(faults.STREAM_FAULTS))
    events = await serve(network)
    assert {line["fault"] for line in network.ledger} == set(faults.STREAM_FAULTS)
    lost = {
        event["index"]
        for line in network.ledger
        if line["level"] in ("frame", "cid")
        for event in line["events"]
    }
    assert len(lost) > MESSAGES * 0.02
    assert events == [event for index, event in enumerate(network.truth) if index not in lost]
