"""The fixtures of the integration tests. What is here takes many clients, much data, or attacks."""

from __future__ import annotations

from tests.integration.conftest import pytest_asyncio_loop_factories, relay, start

__all__ = ["pytest_asyncio_loop_factories", "relay", "start"]
