"""How long to fuzz: `pytest tests/fuzz --fuzz-seconds=300`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from random import SystemRandom
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

ROUND_EXAMPLES = (
    200  # of one seed: enough for hypothesis to vary what it has found, few enough to end in time
)

# Give a check, the cases it must hold for, and how many of them take about five seconds.
Fuzz = Callable[[Callable[[Any], None], st.SearchStrategy[Any], int], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-seconds", type=float, default=0, help="how long each fuzzer runs, with new seeds; else five"
    )


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """Return what runs a check on many cases: the same each time, or new ones for `--fuzz-seconds`."""
    # The option is there only when this directory is among those to be run.
    seconds = float(request.config.getoption("--fuzz-seconds", default=0))

    def run(check: Callable[[Any], None], cases: st.SearchStrategy[Any], examples: int) -> None:
        if seconds:
            _explore(check, cases, seconds)
        else:
            _settings(examples, derandomize=True)(given(cases)(check))()

    return run


def _explore(check: Callable[[Any], None], cases: st.SearchStrategy[Any], seconds: float) -> None:
    """Run rounds with new seeds until the time is over. A failure shows its seed and its smallest case."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number = SystemRandom().getrandbits(64)
        sys.stderr.write(f"fuzz: seed {number}\n")
        seed(number)(_settings(ROUND_EXAMPLES)(given(cases)(check)))()


def _settings(examples: int, *, derandomize: bool = False) -> settings:
    return settings(
        max_examples=examples,
        derandomize=derandomize,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
