"""What one address may have, and what the table of addresses remembers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jetstream.limits import WebLimits
from jetstream.settings import Settings, parse_networks
from jetstream.token_bucket import Rate, TokenBucket
from jetstream.web.address_limits import (
    Addresses,
    AddressLimits,
    OverLimit,
    Place,
    Replay,
    Visit,
    key_of,
)
from jetstream.web.peers import Peers

A, B = "203.0.113.1", "203.0.113.2"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def visit(addresses: Addresses, address: str = A) -> Visit:
    found = addresses.visit(address)
    assert found is not None
    return found


def accepted(addresses: Addresses, address: str = A) -> Visit:
    found = visit(addresses, address)
    assert found.refusal is None
    return found


def refused(addresses: Addresses, address: str = A) -> OverLimit:
    found = visit(addresses, address)
    assert found.refusal is not None
    found.leave()
    return found.refusal


# What counts as one address


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"),
        ("::ffff:203.0.113.1", "203.0.113.1"),
        ("2001:db8::1%eth0", "2001:db8::2"),
    ],
)
def test_the_same_client(one: str, other: str) -> None:
    assert key_of(one, ()) == key_of(other, ()) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:2::1"),
        ("203.0.113.1", "203.0.113.2"),
        ("0.0.0.1", "0:0:0:1::"),
    ],
)
def test_two_clients(one: str, other: str) -> None:
    assert key_of(one, ()) != key_of(other, ())


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_counts_as_its_network(address: object) -> None:
    prefix = ":".join(address.exploded.split(":")[:4])  # type: ignore[attr-defined]
    key = key_of(str(address), ())
    assert key is not None
    if key[0] == 6:
        assert key == key_of(f"{prefix}:1:2:3:4", ())


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "::1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "169.254.1.1", "fd00::1", "fe80::1%2"),
        *("::ffff:10.1.2.3", "", "unix", "1.2.3"),
    ],
)
def test_private_networks_are_exempt_by_default(address: str) -> None:
    assert key_of(address, Settings().address_exempt) is None


@pytest.mark.parametrize("address", ["172.32.0.1", "203.0.113.1", "2001:db8::1", "::ffff:203.0.113.1"])
def test_public_ones_are_not(address: str) -> None:
    assert key_of(address, Settings().address_exempt) is not None


# Limits


def test_so_many_connections_at_the_same_time() -> None:
    addresses = Addresses(AddressLimits(connections=2, retry_after_s=7), Clock())
    first, _ = accepted(addresses), accepted(addresses)
    assert refused(addresses) == OverLimit(
        "address_connections", "2 connections of one address are open: try again later", 7
    )
    accepted(addresses, B)
    first.leave()
    first.leave()
    accepted(addresses)
    refused(addresses)


def test_so_many_connections_a_second() -> None:
    clock = Clock()
    addresses = Addresses(AddressLimits(connection_rate=Rate(0.5, 2)), clock)
    for _ in range(2):
        accepted(addresses).leave()
    over = refused(addresses)
    assert (over.reason, over.retry_after_s) == ("address_connection_rate", 2)
    accepted(addresses, B)
    clock.now += 2
    accepted(addresses)
    refused(addresses)


def test_few_refused_connections_are_told_why() -> None:
    addresses = Addresses(AddressLimits(connections=0, untold_max=2), Clock())
    waiting = [visit(addresses) for _ in range(4)]
    assert [each.refusal and each.refusal.silent for each in waiting] == [False, False, True, True]
    for each in waiting:
        each.leave()
    assert not refused(addresses).silent


def test_so_many_replays_at_the_same_time() -> None:
    addresses = Addresses(AddressLimits(replays=1), Clock())
    one, other = accepted(addresses), accepted(addresses)
    replay, over = one.replay(), other.replay()
    assert isinstance(replay, Replay)
    assert isinstance(over, OverLimit)
    assert over.reason == "address_replays"
    replay.end()
    replay.end()
    assert isinstance(other.replay(), Replay)
    assert isinstance(one.replay(), OverLimit)


def test_so_many_replays_a_second() -> None:
    clock = Clock()
    addresses = Addresses(AddressLimits(replay_rate=Rate(1, 1)), clock)
    one = accepted(addresses)
    assert isinstance(one.replay(), Replay)
    over = one.replay()
    assert isinstance(over, OverLimit)
    assert (over.reason, over.retry_after_s) == ("address_replay_rate", 1)
    clock.now += 1
    assert isinstance(one.replay(), Replay)


def test_replays_of_one_address_share_its_bytes() -> None:
    clock = Clock()
    addresses = Addresses(AddressLimits(replay_bytes=Rate(100, 1_000)), clock)
    one, other, elsewhere = (accepted(addresses, each).replay() for each in (A, A, B))
    assert isinstance(one, Replay)
    assert isinstance(other, Replay)
    assert isinstance(elsewhere, Replay)
    assert one.charge(1_000) == 0
    assert one.charge(100) == 1
    assert other.charge(200) == 3
    assert elsewhere.charge(1_000) == 0
    clock.now += 3
    assert one.charge(0) == 0


def test_a_replay_without_a_limit_of_bytes_never_pauses() -> None:
    replay = accepted(Addresses(AddressLimits(replays=1), Clock())).replay()
    assert isinstance(replay, Replay)
    assert replay.charge(1 << 60) == 0


def test_a_place_ends_all_that_it_has() -> None:
    addresses = Addresses(AddressLimits(connections=1, replays=1), Clock())
    one = accepted(addresses)
    replay = one.replay()
    assert isinstance(replay, Replay)
    Place(one, replay).leave()
    assert isinstance(accepted(addresses).replay(), Replay)
    Place().leave()


def test_limits_of_the_settings() -> None:
    limits = AddressLimits.of(Settings(), WebLimits())
    assert limits.connection_rate == Rate(10, 300)
    assert limits.any
    none: dict[str, Any] = dict.fromkeys(
        (
            *("address_connections", "address_connection_rate", "address_replays"),
            *("address_replay_rate", "address_replay_bytes"),
        )
    )
    assert not AddressLimits.of(Settings(**none), WebLimits()).any
    slow = AddressLimits.of(Settings(address_connection_rate=0.001), WebLimits())
    assert slow.connection_rate == Rate(0.001, 1)


# Proxies


def test_the_visits_of_a_proxys_clients_begin_with_their_requests() -> None:
    addresses = Addresses(AddressLimits(connections=1), Clock())
    peers = Peers(parse_networks("198.51.100.7"), addresses)
    assert peers.arrive("198.51.100.7") is None
    assert peers.arrive(A) is not None
    assert peers.visit(A) is not None
    assert Peers().arrive(A) is None
    assert Peers().visit(A) is None


# What is remembered


def test_nothing_is_remembered_of_an_address_that_has_used_nothing() -> None:
    addresses = Addresses(AddressLimits(connections=1), Clock())
    visits = [accepted(addresses, f"203.0.113.{number}") for number in range(200)]
    assert len(addresses) == 200
    for each in visits:
        each.leave()
    assert len(addresses) == 0


def test_a_flood_of_addresses_does_not_free_one_that_is_over_its_rate() -> None:
    clock = Clock()
    limits = AddressLimits(connection_rate=Rate(1, 10), remembered_max=5)
    addresses = Addresses(limits, clock)
    for _ in range(10):
        accepted(addresses).leave()
    for number in range(10_000):
        accepted(addresses, f"10.{number >> 8}.{number & 255}.1").leave()
        assert len(addresses) <= 5
        clock.now += 1e-5
    refused(addresses)


class Model(RuleBasedStateMachine):
    """As long as few addresses are known, the table decides as one that never forgets."""

    limits = AddressLimits(connections=3, connection_rate=Rate(1, 5), remembered_max=4)
    addresses_known = st.sampled_from([f"203.0.113.{number}" for number in range(4)])

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.table = Addresses(self.limits, self.clock)
        self.visits: list[tuple[str, Visit]] = []
        self.open: defaultdict[str, int] = defaultdict(int)
        self.buckets = defaultdict[str, TokenBucket](lambda: TokenBucket(1, 5, 0.0))

    @rule(address=addresses_known)
    def arrive(self, address: str) -> None:
        expected = self.open[address] < 3 and self.buckets[address].spend(self.clock.now)
        found = visit(self.table, address)
        assert (found.refusal is None) == expected
        self.open[address] += expected
        self.visits.append((address, found))

    @rule(place=st.integers(0, 100))
    def leave(self, place: int) -> None:
        if self.visits:
            address, found = self.visits.pop(place % len(self.visits))
            found.leave()
            self.open[address] -= found.refusal is None

    @rule(seconds=st.sampled_from([0.25, 1.0, 3.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def is_bounded(self) -> None:
        assert len(self.table) <= len({address for address, _ in self.visits}) + 4


TestModel = Model.TestCase
