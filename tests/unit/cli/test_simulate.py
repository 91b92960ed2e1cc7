"""`jetstream simulate` and `jetstream record` refuse what cannot be done, in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jetstream import cli, logging_setup

SMALL = ["--repos", "10", "--records", "5"]
Failed = Callable[..., tuple[object, str]]


@pytest.fixture
def failed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Failed:
    """Run a command in this process that fails. Return its exit code and its standard error."""
    # What is set up here would stay for the tests after this one, and write to a stream that is closed then.
    monkeypatch.setattr(logging_setup, "configure", lambda *_: None)

    def run_here(*arguments: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        return ended.value.code, capsys.readouterr().err

    return run_here


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["simulate", "--no-serve"], "needs --events"),
        (["simulate", "--repos", "0"], "--repos"),
        (["simulate", "--seed", "1", "--start", "yesterday"], "'yesterday' is not a date and time"),
        (["simulate", "--relay", "name=a,los=1"], "los is not one of name, port, seq, lag"),
        (["simulate", "--relay", "name=a", "--relay", "name=a", *SMALL], "is the name of two relays"),
        (["simulate", "--did-web", "2"], "--did-web"),
        (["simulate", "--port", "65535", "--pds", "1", *SMALL], "too few ports for 2 hosts"),
        (["simulate", "--start", "2026-01-01T00:00:00Z"], "needs --seed"),
        (["simulate", "--replay", "x", "--pds", "1", "--seed", "1"], "'x' cannot be with --seed, --pds"),
        (["simulate", "--replay", "x", "--fault.drop", "1", "--no-serve"], "with --no-serve, --fault."),
        (["simulate", "--replay", "x", "--record", "y", "--events", "9"], "with --events, --record"),
        (["simulate", "--fault", "0.5"], "Unknown option: --fault"),
        (["simulate", "--fault.drop", "2"], "fault.drop: 2.0 is not a share from 0 to 1"),
        (["record", "x", "--upstream", "http://"], "is not a host or URL"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], output: str, failed: Failed) -> None:
    code, line = failed(*arguments)
    assert (code, line.count("\n")) == (2, 1), line
    assert output in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "--truth", "/nowhere/at/all"],
        ["simulate", "--replay", "/nowhere/at/all"],
        ["record", "/nowhere/at/all", "--upstream", "localhost"],
    ],
)
def test_a_file_that_cannot_be_opened_is_one_line(arguments: list[str], failed: Failed) -> None:
    code, line = failed(*arguments)
    assert (code, line.count("\n")) == (1, 1), line
    assert "/nowhere/at/all" in line
