"""A server verifies and merges what simulated relays send, with every fault, over many messages."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
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
from tests.serving import Start

from jetstream.app import Service
from jetstream.eventlog import Gap
from jetstream.limits import KeyLimits
from jetstream.simulator import faults
from jetstream.simulator.relays import Relay
from jetstream.simulator.simulated_network import SimulatedNetwork, simulated_network
from jetstream.testing import Faults

SEEDS = [21, 22, 23]
MESSAGES = 100_000
MERGED = 20_000
ALL = 1_000_000  # gaps
RATE = 800.0  # messages a second, where relays must not be far apart
EVERY = Faults(**dict.fromkeys(faults.STREAM_FAULTS, 0.001))
# Of what passes, a frame that is sent again has none. It is a replay, or is refused for its damage.
PASSED = {"ok", "gap", "legacy", "incomplete"}
# Hours of the network pass in seconds, with their rotations of keys.
KEYS = KeyLimits(refresh_min_s=0.0, announced_min_s=0.0)
Event = dict[str, Any]


def parts(found: Iterable[Event]) -> tuple[dict[str, list[Event]], dict[str, list[Event]]]:
    """Return the commits of each account, in order, and its other events, which may overtake held commits."""
    both: tuple[list[Event], list[Event]] = ([], [])
    for event in found:
        both[event["kind"] != "commit"].append(event)
    return by_account(both[0]), by_account(both[1])


def differing(got: Mapping[str, list[Event]], wanted: Mapping[str, list[Event]]) -> list[tuple[Any, Any]]:
    """Return what some accounts have and should have, where it differs: pytest would compare for minutes."""
    found = [did for did in wanted.keys() | got.keys() if got.get(did) != wanted.get(did)]
    return [_first_difference(got.get(did, []), wanted.get(did, [])) for did in found[:3]]


def _first_difference(got: list[Event], wanted: list[Event]) -> tuple[list[Event], list[Event]]:
    at = next((at for at, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1]), 0)
    return got[at : at + 2], wanted[at : at + 2]


def counted(accounts: Mapping[str, list[Event]]) -> Counter[str]:
    return Counter(json.dumps(event, sort_keys=True) for found in accounts.values() for event in found)


def figures(*values: object) -> None:
    """Print what was found: pytest shows it with `-s`, or of a test that fails."""
    sys.stdout.write(" ".join(map(str, values)) + "\n")


async def assert_equal_to_truth(service: Service, network: SimulatedNetwork) -> None:
    (commits, others), (true_commits, true_others) = parts(await events(service)), parts(truth(network))
    assert differing(commits, true_commits) == []
    assert counted(others) == counted(true_others)


def lost_revs(network: SimulatedNetwork) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Return the commits that no relay has sent: all, and those between two of one account that one has."""
    missing = network.missing(level="full")
    begun: set[str] = set()
    everything: set[tuple[str, str]] = set()
    lost: set[tuple[str, str]] = set()
    since: dict[str, set[tuple[str, str]]] = {}  # what is lost after the last one of each account
    for place, event in enumerate(network.truth):
        did = event["did"]
        if event["kind"] != "commit":
            continue
        if place not in missing:
            between = since.pop(did, set())
            lost |= between if did in begun else set()
            begun.add(did)
        else:
            since.setdefault(did, set()).add((did, event["commit"]["rev"]))
            everything.add((did, event["commit"]["rev"]))
    return everything, lost


def within(did: str, rev: str, gaps: Iterable[Gap]) -> bool:
    """Return whether a gap tells of a commit. A #sync may tell of the one that has its rev."""
    return any(
        gap.did == did and gap.after_rev < rev and (rev < gap.rev or (gap.cause == "sync" and rev == gap.rev))
        for gap in gaps
    )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", SEEDS)
async def test_each_fault_gets_its_verdict_and_nothing_else_does(start: Start, seed: int) -> None:
    network = simulated_network(repos=200, records=20, seed=seed, faults=EVERY, rotations=0.002)
    async with network.serving():
        given: dict[str, Any] = {"upstream": network.firehose_url, "upstream_cursor": 0, "verify": "full"}
        service = await start(limits=replace(LIMITS, keys=KEYS), **given, **keys_of(network))
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
        (commits, others), (true_commits, true_others) = parts(await events(service)), parts(truth(network))
        assert differing(commits, true_commits) == []
        # Nothing is signed in them: a copy in which a bit has flipped may pass for another message.
        more, less = counted(others), counted(true_others)
        assert not less - more
        flipped = [line for line in network.ledger if line["fault"] == "bit_flipped"]
        assert (more - less).total() <= len(flipped)
        assert len(await service.log.gaps(0, ALL)) == got["gap"]


async def merging(start: Start, network: SimulatedNetwork, verify: str) -> Service:
    """Start a server that reads both relays, send everything, and return it once all is settled."""
    given: dict[str, Any] = {"upstream": upstreams(network), "upstream_cursor": BOTH, "verify": verify}
    service = await start(limits=replace(patient(10.0), keys=KEYS), **given, **keys_of(network))
    await network.wait_subscribed(2)
    await network.run(MERGED, RATE)
    await settled(service, network)
    return service


def pair(loss: float, outage_s: float) -> tuple[Relay, Relay]:
    """Return two relays that lose a share of messages, and what comes while they are out."""
    relay = partial(Relay, loss=loss, outage_s=outage_s, every_s=5.0)
    return relay(name="a"), relay(name="b", seq=5_000_000)


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
        service = await merging(start, network, verify)
        lost = Counter((line["relay"], line["fault"]) for line in network.ledger)
        figures(verify, seed, dict(lost), dict(await verdicts(service)))
        assert lost.keys() == {(name, fault) for name in "ab" for fault in ("loss", "outage")}
        assert not network.missing(level="full")
        await assert_equal_to_truth(service, network)
        assert await service.log.gaps(0, ALL) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("verify", ["cid", "signature", "full"])
async def test_what_both_relays_have_lost_is_told_and_all_else_is_there(
    start: Start, verify: str, seed: int
) -> None:
    network = simulated_network(repos=100, records=5, seed=seed, relays=pair(0.05, 1.5), rotations=0.002)
    async with network.serving():
        service = await merging(start, network, verify)
        gaps, (lost, lost_between) = await service.log.gaps(0, ALL), lost_revs(network)
        figures(verify, seed, len(network.missing(level="full")), len(lost), len(gaps))
        await assert_equal_to_truth(service, network)
        assert lost_between
        assert [each for each in lost_between if not within(*each, gaps)] == []
        # A commit without ops and a #sync with a rev of its own have no events in the truth.
        silent = [
            {line["did"] for line in network.ledger if line["relay"] == name and not line["events"]}
            for name in "ab"
        ]
        told = [gap for gap in gaps if gap.did not in set.intersection(*silent)]
        assert [gap for gap in told if not any(within(*each, [gap]) for each in lost)] == []
