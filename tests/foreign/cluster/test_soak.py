"""A cluster in which twelve things break: nothing is lost, nothing comes twice. `make soak-cluster` goes on."""

from __future__ import annotations

import os
import random

import pytest
from tests.foreign.cluster.faults import schedule
from tests.foreign.cluster.soak import Plan, soak
from tests.foreign.conftest import missing

from jetstream.cluster.postgres import PostgresMissing, find_binaries

FAULTS = 12
SEED = int(os.environ.get("SOAK_SEED", "1"))


@pytest.fixture(autouse=True)
def _postgresql() -> None:
    try:
        find_binaries()
    except PostgresMissing:
        missing("PostgreSQL")


@pytest.mark.timeout(600)
async def test_twelve_faults_lose_and_repeat_nothing() -> None:
    dice = random.Random(SEED)
    # The clock of the standby is wrong at first, and keeps it from leading.
    faults = ["ingest killed", *schedule(1, dice, FAULTS - 1)]
    await soak(Plan(SEED, faults, ahead=1))
