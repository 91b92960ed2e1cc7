"""The soak finds it when a safeguard is removed. So its silence means something."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.foreign.cluster.mutants import MUTANTS, Mutant, apply
from tests.foreign.cluster.soak import Plan, SoakFailed, soak

SEED = int(os.environ.get("SOAK_SEED", "1"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: each.name)
async def test_the_soak_fails_without(mutant: Mutant, tmp_path: Path) -> None:
    source = apply(mutant, tmp_path)
    with pytest.raises(SoakFailed) as failed:
        await soak(Plan(SEED, mutant.faults, source=source))
    kinds = {each.kind for each in failed.value.problems}
    assert kinds & mutant.problems, failed.value
