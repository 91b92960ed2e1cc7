"""A server and a relay as in the integration tests, for tests that take longer than two seconds."""

from __future__ import annotations

from tests.integration.conftest import pytest_asyncio_loop_factories, relay, start

__all__ = ["pytest_asyncio_loop_factories", "relay", "start"]
