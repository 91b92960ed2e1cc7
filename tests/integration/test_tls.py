"""TLS of the server itself, over real sockets."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs
from tests.builders import identity
from tests.relay import Relay, numbered
from tests.serving import LOOPBACK, Start, connected, published, running, until
from tests.subscriber import Subscriber
from tests.tls import certificate
from tests.unit.web.test_proxy_head import v1
from websockets.asyncio.client import connect

from jetstream.app import Service
from jetstream.errors import SettingError
from jetstream.limits import Limits, RuntimeLimits, WebLimits
from jetstream.settings import Settings, parse_networks
from jetstream.web.certificate import expiry

PATIENCE_S = 20.0
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def trusting(pem: Path) -> ssl.SSLContext:
    """Return the context of a client that knows a certificate."""
    return ssl.create_default_context(cafile=pem)


def dated(pem: Path, seconds: int) -> None:
    """Give a file another time: two writes of a test may have the same."""
    os.utime(pem, (seconds, seconds))


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    """Write a certificate, and its key into the same file."""
    return certificate(tmp_path)


@pytest.fixture
async def service(start: Start, pem: Path) -> Service:
    return await start(tls_cert=pem, upstream_cursor=0)


@asynccontextmanager
async def subscribed(
    service: Service, pem: Path, path: str = "/subscribe", receive_buffer: int | None = None
) -> AsyncIterator[Subscriber]:
    sock = await connected(service.port, receive_buffer)
    url = f"wss://127.0.0.1:{service.port}{path}"
    async with connect(
        url, sock=sock, ssl=trusting(pem), compression=None, max_size=None, ping_interval=None, proxy=None
    ) as connection:
        yield Subscriber(connection)


async def fetch(service: Service, pem: Path, path: str = "/health") -> tuple[int, str]:
    connector = aiohttp.TCPConnector(ssl=trusting(pem))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"https://127.0.0.1:{service.port}{path}") as response,
    ):
        return response.status, await response.text()


async def test_pages_and_their_urls(service: Service, pem: Path) -> None:
    assert (await fetch(service, pem))[0] == 200
    base = f"127.0.0.1:{service.port}"
    status, text = await fetch(service, pem, "/subscribe")
    assert status == 426
    assert f"wss://{base}/subscribe" in text
    assert f"https://{base}/events" in text
    assert (await fetch(service, pem, "/nothing"))[0] == 404


async def test_when_the_certificate_expires_is_a_metric(service: Service, pem: Path) -> None:
    _, text = await fetch(service, pem, "/metrics")
    [value] = re.findall(r"^jetstream_certificate_expires_seconds (\S+)$", text, re.MULTILINE)
    assert float(value) == expiry(pem).timestamp()


async def test_a_websocket_gets_events_and_the_reason_of_its_end(
    service: Service, pem: Path, relay: Relay
) -> None:
    async with subscribed(service, pem) as live, subscribed(service, pem, "/subscribe?limit=2") as limited:
        for seq in range(1, 4):
            relay.publish(numbered([identity(seq)]))
            assert (await live.event())["identity"]["seq"] == seq
        assert len(await limited.rest()) == 2
        assert limited.connection.close_code == 1000
        service.stop()
        code, text, _ = await live.ended_at()
        assert (code, text) == (1001, "the server is shutting down: connect again")


async def test_a_client_that_says_goodbye_is_answered(service: Service, pem: Path) -> None:
    async with subscribed(service, pem) as subscriber:
        await subscriber.connection.ping()
    assert subscriber.connection.close_code == 1000
    await until(lambda: not len(service.subscribe))


async def test_a_replay_of_many_events_arrives_whole(service: Service, pem: Path, relay: Relay) -> None:
    relay.publish(numbered([identity(seq) for seq in range(1, 3_001)]))
    await published(service, 3_000)
    async with subscribed(service, pem, "/subscribe?cursor=0&limit=3000") as subscriber:
        events = await subscriber.rest()
    assert [each["identity"]["seq"] for each in events] == list(range(1, 3_001))


@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
async def test_an_event_stream_arrives_whole(
    accept: str, coding: str, service: Service, pem: Path, relay: Relay
) -> None:
    relay.publish(numbered([identity(seq) for seq in range(1, 501)]))
    await published(service, 500)
    connector = aiohttp.TCPConnector(ssl=trusting(pem))
    headers = {"Accept": accept, "Accept-Encoding": coding}
    url = f"https://127.0.0.1:{service.port}/events?cursor=0&limit=500"
    async with (
        aiohttp.ClientSession(connector=connector, auto_decompress=True) as session,
        session.get(url, headers=headers) as response,
    ):
        assert response.headers.get("Content-Encoding", "identity") == coding
        text = await response.text()
    assert text.count('"kind":"identity"') == 500


async def test_a_reader_that_reads_nothing_is_fed_from_the_log_and_loses_nothing(
    start: Start, pem: Path, relay: Relay
) -> None:
    service = await start(tls_cert=pem, upstream_cursor=0, subscriber_buffer=20_000)
    count = 4_000
    async with subscribed(service, pem, receive_buffer=4_096) as slow:
        slow.connection.transport.pause_reading()
        [client] = service.subscribe.clients()
        for first in range(1, count, 500):
            relay.publish(numbered([identity(seq) for seq in range(first, first + 500)]))
            await published(service, first + 499)
        await until(lambda: client.sink.full)
        assert client.sink.buffered < 300_000
        assert client.subscriber is not None
        assert client.subscriber.group is None
        slow.connection.transport.resume_reading()
        assert [each["identity"]["seq"] for each in await slow.events(count)] == list(range(1, count + 1))


async def test_http_without_tls_is_not_answered(service: Service) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(HEALTH)
    async with asyncio.timeout(PATIENCE_S):
        assert not (await reader.read()).startswith(b"HTTP")
    writer.close()
    await until(service.metrics.bad_requests["tls"]._value.get)


async def test_older_versions_of_tls_are_refused(service: Service, pem: Path) -> None:
    context = trusting(pem)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", service.port, ssl=context)


@pytest.mark.parametrize("part", [b"", b"\x16\x03\x01\x02\0\x01"])
async def test_a_handshake_must_be_whole_in_time(part: bytes, start: Start, pem: Path) -> None:
    limits = Limits(web=WebLimits(request_timeout_s=0.05, deadline_check_s=0.01))
    service = await start(tls_cert=pem, limits=limits)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(part)
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.read() == b""
    writer.close()
    assert service.metrics.bad_requests["timeout"]._value.get() == 1


async def test_unfinished_handshakes_are_closed_when_others_need_their_room(start: Start, pem: Path) -> None:
    service = await start(tls_cert=pem, limits=Limits(web=WebLimits(connections_max=1)))
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    await until(lambda: len(service.endpoints.servers[0]._connections._all) == 1)
    assert (await fetch(service, pem))[0] == 200
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.read() == b""
    writer.close()
    assert service.metrics.evicted._value.get() == 1


async def test_a_new_certificate_comes_into_force_for_new_connections(
    service: Service, pem: Path, tmp_path: Path
) -> None:
    (new := tmp_path / "new").mkdir()
    replacement = certificate(new)
    async with subscribed(service, pem) as subscriber:
        replacement.replace(pem)
        dated(pem, 1)
        service.reload()
        with capture_logs() as logs:
            assert (await fetch(service, pem))[0] == 200
        await subscriber.connection.ping()
    assert service.conditions.reasons == {}
    assert [line for line in logs if line["log_level"] == "error"] == []


@pytest.mark.parametrize("break_", [lambda pem: pem.write_text("x"), Path.unlink], ids=["no PEM", "gone"])
async def test_a_broken_certificate_changes_nothing_and_is_a_condition(
    break_: Callable[[Path], object], service: Service, pem: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known.pem"
    shutil.copy(pem, known)
    break_(pem)
    service.reload()
    assert (await fetch(service, known))[0] == 200
    assert "--tls-cert" in service.conditions.reasons["certificate"]
    shutil.copy(known, pem)
    dated(pem, 1)
    service.reload()
    assert service.conditions.reasons == {}
    assert (await fetch(service, known))[0] == 200


async def test_files_are_looked_at_without_a_signal(start: Start, pem: Path) -> None:
    service = await start(tls_cert=pem, limits=Limits(runtime=RuntimeLimits(watch_every_s=0.01)))
    context = service.access.certificate
    assert context is not None
    before = context.context
    dated(pem, 1)
    await until(lambda: context.context is not before)


async def test_tls_comes_behind_a_head_of_the_proxy_protocol(start: Start, pem: Path) -> None:
    proxies = parse_networks("127.0.0.1")
    service = await start(tls_cert=pem, proxy_protocol=True, trusted_proxies=proxies)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(v1("203.0.113.9"))
    await writer.start_tls(trusting(pem), server_hostname="127.0.0.1")
    writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    [client] = service.subscribe.clients()
    assert client.sink.peer == "203.0.113.9"
    writer.close()


async def test_a_proxy_behind_a_proxy_may_name_its_scheme(start: Start, pem: Path) -> None:
    service = await start(tls_cert=pem, trusted_proxies=parse_networks("127.0.0.1"))
    connector = aiohttp.TCPConnector(ssl=trusting(pem))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(
            f"https://127.0.0.1:{service.port}/subscribe", headers={"X-Forwarded-Proto": "http"}
        ) as response,
    ):
        assert "connect to ws://" in await response.text()


# Files that cannot be used


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"tls_cert": "missing.pem"}, "--tls-cert: .* cannot be read: No such file"),
        ({"tls_cert": "certificate.pem", "tls_key": "missing.pem"}, "--tls-key: .* cannot be read"),
        ({"tls_key": "certificate.pem"}, "--tls-key: .* needs a certificate: --tls-cert"),
        ({"tls_cert": "text.pem"}, "--tls-cert: .* cannot be used with the key in .*: both must be PEM"),
        (
            {"tls_cert": "certificate.pem", "tls_key": "other/certificate.pem"},
            "--tls-cert: .* does not belong to the key in ",
        ),
        ({"tls_cert": "certificate.pem", "tls_key": "locked.pem"}, "--tls-cert: .* has a password"),
    ],
    ids=str,
)
async def test_files_that_cannot_be_used_are_named(
    settings: dict[str, str], problem: str, pem: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    (tmp_path / "other").mkdir()
    certificate(tmp_path / "other")
    certificate_with_password(pem, tmp_path / "locked.pem")
    given: Any = {name: tmp_path / value for name, value in settings.items()}
    with pytest.raises(SettingError, match=f"^{problem}"):
        async with running(Service(Settings(listen=LOOPBACK, data_dir=tmp_path / "data", **given))):
            pass


def certificate_with_password(pem: Path, locked: Path) -> None:
    """Write the key of a file again, with a password."""
    key = serialization.load_pem_private_key(pem.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    pem_format, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked.write_bytes(key.private_bytes(pem_format, pkcs8, encryption))
