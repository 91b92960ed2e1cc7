"""`jetstream serve` verifies and merges what the simulated network sends, with the keys of its directory."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from tests.serving import Start, figures, get, quick, until
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.limits import AdmissionLimits, Limits
from jetstream.simulator import faults
from jetstream.simulator.relays import Relay
from jetstream.simulator.simulated_network import SimulatedNetwork, simulated_network
from jetstream.testing import Faults
from jetstream.upstreams import Upstream

MESSAGES = 1_000
RATE = 800.0  # messages a second, where relays must not be far apart
LIMITS = quick(ping_after_s=0.2, pong_timeout_s=0.2, backoff_max_s=0.05)
# Without those that end a connection, and those that send a frame again: the ledger has no verdicts of them.
OTHERS = {"drop", "stall", "error_frame", "oversized", "repeat", "go_back", "truncated", "bit_flipped"}
STREAM = Faults(**{name: 0.006 for name in faults.STREAM_FAULTS if name not in OTHERS})
BOTH = (("a", 0), ("b", 5_000_000))  # where the two relays of the tests begin
Event = dict[str, Any]


def patient(hold_s: float) -> Limits:
    """Return limits under which relays may be far apart, as they are where the machine is busy."""
    return replace(LIMITS, admission=AdmissionLimits(hold_s=hold_s, held_per_repo=1_000))


def keys_of(network: SimulatedNetwork) -> dict[str, Any]:
    """Return the settings of a server that asks a network for keys, as fast as it likes."""
    return {"plc_url": (network.url,), "plc_rate": 10_000.0, "forget": "none"}


def upstreams(network: SimulatedNetwork) -> tuple[Upstream, ...]:
    return tuple(Upstream(name, url) for name, url in network.firehose_urls.items())


async def settled(service: Service, network: SimulatedNetwork) -> None:
    """Return when everything that was sent is judged, and nothing waits."""
    await network.wait_written()
    wanted = {feed.name: feed.stream.seq for feed in network._network.feeds.values()}
    admission = service.intake.admission
    assert admission is not None

    def is_so() -> bool:
        cursors = service.log.cursors
        found = {name: max(each.seq, each.provisional or 0) for name, each in cursors.items()}
        return sorted(found.values()) == sorted(wanted.values()) and not admission.waiting

    await until(is_so)


async def verdicts(service: Service) -> Counter[str]:
    """Return how many messages were judged how."""
    counts: Counter[str] = Counter()
    for name, value in (await figures(service.port)).items():
        if name.startswith("jetstream_verify_total{") and value:
            reason, verdict = (part.split("=")[1].strip('"}') for part in name.split("{")[1].split(","))
            counts[f"{verdict}: {reason}" if reason else verdict] += int(value)
    return counts


def expected(network: SimulatedNetwork) -> Counter[str]:
    return Counter(
        f"{line['verdict']}: {line['reason']}" if line.get("reason") else line["verdict"]
        for line in network.verdicts
    )


async def events(service: Service) -> list[Event]:
    """Return all events of a server but syncs, without what it has added."""
    found = await figures(service.port)
    kinds = ("create", "update", "delete", "identity", "account")
    count = int(sum(found[f'jetstream_events_total{{kind="{kind}"}}'] for kind in kinds))
    async with subscribe(service.port, "/v1/subscribe", cursor=0) as reader:
        served = await reader.events(count)
    for event in served:
        del event["time_us"]
    return served


def by_account(found: Iterable[Event]) -> dict[str, list[Event]]:
    """Return the events of each account, in order. A number that only one relay has is left out."""
    accounts: dict[str, list[Event]] = defaultdict(list)
    for event in found:
        for kind in {"identity", "account"} & event.keys():
            event[kind].pop("seq", None)
        accounts[event["did"]].append(event)
    return accounts


def truth(network: SimulatedNetwork) -> list[Event]:
    """Return what a reader of all relays has. Of accounts, that is what the first relay says."""
    missing, first = network.missing(level="full"), network.missing(next(iter(network.urls)), level="full")
    return [
        event
        for place, event in enumerate(network.truth)
        if place not in (first if event["kind"] == "account" else missing)
    ]


# One upstream


@pytest.mark.parametrize("workers", [0, 1])
async def test_each_fault_gets_its_verdict_and_nothing_else_does(start: Start, workers: int) -> None:
    network = simulated_network(repos=40, records=5, seed=3, faults=STREAM, rotations=0.01)
    async with network.serving():
        service = await start(
            limits=LIMITS,
            upstream=network.firehose_url,
            upstream_cursor=0,
            verify="full",
            verify_workers=workers,
            **keys_of(network),
        )
        await network.run(MESSAGES)
        network.clear_faults()
        network.emit(50)
        await settled(service, network)
        got, wanted = await verdicts(service), expected(network)
        assert got == wanted
        assert len(wanted) >= 9
        assert by_account(await events(service)) == by_account(truth(network))
        found = await figures(service.port)
        assert (
            found['jetstream_gaps_total{cause="commit"}'] + found['jetstream_gaps_total{cause="sync"}']
            == got["gap"]
        )
        _, lines = await get(service.port, "/gaps")
        assert len(lines.splitlines()) == got["gap"]


async def test_signatures_alone_are_checked_too(start: Start) -> None:
    rates = Faults(bad_signature=0.02, high_s=0.02, wrong_cid=0.02, skip=0.02, rev_back=0.02)
    network = simulated_network(repos=20, records=5, seed=5, faults=rates, rotations=0.01)
    async with network.serving():
        given: dict[str, Any] = {"upstream": network.firehose_url, "upstream_cursor": 0}
        service = await start(limits=LIMITS, **given, verify="signature", **keys_of(network))
        await network.run(400)
        await settled(service, network)
        got, wanted = await verdicts(service), expected(network)
        wanted["ok"] += wanted.pop("gap")
        assert got == wanted
        assert by_account(await events(service)) == by_account(truth(network))


async def test_without_a_directory_events_pass_or_do_not_as_the_setting_says(start: Start) -> None:
    network = simulated_network(repos=5, seed=6)
    async with network.serving():
        given: dict[str, Any] = {"upstream": network.firehose_url, "upstream_cursor": 0, "verify": "full"}
        given |= {"plc_url": ("http://127.0.0.1:9",), "unresolved": "drop", "forget": "none"}
        service = await start(limits=LIMITS, **given)
        await network.run(50)
        await settled(service, network)
        got, wanted = await verdicts(service), expected(network)
        assert got["unverified"] == wanted.total()
        assert {event["kind"] for event in await events(service)} <= {"identity", "account"}


# Several upstreams


@pytest.mark.parametrize("verify", ["cid", "full"])
async def test_two_relays_that_lose_different_messages_give_everything_once(
    start: Start, verify: str
) -> None:
    relays = (
        Relay(name="a", loss=0.05, outage_s=1.5, every_s=1.0),
        Relay(name="b", loss=0.05, seq=5_000_000, outage_s=1.5, every_s=1.0),
    )
    network = simulated_network(repos=30, records=5, seed=8, relays=relays, disjoint=True)
    async with network.serving():
        given: dict[str, Any] = {"upstream": upstreams(network), "upstream_cursor": BOTH}
        service = await start(limits=patient(10.0), **given, verify=verify, **keys_of(network))
        await network.wait_subscribed(2)
        await network.run(MESSAGES, RATE)
        await settled(service, network)
        assert len(network.ledger) > MESSAGES * 0.08
        assert by_account(await events(service)) == by_account(truth(network))
        assert not network.missing(level="full")
        assert (await get(service.port, "/gaps"))[1] == ""


async def test_what_all_relays_have_lost_is_reported(start: Start) -> None:
    relays = (Relay(name="a", loss=0.15), Relay(name="b", loss=0.15, seq=5_000_000))
    network = simulated_network(repos=60, records=5, seed=9, relays=relays)
    async with network.serving():
        given: dict[str, Any] = {"upstream": upstreams(network), "upstream_cursor": BOTH}
        service = await start(limits=patient(2.0), **given, verify="full", **keys_of(network))
        await network.wait_subscribed(2)
        await network.run(600, RATE / 2)
        await settled(service, network)
        missing = network.missing(level="full")
        assert by_account(await events(service)) == by_account(truth(network))
        gaps = [json.loads(line) for line in (await get(service.port, "/gaps"))[1].splitlines()]
        revs = [
            network.truth[place]["commit"]["rev"] for place in missing if "commit" in network.truth[place]
        ]
        found = [gap for gap in gaps if any(gap["from_rev"] < rev < gap["to_rev"] for rev in revs)]
        assert found == gaps
        assert gaps
