"""A cluster in which twelve things break: nothing is lost, and nothing comes twice."""

from __future__ import annotations

import os
import random

import pytest
from tests.foreign.cluster.faults import schedule
from tests.foreign.cluster.soak import Plan, soak

FAULTS = 12
SEED = int(os.environ.get("SOAK_SEED", "1"))


@pytest.mark.timeout(600)
async def test_twelve_faults_lose_and_repeat_nothing() -> None:
    # The clock of the standby is wrong at first, and keeps it from leading.
    faults = ["ingest killed", *schedule(1, random.Random(SEED), FAULTS - 1)]
    await soak(Plan(SEED, faults, ahead=1))
