"""The fixtures of the integration tests. What is here starts processes, most of them `jetstream` itself."""

from __future__ import annotations

from tests.integration.conftest import another, jetstream, pytest_asyncio_loop_factories, relay, sleeps, start

__all__ = ["another", "jetstream", "pytest_asyncio_loop_factories", "relay", "sleeps", "start"]
