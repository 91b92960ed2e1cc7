"""How often to kill: `pytest tests/crash --kills=200`."""

from __future__ import annotations

import pytest

KILLS = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=KILLS, help="how often a crash test kills its process")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    # The option is there only when this directory is named on the command line.
    return int(request.config.getoption("--kills", default=KILLS))
