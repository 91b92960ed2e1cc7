"""The clock on the wall, in the unit of a position."""

from __future__ import annotations

import time


def unix_us() -> int:
    """Return the time in unix microseconds."""
    return time.time_ns() // 1000
