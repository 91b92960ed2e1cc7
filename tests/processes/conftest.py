"""The fixtures of the integration tests. What is here starts processes, most of them `jetstream` itself."""

from __future__ import annotations

from tests.integration.conftest import jetstream, pytest_asyncio_loop_factories, relay, start

__all__ = ["jetstream", "pytest_asyncio_loop_factories", "relay", "start"]
