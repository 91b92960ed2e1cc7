"""What `jetstream serve` prints when it cannot start: one line, and the right exit code."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import pytest
from tests.relay import Relay
from tests.serving import Start


async def fail_to_start(*flags: str) -> tuple[int | None, list[str]]:
    """Run `jetstream serve` to its end; return its exit code and its lines on standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jetstream", "serve", "--log-level", "error", *flags),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    return process.returncode, said.decode().splitlines()


@pytest.mark.parametrize("flag", ["--listen", "--metrics-listen"])
async def test_an_address_in_use_is_named(flag: str, relay: Relay, tmp_path: Path) -> None:
    flags = {"--listen": "127.0.0.1:0", "--upstream": relay.url, "--data-dir": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, lines = await fail_to_start(
            *(word for pair in (flags | {flag: address}).items() for word in pair)
        )
    assert (code, lines) == (
        2,
        [f"jetstream: {flag}: '{address}' cannot be listened on: Address already in use"],
    )
    assert relay.asked == []


async def test_an_address_of_another_machine_is_named(relay: Relay, tmp_path: Path) -> None:
    code, lines = await fail_to_start(
        "--listen", "192.0.2.1:0", "--upstream", relay.url, "--data-dir", str(tmp_path)
    )
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("jetstream: --listen: '192.0.2.1:0' cannot be listened on: ")


async def test_a_data_directory_that_cannot_be_created_is_named(relay: Relay, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, lines = await fail_to_start("--upstream", relay.url, "--data-dir", str(tmp_path / "file" / "data"))
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(f"jetstream: --data-dir: '{tmp_path}/file/data' cannot be created: ")


async def test_a_log_that_another_server_has_open_is_not_touched(
    relay: Relay, start: Start, tmp_path: Path
) -> None:
    await start()
    code, lines = await fail_to_start(
        "--upstream", relay.url, "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path)
    )
    assert (code, len(lines)) == (1, 1)
    assert str(tmp_path) in lines[0]


async def test_a_file_that_is_not_a_log_is_not_touched(relay: Relay, tmp_path: Path) -> None:
    database = tmp_path / "jetstream.db"
    database.write_bytes(b"somebody's letters, not a database at all" * 100)
    code, lines = await fail_to_start(
        "--upstream", relay.url, "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path)
    )
    assert (code, len(lines)) == (1, 1)
    assert str(database) in lines[0]
    assert database.read_bytes().startswith(b"somebody's letters")
