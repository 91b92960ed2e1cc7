from __future__ import annotations

import pytest

from jetstream.cli.times import parse_moment
from jetstream.errors import SettingError

NOW = 1_700_000_000_000_000


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1700000000000001", NOW + 1),
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-15T00:13:20.000007+02:00", NOW + 7),
        ("-10m", NOW - 600_000_000),
        ("10m", NOW - 600_000_000),
        ("1h30m", NOW - 5_400_000_000),
        ("7", 7),
    ],
)
def test_moments(text: str, moment: int) -> None:
    assert parse_moment("--since", text, NOW) == moment


@pytest.mark.parametrize("text", ["", "m", "10x", "+10m", "yesterday", "2023-11-14T22:13:20"])
def test_what_is_no_time_is_named_with_its_flag(text: str) -> None:
    with pytest.raises(SettingError) as raised:
        parse_moment("--until", text, NOW)
    assert str(raised.value).startswith(f"--until: {text!r} is not a time")
