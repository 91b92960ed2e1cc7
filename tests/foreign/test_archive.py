"""Libraries that read an archive, unmodified. There is none: they show a clear 501."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.builders import identity, sync
from tests.foreign.clients import HERE, environment
from tests.programs import program
from tests.relay import Relay
from tests.serving import Start, published
from tests.tls import behind_tls, certificate

pytestmark = pytest.mark.timeout(1200)
PYTHON = HERE / "python"


@pytest.fixture(scope="module")
def atproto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python with `atproto`."""
    return environment("atproto.txt", tmp_path_factory.mktemp("atproto"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a certificate."""
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def lakehouse(authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python with `jetstream-lakehouse`, which trusts the certificate."""
    interpreter = environment("lakehouse.txt", tmp_path_factory.mktemp("lakehouse"))
    command = (interpreter, "-c", "import certifi; print(certifi.where())")
    bundle = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    bundle.write_bytes(bundle.read_bytes() + authority.read_bytes())
    return interpreter


@asynccontextmanager
async def origin(port: int, authority: Path) -> AsyncIterator[str]:
    async with behind_tls(port, authority) as outside:
        yield f"https://127.0.0.1:{outside}"


async def test_a_replay_with_atproto_shows_the_error(atproto: Path, relay: Relay, start: Start) -> None:
    service = await start()
    where = f"http://127.0.0.1:{service.port}"
    async with program(atproto, PYTHON / "archive.py", "atproto", where) as asking:
        line = await asking.line()
    assert "501" in line
    assert "MethodNotImplemented" in line
    assert "keeps no archive" in line


async def test_a_replay_with_lakehouse_shows_the_status(
    lakehouse: Path, authority: Path, relay: Relay, start: Start
) -> None:
    service = await start()
    async with (
        origin(service.port, authority) as where,
        program(lakehouse, PYTHON / "archive.py", "jetstream-lakehouse", where) as asking,
    ):
        line = await asking.line()
    assert line.startswith("JetstreamError")
    assert "HTTP 501" in line


async def test_lakehouse_reads_the_stream_from_the_oldest_event(
    lakehouse: Path, authority: Path, relay: Relay, start: Start
) -> None:
    relay.publish([(1, identity(1)), (2, sync(2)), (3, identity(3))])
    service = await start(upstream_cursor=0)
    await published(service, 3)
    async with origin(service.port, authority) as where:
        trusting = (f"SSL_CERT_FILE={authority}", lakehouse)
        async with program("env", *trusting, PYTHON / "lakehouse.py", where) as reading:
            events = [line.split() for line in await reading.lines(3)]
    assert [kind for _, kind in events] == ["identity", "sync", "identity"]
    assert int(events[-1][0]) == service.log.tip
