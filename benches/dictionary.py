"""A zstd dictionary for benchmarks with compressed messages, trained on simulated events."""

from __future__ import annotations

from typing import Final

import zstandard
from benches.events import Network

from jetstream.delivery.renderers.classic import CLASSIC

EVENTS: Final = 5_000
BYTES: Final = 112_640  # as many as the public one has


def trained_dictionary() -> bytes:
    """Return a dictionary for the events of the classic wire."""
    samples: list[bytes | bytearray | memoryview] = []
    for batch in Network().batches(EVENTS, 100):
        samples += CLASSIC.render(batch, range(len(batch)))
    return zstandard.train_dictionary(BYTES, samples).as_bytes()
