"""A server verifies and merges what simulated relays send, with every fault, over many messages."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from tests.integration.test_verifying import (
    BOTH,
    LIMITS,
    by_account,
    events,
    expected,
    keys_of,
    patient,
    settled,
    truth,
    upstreams,
    verdicts,
)
from tests.serving import Start, get

from jetstream.app import Service
from jetstream.simulator import faults
from jetstream.simulator.relays import Relay
from jetstream.simulator.simulated_network import SimulatedNetwork, simulated_network
from jetstream.testing import Faults

SEEDS = [21, 22, 23]
MESSAGES = 100_000
MERGED = 20_000
RATE = 800.0  # messages a second, where relays must not be far apart
EVERY = Faults(**dict.fromkeys(faults.STREAM_FAULTS, 0.001))
# Of what passes, a frame that is sent again has none. It is a replay, or is refused for its damage.
PASSED = {"ok", "gap", "legacy", "incomplete"}
Event = dict[str, Any]


def differing(
    got: Mapping[str, list[Event]], wanted: Mapping[str, list[Event]]
) -> list[tuple[str, Any, Any]]:
    """Return some accounts whose events differ, and the first that do: pytest would compare for minutes."""
    found = [did for did in wanted.keys() | got.keys() if got.get(did) != wanted.get(did)]
    return [(did, *_first_difference(got.get(did, []), wanted.get(did, []))) for did in found[:3]]


def _first_difference(got: list[Event], wanted: list[Event]) -> tuple[list[Event], list[Event]]:
    at = next((at for at, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1]), 0)
    return got[at : at + 2], wanted[at : at + 2]


def figures(*values: object) -> None:
    """Print what was found: pytest shows it with `-s`, or of a test that fails."""
    sys.stdout.write(" ".join(map(str, values)) + "\n")


async def gaps_of(service: Service) -> list[Event]:
    """Return all gaps that a server has told."""
    gaps: list[Event] = []
    while text := (await get(service.port, f"/gaps?since={gaps[-1]['time_us'] if gaps else 0}"))[1]:
        gaps += map(json.loads, text.splitlines())
    return gaps


def lost_revs(network: SimulatedNetwork) -> set[tuple[str, str]]:
    """Return the commits that no relay has sent, between two of the same account that one has."""
    missing = network.missing(level="full")
    begun: set[str] = set()
    lost: set[tuple[str, str]] = set()
    since: dict[str, set[tuple[str, str]]] = {}  # what is lost after the last one of each account
    for place, event in enumerate(network.truth):
        did = event["did"]
        if event["kind"] != "commit":
            continue
        if place not in missing:
            begun.add(did)
            lost |= since.pop(did, set())
        elif did in begun:
            since.setdefault(did, set()).add((did, event["commit"]["rev"]))
    return lost


def within(did: str, rev: str, gaps: Iterable[Event]) -> bool:
    return any(gap["did"] == did and gap["from_rev"] < rev < gap["to_rev"] for gap in gaps)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", SEEDS)
async def test_each_fault_gets_its_verdict_and_nothing_else_does(start: Start, seed: int) -> None:
    network = simulated_network(repos=200, records=20, seed=seed, faults=EVERY, rotations=0.002)
    async with network.serving():
        given: dict[str, Any] = {"upstream": network.firehose_url, "upstream_cursor": 0, "verify": "full"}
        service = await start(limits=LIMITS, **given, **keys_of(network))
        await network.run(MESSAGES)
        network.clear_faults()
        network.emit(50)
        await settled(service, network)
        got, wanted = await verdicts(service), expected(network)
        figures(seed, dict(got), dict(wanted))
        assert {name: got[name] for name in PASSED} == {name: wanted[name] for name in PASSED}
        assert not wanted - got
        assert {name.split(":")[0] for name in got - wanted} <= {"replay", "refused"}
        assert {line["fault"] for line in network.ledger} == set(faults.STREAM_FAULTS)
        assert differing(by_account(await events(service)), by_account(truth(network))) == []
        assert len(await gaps_of(service)) == got["gap"]


def pair(loss: float, outage_s: float) -> tuple[Relay, Relay]:
    """Return two relays that lose a share of messages, and what comes while they are out."""
    more = {"loss": loss, "outage_s": outage_s, "every_s": 5.0}
    return Relay(name="a", **more), Relay(name="b", seq=5_000_000, **more)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("verify", ["cid", "signature", "full"])
async def test_two_relays_that_lose_different_messages_give_everything_once(
    start: Start, verify: str, seed: int
) -> None:
    relays = pair(0.05, 1.5)
    network = simulated_network(
        repos=100, records=5, seed=seed, relays=relays, disjoint=True, rotations=0.002
    )
    async with network.serving():
        given: dict[str, Any] = {"upstream": upstreams(network), "upstream_cursor": BOTH, "verify": verify}
        service = await start(limits=patient(10.0), **given, **keys_of(network))
        await network.wait_subscribed(2)
        await network.run(MERGED, RATE)
        await settled(service, network)
        lost = Counter((line["relay"], line["fault"]) for line in network.ledger)
        figures(verify, seed, dict(lost), dict(await verdicts(service)))
        assert lost.keys() == {(name, fault) for name in "ab" for fault in ("loss", "outage")}
        assert not network.missing(level="full")
        assert differing(by_account(await events(service)), by_account(truth(network))) == []
        assert await gaps_of(service) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("verify", ["cid", "signature", "full"])
async def test_what_both_relays_have_lost_is_told_and_all_else_is_there(
    start: Start, verify: str, seed: int
) -> None:
    network = simulated_network(repos=100, records=5, seed=seed, relays=pair(0.05, 1.5), rotations=0.002)
    async with network.serving():
        given: dict[str, Any] = {"upstream": upstreams(network), "upstream_cursor": BOTH, "verify": verify}
        service = await start(limits=patient(2.0), **given, **keys_of(network))
        await network.wait_subscribed(2)
        await network.run(MERGED, RATE)
        await settled(service, network)
        gaps, lost = await gaps_of(service), lost_revs(network)
        figures(verify, seed, len(network.missing(level="full")), len(lost), len(gaps))
        assert differing(by_account(await events(service)), by_account(truth(network))) == []
        assert lost
        assert [each for each in lost if not within(*each, gaps)] == []
        assert [gap for gap in gaps if not any(within(*each, [gap]) for each in lost)] == []
