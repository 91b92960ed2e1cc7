"""Signing keys over real sockets: directories and hosts that are dead, slow, wrong or hostile."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from tests.plc import (
    big,
    bomb,
    broken,
    busy,
    busy_until,
    cut,
    drip,
    endless,
    forever,
    http_server,
    key_requests,
    local,
    says,
    tls_contexts,
)
from tests.serving import until
from tests.unit.identity.accounts import did_of, document, key_of

from jetstream.identity.addresses import is_public
from jetstream.identity.answers import Answer
from jetstream.identity.cache import KeyCache
from jetstream.identity.directories import Directories
from jetstream.identity.failures import KEY_FAILURES, NoKey
from jetstream.identity.fetch import Fetcher, Fetches
from jetstream.identity.public import PublicFetcher
from jetstream.identity.resolver import Resolver
from jetstream.identity.store import KeyStore
from jetstream.limits import KeyLimits
from jetstream.metrics import Metrics

DID, KEY = did_of(1), key_of(1)
HOST = "alice.example.com"
WEB = f"did:web:{HOST}"
LIMITS = KeyLimits(timeout_s=0.3)
PATIENT = KeyLimits()
DOCUMENT = orjson.dumps(document(DID, KEY))


def names(port: int, *addresses: str) -> Callable[..., list[Any]]:
    """Return a look-up that gives every name the next of some addresses, at one port."""
    left = list(addresses)

    def look_up(*_: Any, **__: Any) -> list[Any]:
        address = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    return look_up


class Setup:
    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        self._path = path
        self._stack = stack
        self.metrics = Metrics()

    async def resolver(
        self, urls: list[str], web: Fetches | None = None, limits: KeyLimits = LIMITS
    ) -> Resolver:
        cache = await self._stack.enter_async_context(KeyCache(KeyStore(self._path), limits))
        plc = Fetcher(24)
        self._stack.push_async_callback(plc.close)
        directories = Directories(urls, plc, limits)
        resolver = Resolver(
            cache, directories, web or PublicFetcher(8), self.metrics.keys(KEY_FAILURES), limits
        )
        self._stack.push_async_callback(resolver.close)
        return resolver

    async def server(self, handler: Any, **more: Any) -> int:
        return await self._stack.enter_async_context(http_server(handler, **more))


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    async with AsyncExitStack() as stack:
        yield Setup(tmp_path, stack)


HOSTILE = [
    (forever, "timeout"),
    (drip, "timeout"),
    (endless, "too_big"),
    (big, "too_big"),
    (bomb, "too_big"),
    (local, "redirect"),
    (busy, "rate_limited"),
    (busy_until("Wed, 21 Oct 99999999999 07:28:00 GMT"), "rate_limited"),
    (broken, "status"),
    (cut, "unreachable"),
    (says(b"", 404), "not_found"),
    (says(b"", 410), "not_found"),
    (says(b"[" * 200_000), "malformed"),
    (says(b"<html>"), "malformed"),
    (says(b""), "malformed"),
    (says(orjson.dumps(document(did_of(2), KEY))), "wrong_did"),
    (says(orjson.dumps(document(DID, KEY, publicKeyMultibase="z1"))), "bad_key"),
]


async def test_a_key_comes_over_a_real_connection(setup: Setup) -> None:
    port = await setup.server(says(DOCUMENT))
    resolver = await setup.resolver([f"http://127.0.0.1:{port}"], limits=PATIENT)
    assert await resolver.resolve(DID) == Answer(KEY, "", "")


@pytest.mark.parametrize(("handler", "reason"), HOSTILE)
async def test_a_hostile_directory_is_counted_and_bounded(setup: Setup, handler: Any, reason: str) -> None:
    port = await setup.server(handler)
    limits = LIMITS if reason == "timeout" else PATIENT
    resolver = await setup.resolver([f"http://127.0.0.1:{port}"], limits=limits)
    assert await resolver.resolve(DID) == Answer(None, reason)
    assert key_requests(setup.metrics) == {reason: 1}


async def test_a_directory_that_is_not_there(setup: Setup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    resolver = await setup.resolver([f"http://127.0.0.1:{port}"], limits=PATIENT)
    assert await resolver.resolve(DID) == Answer(None, "unreachable")


@pytest.mark.parametrize("handler", [forever, endless, local, busy, broken, cut, says(b"<html>")])
async def test_the_next_directory_has_the_key(setup: Setup, handler: Any) -> None:
    ports = [await setup.server(each) for each in (handler, says(DOCUMENT))]
    limits = KeyLimits(timeout_s=1.0) if handler is forever else PATIENT
    resolver = await setup.resolver([f"http://127.0.0.1:{port}" for port in ports], limits=limits)
    assert await resolver.resolve(DID) == Answer(KEY, "", "")


async def test_no_request_is_made_while_the_directory_wants_a_pause(setup: Setup) -> None:
    asked = []

    async def count(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return await busy(request)

    port = await setup.server(count)
    resolver = await setup.resolver([f"http://127.0.0.1:{port}"], limits=PATIENT)
    answers = [await resolver.resolve(did_of(number)) for number in range(20)]
    assert set(answers) == {Answer(None, "rate_limited")}
    assert len(asked) == 1


class TestDidWeb:
    async def test_its_document_is_fetched_by_https(self, setup: Setup, tmp_path: Path) -> None:
        server, client = tls_contexts(tmp_path, HOST)
        asked = []

        async def serve(request: web.Request) -> web.StreamResponse:
            asked.append((request.scheme, request.host, request.path))
            return web.Response(body=orjson.dumps(document(WEB, KEY)))

        port = await setup.server(serve, tls=server)
        web_hosts = PublicFetcher(8, lambda _: True, client, names(port, "127.0.0.1"))
        resolver = await setup.resolver([], web_hosts, PATIENT)
        assert await resolver.resolve(WEB) == Answer(KEY, "", "")
        assert asked == [("https", HOST, "/.well-known/did.json")]

    @pytest.mark.parametrize(
        ("handler", "reason"),
        [
            *(each for each in HOSTILE if each[0] is not bomb and each[1] != "bad_key"),
            (bomb, "malformed"),  # it is not asked for, and not decompressed
        ],
    )
    async def test_a_hostile_host(self, setup: Setup, tmp_path: Path, handler: Any, reason: str) -> None:
        server, client = tls_contexts(tmp_path, HOST)
        port = await setup.server(handler, tls=server)
        web_hosts = PublicFetcher(8, lambda _: True, client, names(port, "127.0.0.1"))
        limits = LIMITS if reason == "timeout" else PATIENT
        resolver = await setup.resolver([], web_hosts, limits)
        assert await resolver.resolve(WEB) == Answer(None, reason)
        assert key_requests(setup.metrics) == {reason: 1}

    @pytest.mark.parametrize(
        ("flood", "reason"),
        [
            (b"HTTP/1.1 100 Continue\r\n\r\n", "too_big"),
            (b"x", "too_big"),
            (b"a: b\r\n", "too_big"),
        ],
    )
    async def test_a_host_that_never_stops(
        self, setup: Setup, tmp_path: Path, flood: bytes, reason: str
    ) -> None:
        server, client = tls_contexts(tmp_path, HOST)

        async def send(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                writer.write(b"HTTP/1.1 200 OK\r\n")
                while not writer.is_closing():
                    writer.write(flood * 1_000)
                    await writer.drain()
                    await asyncio.sleep(0)

        listener = await asyncio.start_server(send, "127.0.0.1", 0, ssl=server)
        port = listener.sockets[0].getsockname()[1]
        web_hosts = PublicFetcher(8, lambda _: True, client, names(port, "127.0.0.1"))
        resolver = await setup.resolver([], web_hosts, PATIENT)
        assert await resolver.resolve(WEB) == Answer(None, reason)
        listener.close()

    async def test_a_connection_that_stays_open(self, setup: Setup, tmp_path: Path) -> None:
        """The length of a response ends it, where its server does not."""
        server, client = tls_contexts(tmp_path, HOST)
        body = orjson.dumps(document(WEB, KEY))

        async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            for byte in body:
                writer.write(bytes([byte]))
            await reader.read()
            writer.close()

        listener = await asyncio.start_server(send, "127.0.0.1", 0, ssl=server)
        port = listener.sockets[0].getsockname()[1]
        web_hosts = PublicFetcher(8, lambda _: True, client, names(port, "127.0.0.1"))
        resolver = await setup.resolver([], web_hosts, PATIENT)
        assert await resolver.resolve(WEB) == Answer(KEY, "", "")
        listener.close()

    async def test_the_next_address_is_tried(self, setup: Setup, tmp_path: Path) -> None:
        server, client = tls_contexts(tmp_path, HOST)
        port = await setup.server(says(orjson.dumps(document(WEB, KEY))), tls=server)

        def look_up(*_: Any, **__: Any) -> list[Any]:
            return [names(port, each)()[0] for each in ("10.0.0.1", "127.0.0.2", "127.0.0.1")]

        web_hosts = PublicFetcher(8, lambda each: each != "10.0.0.1", client, look_up)
        resolver = await setup.resolver([], web_hosts, PATIENT)
        assert await resolver.resolve(WEB) == Answer(KEY, "", "")

    async def test_a_certificate_that_nobody_trusts(self, setup: Setup, tmp_path: Path) -> None:
        server, _ = tls_contexts(tmp_path, HOST)
        port = await setup.server(says(orjson.dumps(document(WEB, KEY))), tls=server)
        web_hosts = PublicFetcher(8, lambda _: True, look_up=names(port, "127.0.0.1"))
        resolver = await setup.resolver([], web_hosts, PATIENT)
        assert await resolver.resolve(WEB) == Answer(None, "tls")

    @pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "0.0.0.0"])
    async def test_no_connection_is_made_to_an_address_that_is_not_public(
        self, setup: Setup, address: str
    ) -> None:
        accepted = asyncio.Event()
        listener = await asyncio.start_server(lambda *_: accepted.set(), "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        resolver = await setup.resolver([], PublicFetcher(8, look_up=names(port, address)), PATIENT)
        assert await resolver.resolve(WEB) == Answer(None, "not_public")
        assert not accepted.is_set()
        listener.close()

    async def test_a_name_that_is_resolved_again_is_checked_again(self, setup: Setup, tmp_path: Path) -> None:
        """DNS rebinding: the first answer is public, and the next one is not."""
        server, client = tls_contexts(tmp_path, HOST)
        port = await setup.server(broken, tls=server)

        def allowed(address: str) -> bool:
            return is_public(address) or address == "127.0.0.2"  # stands for a public one

        fetcher = PublicFetcher(8, allowed, client, names(port, "127.0.0.2", "127.0.0.1"))
        seen = []
        for _ in range(2):
            with pytest.raises(NoKey) as caught:
                await fetcher.get(f"https://{HOST}/", 100, 10.0)
            seen.append(caught.value.reason)
        assert seen == ["unreachable", "not_public"]  # nothing listens at the first one

    async def test_a_name_that_does_not_exist(self, setup: Setup) -> None:
        def no_such_name(*_: Any, **__: Any) -> list[Any]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        resolver = await setup.resolver([], PublicFetcher(8, look_up=no_such_name), PATIENT)
        assert await resolver.resolve(WEB) == Answer(None, "unreachable")

    async def test_names_that_are_not_answered_hold_up_nobody_else(self, setup: Setup) -> None:
        """Their look-ups cannot be cancelled. There are few, and they are in threads of their own."""
        answer = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait(*_: Any, **__: Any) -> list[Any]:
            asyncio.run_coroutine_threadsafe(answer.wait(), loop).result()
            return []

        fetcher = PublicFetcher(2, look_up=wait)
        resolver = await setup.resolver([], fetcher)
        answers = [await resolver.resolve(f"did:web:{name}.example.com") for name in "abcd"]
        assert [each.reason for each in answers] == ["timeout", "timeout", "overload", "overload"]
        answer.set()
        await until(lambda: not fetcher._names.running)
