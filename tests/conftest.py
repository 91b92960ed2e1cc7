"""Settings of the test tools."""

from __future__ import annotations

import gc

from hypothesis import settings

# The same examples every time, so that a failure can be reproduced. No deadline: machines are shared.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


def pytest_collection_finish() -> None:
    """Exempt the tests themselves from garbage collections: there are millions of their objects."""
    gc.collect()
    gc.freeze()
