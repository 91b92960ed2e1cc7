"""Verdicts over 100,000 messages with faults and key rotations, for three seeds."""

from __future__ import annotations

import pytest
from tests.ledger import VERDICTS, Run

from jetstream.simulator.world import Population

MESSAGES = 100_000


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_each_fault_gets_its_verdict_and_nothing_else_does(seed: int) -> None:
    run = Run(seed, 0.002, Population(repos=200, records=50, lifecycle=0.02))
    run.advance(MESSAGES)
    assert {fault for fault, _ in run.seen} >= {*VERDICTS, "rev_back", "copy"}
    assert {label for fault, label in run.seen if not fault} == {"ok", "gap", "replay", "none"}
