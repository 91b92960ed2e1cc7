"""A strict consumer finds no fault in what the simulator makes, 7,000 commits of each of three worlds."""

from __future__ import annotations

import pytest
from tests.unit.simulator.test_world import SEEDS, check_commits


@pytest.mark.parametrize("seed", SEEDS)
def test_every_commit_passes_the_check_of_a_strict_consumer(seed: int) -> None:
    check_commits(seed, 7_000)
