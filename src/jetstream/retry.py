"""When to try again: exponential back-off with full jitter, and what a server says in Retry-After."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0
RETRY_AFTER_MAX_S: Final = 300.0  # a server that asks for more, by mistake or not, is asked again after this
_DOUBLINGS_MAX: Final = 10  # well past BACKOFF_MAX_S, well before a float overflows


def backoff_s(failures: int) -> float:
    """Return a delay in seconds after `failures` earlier ones: exponential from 1 to 30, with full jitter."""
    longest = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures, _DOUBLINGS_MAX))
    return random.uniform(0, longest)  # noqa: S311 - spreads load, keeps no secret


def parse_retry_after(header: str | None, now: datetime | None = None) -> float | None:
    """Read a Retry-After header, seconds or a date, as seconds from now; None for none that can be read.

    Source: RFC 9110, section 10.2.3.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - (now or datetime.now(UTC))).total_seconds()
        except (ValueError, TypeError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), RETRY_AFTER_MAX_S)
