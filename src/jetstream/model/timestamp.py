"""Times as people and programs write them: for cursors, in a query and on the command line. Pure.

    1725519626134432               unix microseconds
    2026-07-04T14:30:00+02:00      RFC 3339
    -1h30m                         an age: so long before now

Everywhere else a time is an integer, in unix microseconds.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

NOT_A_TIME: Final = (
    "is not a time: give unix microseconds, RFC 3339 such as 2026-07-04T14:30:00Z, or an age such as -10m"
)
_CHARS_MAX: Final = 64  # of any of the three forms
# Twenty digits are more than 64 bits; Python's integers have no limit.
_NUMBER: Final = re.compile(r"[0-9]{1,20}", re.ASCII).fullmatch
# Section 5.6, without leap seconds, which Python's dates do not have. In a query, `+` means a space: an
# offset that is not percent-encoded comes as ` 02:00`.
_RFC_3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d{1,9})?(?:[Zz]|([-+ ])(\d\d:\d\d))", re.ASCII
).fullmatch
_AGE: Final = re.compile(r"-((?:[0-9]{1,9}(?:\.[0-9]{1,6})?(?:ms|[smhdw]))+)", re.ASCII).fullmatch
_AGE_PART: Final = re.compile(r"([0-9.]+)(ms|[smhdw])", re.ASCII).findall
# Microseconds of each unit of an age.
_UNIT_US: Final = {
    "ms": 10**3,
    "s": 10**6,
    "m": 60 * 10**6,
    "h": 3_600 * 10**6,
    "d": 86_400 * 10**6,
    "w": 604_800 * 10**6,
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
TIME_MAX: Final = 253_402_300_799_999_999  # the last of the year 9999: dates end there


def parse_time(text: str, now_us: int) -> int:
    """Return the time that a text means, in unix microseconds; a time before 1970 is 0.

    There are three forms: unix microseconds, up to 20 digits; RFC 3339 with an offset or `Z`; and an age, how
    long before `now_us` it was, such as `-90s`, `-10m`, `-2h`, `-3d` or `-1h30m`. What is finer than a
    microsecond is cut off. Raises ValueError, whose text follows the value in a sentence.
    """
    if len(text) > _CHARS_MAX:
        raise ValueError(NOT_A_TIME)
    if _NUMBER(text):
        return int(text)
    if (age := _AGE(text)) is not None:
        parts = _AGE_PART(age[1])
        return max(0, now_us - sum(round(float(number) * _UNIT_US[unit]) for number, unit in parts))
    return max(0, _parse_date(text))


def to_date(time_us: int | None) -> str | None:
    """Return a time as a date of RFC 3339, in UTC with microseconds; one after `TIME_MAX` as that.

    None for None, as for the newest event of an empty log.
    """
    if time_us is None:
        return None
    return (_EPOCH + min(time_us, TIME_MAX) * _MICROSECOND).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _parse_date(text: str) -> int:
    """Parse a date of RFC 3339 into unix microseconds, below 0 before 1970. Raises ValueError."""
    found = _RFC_3339(text)
    if found is None:
        raise ValueError(NOT_A_TIME)
    day, time, fraction, sign, offset = found.groups()
    offset = ("-" if sign == "-" else "+") + offset if sign else "+00:00"
    try:
        moment = datetime.fromisoformat(f"{day}T{time}{(fraction or '')[:7]}{offset}")
    except ValueError as error:
        raise ValueError(NOT_A_TIME) from error
    return (moment - _EPOCH) // _MICROSECOND
