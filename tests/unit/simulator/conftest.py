from __future__ import annotations

from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[4] / "shared" / "fixtures"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Give the directory of the protocol's own vectors, which are not part of this project."""
    if not FIXTURES.is_dir():
        pytest.skip(f"the protocol's vectors are not at {FIXTURES}")
    return FIXTURES
