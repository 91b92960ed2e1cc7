"""Back-off and Retry-After."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.retry import RETRY_AFTER_MAX_S, backoff_s, parse_retry_after

NOW = datetime(2026, 7, 4, 12, 0, 0, tzinfo=UTC)


@given(st.integers(0, 10**9))
def test_a_delay_is_never_above_its_step_nor_above_half_a_minute(failures: int) -> None:
    assert 0 <= backoff_s(failures) <= min(2 ** min(failures, 10), 30)


def test_the_delay_is_anything_up_to_its_bound_which_doubles() -> None:
    def longest(low: float, high: float) -> float:
        assert low == 0
        return high

    assert [backoff_s(failures, jitter=longest) for failures in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert [backoff_s(failures, 0.25, 0.75, longest) for failures in range(4)] == [0.25, 0.5, 0.75, 0.75]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("nan", None),
        ("inf", RETRY_AFTER_MAX_S),
        ("100000", RETRY_AFTER_MAX_S),
        ("Sat, 04 Jul 2026 12:00:30 GMT", 30.0),
        ("Sat, 04 Jul 2026 11:00:00 GMT", 0.0),
        ("Sat, 04 Jul 2026 12:00:30", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, NOW) == seconds


@given(st.text())
def test_no_header_is_an_error(header: str) -> None:
    seconds = parse_retry_after(header)
    assert seconds is None or 0 <= seconds <= RETRY_AFTER_MAX_S
