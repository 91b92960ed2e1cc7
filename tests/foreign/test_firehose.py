"""Readers of the firehose of other projects, unmodified, against the simulated network.

They verify what they read. So what they accept is what the network says is genuine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.builders import LIKE
from tests.foreign import tap
from tests.foreign.clients import go, node
from tests.programs import Program, program
from tests.serving import until

from jetstream.simulator import ledger
from jetstream.simulator.faults import STREAM_FAULTS
from jetstream.testing import SimulatedNetwork, simulated_network

pytestmark = pytest.mark.timeout(1200)

Event = dict[str, Any]
# docs/simulator.md, "Other readers", has what these do to each reader.
STOP_TAP = ("garbage_instead", "truncated_instead", "future_rev", "stall")
STOP_SYNC = ("garbage_instead", "truncated_instead")
UNNOTICED_BY_SYNC = ("broken_chain", "rev_back", "future_rev")


class Operation(NamedTuple):
    """A change of a record, as both the network and a reader have it."""

    did: str
    action: str
    collection: str
    rkey: str
    cid: str | None


@pytest.fixture(scope="module")
def tap_program(tmp_path_factory: pytest.TempPathFactory) -> str | Path:
    """Build Tap."""
    build = go("tap", "github.com/bluesky-social/indigo/cmd/tap")
    return build(tmp_path_factory.mktemp("tap"))[0]


@pytest.fixture(scope="module")
def sync_program(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """Install @atproto/sync. Returns the start of a command."""
    return node("sync/sync.mjs")(tmp_path_factory.mktemp("sync"))


class SyncReader:
    """A running @atproto/sync."""

    def __init__(self, running: Program, network: SimulatedNetwork) -> None:
        self._running = running
        self._network = network
        self.operations: list[Operation] = []  # which it has accepted
        self.errors: list[str] = []

    async def catch_up(self) -> None:
        """Return once it has dealt with all that the network has sent."""
        world = self._network.world
        self._network.publish(world.identify(world.accounts[0].did))  # a frame that has a number in any case
        while (line := json.loads(await self._running.line())) != {"cursor": self._network.seq}:
            if "error" in line:
                self.errors.append(line["error"])
            elif "rkey" in line:
                self.operations.append(operation(line["did"], line["event"], line))


def operations(events: Iterable[Event]) -> list[Operation]:
    """Return the changes of records among events of the truth."""
    commits = ((event["did"], event["commit"]) for event in events if event["kind"] == "commit")
    return [operation(did, commit["operation"], commit) for did, commit in commits]


def operation(did: str, action: str, of: Event) -> Operation:
    return Operation(did, action, of["collection"], of["rkey"], of.get("cid"))


def without(faults: Iterable[str]) -> list[str]:
    """Return the faults of a stream without some of them."""
    return [name for name in STREAM_FAULTS if name not in set(faults)]


def let_all_write(network: SimulatedNetwork) -> None:
    """Let every active account create a record."""
    for account in network.world.accounts:
        if account.active:
            network.publish(network.world.create_record(account.did, LIKE, {"$type": LIKE}))


async def followed(network: SimulatedNetwork, following: tap.Tap) -> None:
    """Return once Tap has each repository as it is."""
    await until(lambda: following.roots() == tap.roots(network))


async def test_tap_has_every_repository_as_it_is(tap_program: Path, tmp_path: Path) -> None:
    network = simulated_network(seed=1)
    world = network.world
    async with network.serving(), tap.running(tap_program, network, tmp_path) as following:
        await followed(network, following)
        for _ in range(40):
            network.emit(25)
            await followed(network, following)
        for messages in (
            world.rotate_key(world.accounts[0].did),
            world.set_status(world.accounts[1].did, active=False, status="deactivated"),
            world.set_status(world.accounts[2].did, active=False, status="takendown"),
            world.replace(world.accounts[3].did),
        ):
            network.publish(*messages)
        await followed(network, following)
        let_all_write(network)
        await followed(network, following)
        assert following.repositories() == tap.repositories(network)
    kinds = Counter(event["kind"] for event in network.truth)
    assert kinds["commit"] > 1000
    assert kinds["account"] > 3


async def test_tap_recovers_from_faults(tap_program: Path, tmp_path: Path) -> None:
    """A repository is out of date from a commit that Tap refuses to the next one, when Tap fetches it again.

    Then Tap keeps the records whose deletes it has not accepted.
    """
    network = simulated_network(seed=1)
    faults = without(STOP_TAP)
    async with network.serving(), tap.running(tap_program, network, tmp_path) as following:
        await followed(network, following)
        network.emit(1)
        await until(following.has_cursor)  # without one, it skips what comes while it is disconnected
        for _ in range(3):
            for fault in faults:
                network.emit(1, faults=[fault])
            network.emit(10)
            network.clear_faults()
            let_all_write(network)
            let_all_write(network)
            # It also lists DIDs that are not accounts: malformed ones, and those with a changed bit.
            await until(lambda: following.roots().items() >= tap.roots(network).items())
        found, wanted = following.repositories(), tap.repositories(network)
    assert {line["fault"] for line in network.ledger} == set(faults)
    deleted = {(event.did, f"{event.collection}/{event.rkey}") for event in operations(network.truth)}
    for did, repository in wanted.items():
        more = found[did].records.items() - repository.records.items()
        assert found[did].records.items() >= repository.records.items()
        assert {(did, path) for path, _ in more} <= deleted


async def test_sync_accepts_every_commit(sync_program: list[str | Path]) -> None:
    network = simulated_network(seed=1)
    async with network.serving(), program(*sync_program, *addresses(network)) as running:
        reader = SyncReader(running, network)
        for _ in range(400):
            network.emit(1)
            await reader.catch_up()
    assert reader.operations == operations(network.truth)
    assert not reader.errors


async def test_sync_accepts_exactly_the_good_commits(sync_program: list[str | Path]) -> None:
    """It reads one frame of the network at a time. So each key in the directory is the one that signed."""
    network = simulated_network(seed=1)
    faults = without(STOP_SYNC)
    async with network.serving(), program(*sync_program, *addresses(network)) as running:
        reader = SyncReader(running, network)
        await reader.catch_up()
        for fault in faults * 3:
            network.emit(1, faults=[fault])
            await reader.catch_up()
    assert {line["fault"] for line in network.ledger} == set(faults)
    noticed = (line for line in network.ledger if line["fault"] not in UNNOTICED_BY_SYNC)
    lost = ledger.missing(noticed, ["relay"], "full")
    good = [event for index, event in enumerate(network.truth) if index not in lost]
    assert list(dict.fromkeys(reader.operations)) == operations(good)
    assert len(reader.operations) > len(operations(good))  # what is sent again is accepted again


def addresses(network: SimulatedNetwork) -> tuple[str, str]:
    """Return where the firehose is, and where the directory."""
    return network.url.replace("http:", "ws:"), network.url
