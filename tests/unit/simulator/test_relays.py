from __future__ import annotations

import pytest

from jetstream.errors import SettingError
from jetstream.simulator.faults import Faults
from jetstream.simulator.relays import Relay, check_relays, parse_relay


def test_a_relay_is_written_as_names_and_values() -> None:
    text = "name=b,port=7780,seq=5000,lag=200ms,loss=0.05,outage=1500ms,every=20s,takedowns=0.01"
    assert parse_relay(text, Faults()) == Relay(
        name="b", port=7780, seq=5000, lag_s=0.2, loss=0.05, outage_s=1.5, every_s=20, takedowns=0.01
    )
    assert parse_relay("name=c", Faults()) == Relay(name="c")
    for nothing in ("0", "none"):
        assert parse_relay(f"name=c,lag={nothing},outage={nothing}", Faults()) == Relay(name="c")


def test_a_relay_may_have_faults_of_its_own_beside_those_of_all() -> None:
    relay = parse_relay("name=b,bit-flipped=0.5,skip=0.1", Faults(skip=0.3, drop=0.2))
    assert relay.faults == Faults(bit_flipped=0.5, skip=0.1, drop=0.2)
    assert parse_relay("name=b", Faults(skip=0.3)).faults is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("b", "'b' is not of the form name=value"),
        ("name=", "'name=' is not of the form name=value"),
        ("name=a,name=b", "has name twice"),
        ("name=a,los=0.1", "los is not one of name, port, seq, lag"),
        ("directory-404=0.1", "is not a fault of the stream|not a fault of the stream"),
        ("loss=much", "loss: 'much' is not a number"),
        ("loss=1.5", "relay.loss: 1.5 is not a share from 0 to 1"),
        ("skip=2", "fault.skip: 2.0 is not a share"),
        ("lag=fast", "lag: 'fast' is not a duration"),
        ("lag=2m", "relay.lag: 120.0 is not from 0 to 60 s"),
        ("port=x", "port: 'x' is not a whole number"),
        ("port=70000", "relay.port: 70000 is not a port"),
        ("seq=-1", "relay.seq: -1 is not a number from 0 to"),
        ("name=a b", "relay.name: 'a b' is not a name such as relay-b"),
        ("loss=nan", "relay.loss: nan is not a share"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, problem: str) -> None:
    with pytest.raises(SettingError, match=problem):
        parse_relay(text, Faults())


def test_relays_that_cannot_be_together_are_refused() -> None:
    with pytest.raises(SettingError, match="'a' is the name of two relays"):
        check_relays((Relay(name="a"), Relay(name="a")), disjoint=False)
    heavy = (Relay(name="a", loss=0.6), Relay(name="b", loss=0.6))
    check_relays(heavy, disjoint=False)
    with pytest.raises(SettingError, match=r"cannot be with losses of 1.2 together"):
        check_relays(heavy, disjoint=True)
