from __future__ import annotations

import socket
from pathlib import Path

import pytest

from jetstream import cli


def refused(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run it with arguments that it refuses, and return what it says."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["demo-cluster", *map(str, arguments)])
    assert exit_.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_a_port_that_is_in_use_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = refused("--port", str(port - 3), capsys=capsys)
    assert line.startswith(
        f"jetstream: --port: {port - 3} cannot be used: ports {port - 3} to {port + 5} are needed"
    )
    assert "0 takes some that are free" in line


def test_a_directory_with_other_files_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    line = refused("--port", "0", "--dir", tmp_path, capsys=capsys)
    assert (
        line == f"jetstream: --dir: {str(tmp_path)!r} has other files: give an empty directory, or a new name"
    )


def test_an_upstream_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused("--upstream", "http://u:secret@", capsys=capsys).startswith("jetstream: --upstream: ")
