"""What `jetstream keys import` says of its progress, and of a wrong command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.unit.identity.fakes import Clock

from jetstream import cli
from jetstream.cli.keys import Report
from jetstream.identity.export import Progress
from jetstream.identity.store import export_lock


def progress(operations: int) -> Progress:
    return Progress(operations=operations, newest_us=1_700_000_000_000_000)


def test_on_a_terminal_one_line_is_written_again(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = Report(True, clock)
    for number in range(5):
        clock.passed += 0.2
        report.note(progress(5_000 + number * 1_000))
    report.end()
    report.end()
    text = capsys.readouterr().err
    assert text.split("\r")[1:] == [
        f"{'6,000 operations, 5,000/s, up to 2023-11-14T22:13:20+00:00':<70}",
        f"{'8,000 operations, 5,000/s, up to 2023-11-14T22:13:20+00:00':<70}\n",
    ]


def test_elsewhere_there_is_a_line_now_and_then() -> None:
    clock = Clock()
    report = Report(False, clock)
    with capture_logs() as logs:
        for number in range(100):
            report.note(progress(number * 1_000))
            clock.passed += 1
        report.end()
    assert [(line["operations"], line["per_s"]) for line in logs] == [
        (30_000, 1_000),
        (60_000, 1_000),
        (90_000, 1_000),
    ]


@pytest.mark.parametrize("url", ["plc.directory", "ftp://plc.directory", "https://me:secret@plc/?x=1"])
def test_a_wrong_directory_is_one_line(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["keys", "import", "--plc-url", url, "--data-dir", str(tmp_path)])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("jetstream: --plc-url: ")
    assert text.count("\n") == 1
    assert "secret" not in text


COMMANDS = [["keys", "import", "--plc-url", "http://127.0.0.1:1"], ["log", "stats"], ["dictionary", "fetch"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_data_directory_that_is_a_file_is_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--data-dir", f"{tmp_path}/file"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"jetstream: --data-dir: '{tmp_path}/file' is not a directory\n"


@pytest.mark.parametrize("command", COMMANDS[:2])
def test_an_empty_variable_means_the_default_directory(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JETSTREAM_DATA_DIR", "")
    with export_lock(tmp_path / "data"), pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("jetstream: data/")


def test_of_several_directories_in_the_variable_the_first_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JETSTREAM_PLC_URL", "ftp://first.example, https://second.example")
    with pytest.raises(SystemExit):
        cli.main(["keys", "import", "--data-dir", str(tmp_path)])
    line = capsys.readouterr().err
    assert line == "jetstream: --plc-url: 'ftp://first.example' is not an http or https URL\n"


def test_the_help_says_what_an_interrupt_does_and_what_the_exit_codes_mean(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["keys", "import", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for said in ("Ctrl-C is safe", "the next run goes on", "0 all keys are there", "130 interrupted"):
        assert said in text


def test_two_imports_into_one_directory_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with export_lock(tmp_path), pytest.raises(SystemExit) as ended:
        cli.main(["keys", "import", "--data-dir", str(tmp_path)])
    assert ended.value.code == 1
    assert "keys.lock: another process imports keys into this directory" in capsys.readouterr().err
