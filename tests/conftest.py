"""Settings of the test tools."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest
from hypothesis import settings

# The same examples every time, so that a failure can be reproduced. No deadline: machines are shared.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exempt the tests themselves from garbage collections: there are millions of their objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture
def only_new_objects() -> None:
    """Exempt everything that there is from garbage collections, so that those of a test are quick."""
    gc.collect()
    gc.freeze()
