"""The soak at full length: ten faults of each kind. Variables change it:

SOAK_SEED   repeats a run, as far as processes can
SOAK_EACH   how many faults of each kind
SOAK_FAULTS these instead, such as "edge frozen, primary lost"
SOAK_RATE   messages a second
"""

from __future__ import annotations

import os
import random
import secrets

import pytest
from tests.foreign.cluster.faults import KINDS, schedule
from tests.foreign.cluster.soak import Plan, soak

SEED = int(os.environ.get("SOAK_SEED", "0")) or secrets.randbelow(1_000_000) + 1
EACH = int(os.environ.get("SOAK_EACH", "10"))
FAULTS = [each.strip() for each in os.environ.get("SOAK_FAULTS", "").split(",") if each.strip()]
RATE = float(os.environ.get("SOAK_RATE", "60"))
# While the clock of the standby is two hours ahead.
AHEAD = ("ingest killed", "ingest frozen", "database killed", "ingest killed")


@pytest.mark.timeout(7200)
async def test_every_fault_many_times_loses_and_repeats_nothing() -> None:
    assert set(FAULTS) <= set(KINDS), f"there are {', '.join(KINDS)}"
    faults = FAULTS or [*AHEAD, *schedule(EACH, random.Random(SEED))]
    await soak(Plan(SEED, faults, ahead=0 if FAULTS else len(AHEAD), rate=RATE))
