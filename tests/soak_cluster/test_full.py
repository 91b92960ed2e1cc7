"""The soak at full length: ten faults of each kind and more. `SOAK_SEED` and `SOAK_EACH` change it."""

from __future__ import annotations

import os
import random
import secrets

import pytest
from tests.foreign.cluster.faults import KINDS, schedule
from tests.foreign.cluster.soak import Plan, soak

EACH = int(os.environ.get("SOAK_EACH", "10"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or secrets.randbelow(1_000_000) + 1
AHEAD = ("ingest killed", "ingest frozen", "database killed", "ingest killed")


@pytest.mark.timeout(3600)
async def test_every_fault_many_times_loses_and_repeats_nothing() -> None:
    dice = random.Random(SEED)
    faults = [*AHEAD, *schedule(EACH, dice)]
    assert all(faults.count(kind) >= EACH for kind in KINDS)
    await soak(Plan(SEED, faults, ahead=len(AHEAD)))
