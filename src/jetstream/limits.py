"""Limits and tunables of the server, one frozen value for each package.

They are passed in, so that a test or an embedder can choose others. A limit that a specification sets stands
beside the code that enforces it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class UpstreamLimits:
    """What one upstream may send, and how long the server waits for it."""


@dataclass(frozen=True, slots=True)
class LogLimits:
    """What the event log keeps in memory, and how its upkeep is paced."""


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """How events are written to subscribers: sizes of writes, pauses, and what may wait."""


@dataclass(frozen=True, slots=True)
class WebLimits:
    """What clients may send over HTTP and WebSocket, and for how long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a whole server."""

    upstream: UpstreamLimits = field(default_factory=UpstreamLimits)
    log: LogLimits = field(default_factory=LogLimits)
    delivery: DeliveryLimits = field(default_factory=DeliveryLimits)
    web: WebLimits = field(default_factory=WebLimits)
