"""Back-off and Retry-After."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
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
        ("Wed, 21 Oct 99999999999 07:28:00 GMT", None),
        ("Wed, 99999999999999999999 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +99999999999999999999", None),
        ("Wed, 21 Oct 2015 07:666666666666:28:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -2359", RETRY_AFTER_MAX_S),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0.0),
        ("9" * 5_000, RETRY_AFTER_MAX_S),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, NOW) == seconds


DATES = ["Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21-Oct-15 07:28:00 +2359", "Wed Oct 21 07:28:00 2015"]
PARTS = st.one_of(
    st.from_regex(r"[-+]?[0-9]{1,25}", fullmatch=True), st.text('0123456789 ,:.-+GMT()"', max_size=9)
)


@st.composite
def mutated_dates(draw: st.DrawFn) -> str:
    """Return a date of which up to three parts are others."""
    text = draw(st.sampled_from(DATES))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(PARTS) + text[start + draw(st.integers(0, 5)) :]
    return text


@settings(max_examples=300)
@given(st.one_of(st.text(), mutated_dates()))
def test_no_header_is_an_error(header: str) -> None:
    seconds = parse_retry_after(header)
    assert seconds is None or 0 <= seconds <= RETRY_AFTER_MAX_S
