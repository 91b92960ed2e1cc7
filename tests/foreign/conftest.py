"""The fixtures of the integration tests, and how a missing program is handled."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest
from tests.integration.conftest import pytest_asyncio_loop_factories, relay, start

__all__ = ["missing", "pytest_asyncio_loop_factories", "relay", "start"]


def missing(program: str) -> NoReturn:
    """Skip a test that needs a program; in CI, which installs it, fail instead, unless it could not."""
    reason = f"{program} is not installed"
    if os.environ.get("DEBIAN_ARCHIVE") == "silent":  # set by .ci/run
        pytest.skip(f"{reason}, and Debian's archive does not answer")
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
