from __future__ import annotations

import pytest
from tests.ledger import VERDICTS, Run

from jetstream.simulator import faults

# Messages of the fast run. `make soak` takes 100,000 (tests/soak/test_verification.py).
MESSAGES = 2_000


@pytest.mark.parametrize("seed", [1, 2])
def test_each_fault_gets_its_verdict_and_nothing_else_does(seed: int) -> None:
    run = Run(seed, 0.012)
    run.advance(MESSAGES)
    found = {fault for fault, _ in run.seen}
    assert found >= {*VERDICTS, "rev_back", "too_big", "deep_record", "copy", *faults.FORGED}
    assert {label for fault, label in run.seen if not fault} == {"ok", "gap", "replay", "none"}


def test_without_faults_every_commit_is_ok() -> None:
    run = Run(3, 0)
    run.advance(1_000)
    assert {label for _, label in run.seen} == {"ok", "replay", "none"}
    assert run.seen["", "ok"] > 700
