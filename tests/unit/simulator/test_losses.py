from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest

from jetstream.simulator.losses import Fate, Losses
from jetstream.simulator.relays import Relay

STEP_US = 2500


def fates(relays: list[Relay], count: int = 20_000, *, seed: int = 1, disjoint: bool) -> list[list[Fate]]:
    losses = Losses(relays, seed, disjoint=disjoint)
    return [losses.fates(STEP_US * n) for n in range(1, count + 1)]


def pair(**options: Any) -> list[Relay]:
    return [Relay(name="a", **options), Relay(name="b", **options)]


@pytest.mark.parametrize(
    "options", [{"loss": 0.05}, {"outage_s": 1.5, "every_s": 5}, {"loss": 0.3, "outage_s": 0.5}]
)
def test_disjoint_losses_leave_each_message_to_all_relays_but_one(options: dict[str, float]) -> None:
    found = fates(pair(**options), disjoint=True)
    assert max(2 - row.count(Fate.SENT) for row in found) == 1
    assert all(any(row[place] is not Fate.SENT for row in found) for place in (0, 1))


def test_independent_losses_meet() -> None:
    found = fates(pair(loss=0.1), disjoint=False)
    both = sum(row == [Fate.LOST, Fate.LOST] for row in found)
    assert 0.007 < both / len(found) < 0.013


@pytest.mark.parametrize("disjoint", [True, False])
def test_each_relay_loses_its_share(disjoint: bool) -> None:
    found = fates([Relay(name="a", loss=0.05), Relay(name="b", loss=0.2)], disjoint=disjoint)
    for place, share in enumerate((0.05, 0.2)):
        lost = sum(row[place] is Fate.LOST for row in found) / len(found)
        assert share * 0.85 < lost < share * 1.15


def test_an_outage_has_a_length_up_to_the_longest() -> None:
    found = fates([Relay(outage_s=1.5, every_s=3)], disjoint=False)
    lengths = [
        len(list(run)) * STEP_US / 1e6 for out, run in groupby(row[0] is Fate.OUT for row in found) if out
    ]
    assert len(lengths) > 5
    assert 1 < max(lengths) <= 1.5 + STEP_US / 1e6
    assert min(lengths) < 0.8


@pytest.mark.parametrize("disjoint", [True, False])
def test_the_same_seed_loses_the_same(disjoint: bool) -> None:
    first, again, other = (
        fates(pair(loss=0.1, outage_s=0.2), 2000, seed=seed, disjoint=disjoint) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_relays_without_losses_send_everything() -> None:
    assert fates(pair(), 10, disjoint=True) == [[Fate.SENT, Fate.SENT]] * 10
