from __future__ import annotations

import pytest

from jetstream import cli
from jetstream.cli.tail import _indented, _start
from jetstream.errors import SettingError


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--since", "yesterday"], "--since: 'yesterday' is not a time: give unix microseconds, RFC 3339"),
        (["--since", "2026-07-04"], "--since: '2026-07-04' is not a time: give unix microseconds, RFC 3339"),
        (["--since", "10m", "--cursor", "5"], "--since: '10m' cannot be given together with --cursor 5"),
        (["--cursor", "now"], 'Invalid value for --cursor: unable to convert "now" into int.'),
        (["--cursor", "-5"], 'Invalid value "-5" for --cursor. Must be >= 0.'),
        (["--limit", "0"], 'Invalid value "0" for --limit. Must be >= 1.'),
        (["--heartbeat", "301"], 'Invalid value "301" for --heartbeat. Must be <= 300.'),
        (["--limit", "few"], 'Invalid value for --limit: unable to convert "few" into int.'),
        (["--did", "alice"], "--did: 'alice' is not a DID, such as did:plc:…"),
        (["--collection", "app"], "--collection: 'app' is neither a collection,"),
        (["ftp://jetstream.example"], "URL: 'ftp://jetstream.example' is not a host or URL such as"),
        (["localhost?compress=true"], "URL: 'localhost?compress=true' has compress, but"),
        (["--wanted", "x"], "Unknown option: --wanted."),
    ],
)
def test_a_bad_value_exits_2_with_one_line_that_names_it(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["tail", *arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert err.startswith(f"jetstream: {error}")
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize(
    ("since", "cursor", "start"),
    [
        (None, None, None),
        (None, 0, 0),
        (None, 7, 7),
        ("10m", None, 1_000_000_000_000_000 - 600_000_000),
        ("-10m", None, 1_000_000_000_000_000 - 600_000_000),
        ("1h30m", None, 1_000_000_000_000_000 - 5_400_000_000),
        ("1ms", None, 1_000_000_000_000_000 - 1000),
        ("99999w", None, 0),
        ("7", None, 7),
        ("2023-11-14T22:13:20Z", None, 1_700_000_000_000_000),
        ("2023-11-14t22:13:20z", None, 1_700_000_000_000_000),
    ],
)
def test_the_start_is_a_cursor_or_an_age(since: str | None, cursor: int | None, start: int | None) -> None:
    assert _start(since, cursor, clock=lambda: 1_000_000_000_000_000) == start


def test_an_age_and_a_cursor_exclude_each_other() -> None:
    with pytest.raises(SettingError):
        _start("10m", 0)


def test_pretty_events_keep_every_digit_and_every_character() -> None:
    raw = b'{"a":[123456789012345678901234567890,1.50],"b":"\\ud800 \xc3\xa9"}'
    shown = _indented(raw)
    assert shown == (
        b'{\n  "a": [\n    123456789012345678901234567890,\n    1.5\n  ],\n  "b": "\\ud800 \xc3\xa9"\n}'
    )
