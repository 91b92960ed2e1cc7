"""When to try again: exponential backoff with full jitter, and what a server asks for in Retry-After."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

# Seconds. A server that asks for a longer pause, by mistake or not, is asked again after this.
RETRY_AFTER_MAX_S: Final = 300.0
_DOUBLINGS_MAX: Final = 10  # 1,024 times the first delay; a float overflows after 1,023 doublings


def backoff_s(
    failures: int,
    first_s: float = 1.0,
    max_s: float = 30.0,
    jitter: Callable[[float, float], float] = random.uniform,
) -> float:
    """Return how many seconds to wait after `failures` earlier failures.

    The bound is `first_s`, doubled with each failure up to `max_s`. `jitter` returns a number between 0 and
    it: any of them is as likely, so that many clients that lost one server do not return together.
    """
    return jitter(0, min(max_s, first_s * 2.0 ** min(failures, _DOUBLINGS_MAX)))


def parse_http_date(header: str) -> datetime | None:
    """Read a date of a header field, which any server may have written. None: it is no date.

    The date has no time zone if the text names none.
    """
    try:
        return parsedate_to_datetime(header)
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError):
        # The library computes with any numbers, and takes any part to be there: one above 32 bits is an
        # OverflowError.
        return None


def parse_retry_after(header: str | None, now: datetime | None = None) -> float | None:
    """Read a Retry-After header, which is a number of seconds or a date (RFC 9110, section 10.2.3).

    Returns seconds from now, between 0 and `RETRY_AFTER_MAX_S`; None for no header, and for one that is
    neither.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        date = parse_http_date(header)
        if date is None or date.tzinfo is None:
            return None
        seconds = (date - (now or datetime.now(UTC))).total_seconds()
    return None if math.isnan(seconds) else min(max(seconds, 0.0), RETRY_AFTER_MAX_S)
