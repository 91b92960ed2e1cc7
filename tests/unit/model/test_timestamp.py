"""Times in three forms: which are read, and as what."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.model.timestamp import NOT_A_TIME, TIME_MAX, parse_time, to_date

NOW = 1_700_000_000_000_000  # 2023-11-14T22:13:20Z
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "time_us"),
    [
        ("0", 0),
        ("0001", 1),
        ("1725519626134432", 1_725_519_626_134_432),
        ("9" * 20, 10**20 - 1),
        ("-10m", NOW - 600_000_000),
        ("-90s", NOW - 90_000_000),
        ("-2h", NOW - 7_200_000_000),
        ("-3d", NOW - 259_200_000_000),
        ("-1w", NOW - 604_800_000_000),
        ("-1ms", NOW - 1_000),
        ("-1h30m", NOW - 5_400_000_000),
        ("-1.5s", NOW - 1_500_000),
        ("-0s", NOW),
        ("-999999999w", 0),
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-14t22:13:20z", NOW),
        ("2023-11-14 22:13:20Z", NOW),
        ("2023-11-14T22:13:20.5Z", NOW + 500_000),
        ("2023-11-14T22:13:20.000007Z", NOW + 7),
        ("2023-11-14T22:13:20.000007999Z", NOW + 7),
        ("2023-11-15T00:13:20+02:00", NOW),
        ("2023-11-15T00:13:20 02:00", NOW),  # `+` in a query
        ("2023-11-14T17:13:20-05:00", NOW),
        ("2023-11-14T22:13:20-00:00", NOW),
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59Z", 0),
        ("0001-01-01T00:00:00+23:59", 0),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
    ],
)
def test_times_that_are_read(text: str, time_us: int) -> None:
    assert parse_time(text, NOW) == time_us


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "now", "1" * 21, "-1", "+1", " 1", "1\n", "1_000", "1.5", "0x10", "\u0661", "-", "--1s"),
        *("10m", "+10m", "-10", "-10y", "-10M", "-s", "-1h-30m", "-1 h", "-1e3s", "-\u0661s", "-10m\n"),
        *(
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-11-14T22:13Z",
            "20231114T221320Z",
            "2023-W46-2T22:13:20Z",
        ),
        *("2023-11-14T22:13:20+2", "2023-11-14T22:13:20+0200", "2023-11-14T22:13:20  02:00"),
        *(
            "2023-11-14T22:13:20.Z",
            "2023-11-14T22:13:20,5Z",
            "2023-11-14T22:13:20Z\n",
            "2023-11-14X22:13:20Z",
        ),
        *("2023-02-29T00:00:00Z", "2023-13-01T00:00:00Z", "2023-11-14T24:00:00Z", "2023-11-14T22:13:60Z"),
        *("2023-11-14T22:13:20+24:00", "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "-" + "1s" * 40),
        "2023-11-14T22:13:20.0000000000Z",
    ],
)
def test_what_is_no_time_is_refused_with_the_three_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is not a time: ") as caught:
        parse_time(text, NOW)
    assert str(caught.value) == NOT_A_TIME


@given(
    st.datetimes(),
    st.integers(-24 * 60 + 1, 24 * 60 - 1),
    st.sampled_from(["T", "t", " "]),
    st.sampled_from(["+", " "]),
)
def test_a_moment_is_the_same_in_every_zone(
    moment: datetime, offset_min: int, separator: str, plus: str
) -> None:
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=offset_min)))
    text = moment.isoformat(separator, "microseconds")
    hours, minutes = divmod(abs(offset_min), 60)
    text += f"{plus if offset_min >= 0 else '-'}{hours:02}:{minutes:02}"
    assert parse_time(text, NOW) == max(0, (zoned - EPOCH) // timedelta(microseconds=1))


@given(st.integers(0, 10**9 - 1), st.sampled_from(["s", "m", "h", "d"]), st.integers(0, 10**17))
def test_an_age_is_before_now_and_never_below_0(number: int, unit: str, now_us: int) -> None:
    seconds = number * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert parse_time(f"-{number}{unit}", now_us) == max(0, now_us - seconds * 1_000_000)


@given(st.one_of(st.text(), st.text("0123456789-+:.TZ smhd")))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert parse_time(text, NOW) >= 0


@pytest.mark.parametrize(
    ("time_us", "date"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (NOW + 7, "2023-11-14T22:13:20.000007Z"),
        (10**20, "9999-12-31T23:59:59.999999Z"),
        (None, None),
    ],
)
def test_a_time_as_a_date(time_us: int | None, date: str | None) -> None:
    assert to_date(time_us) == date


@given(st.integers(0, TIME_MAX))
def test_a_date_is_read_as_the_same_time(time_us: int) -> None:
    assert parse_time(to_date(time_us) or "", NOW) == time_us
