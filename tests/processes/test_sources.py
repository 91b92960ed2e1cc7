"""`jetstream serve` reads the file of its upstreams again."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.builders import identity
from tests.relay import Relay
from tests.serving import process


@pytest.fixture
async def another() -> AsyncIterator[Relay]:
    async with Relay() as relay:
        yield relay


def publish(relay: Relay, *seqs: int) -> None:
    """Publish identities, each with a handle of its own: equal ones pass once."""
    relay.publish([(seq, identity(seq, handle=f"number-{seq}.test")) for seq in seqs])


async def test_sighup_reads_the_file_of_a_server_again(relay: Relay, another: Relay, tmp_path: Path) -> None:
    file = tmp_path / "pds.txt"
    file.write_text("# none yet\n")
    publish(relay, 1)
    flags = ("--upstream-file", str(file), "--upstream-cursor", f"127.0.0.1:{relay.port}=0")
    async with process(relay.url, tmp_path / "data", *flags) as server:
        await relay.wait_accepted(1)
        file.write_text(f"blue={another.url}\n")
        server.signal(signal.SIGHUP)
        line = await server.says("the file was read again")
        assert (line["added"], line["unchanged"]) == ("1: blue", 1)
        await another.wait_accepted(1)
        file.write_text("blue=\n")
        server.signal(signal.SIGHUP)
        line = await server.says("the file cannot be used")
        assert (line["level"], "line 1: 'blue='" in line["error"]) == ("error", True)
        file.write_text("")
        server.signal(signal.SIGHUP)
        await server.says("the file was read again", len(server.log))
        assert (relay.accepted, another.accepted) == (1, 1)
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
