"""Signing keys over real sockets: directories and hosts that are dead, slow, wrong or hostile."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from tests.plc import certificate, http_server
from tests.serving import until
from tests.unit.identity.accounts import did_of, document, key_of

from jetstream.identity.addresses import is_public
from jetstream.identity.cache import KeyCache
from jetstream.identity.directories import Directories
from jetstream.identity.failures import KEY_FAILURES, NoKey
from jetstream.identity.fetch import Fetcher, ThreadResolver, open_fetcher, open_public_fetcher
from jetstream.identity.resolver import Answer, Resolver
from jetstream.identity.store import KeyStore
from jetstream.limits import KeyLimits
from jetstream.metrics import Metrics
from jetstream.token_bucket import Rate

DID, KEY = did_of(1), key_of(1)
HOST = "alice.example.com"
WEB = f"did:web:{HOST}"
LIMITS = KeyLimits(timeout_s=0.3)
PATIENT = KeyLimits()
DOCUMENT = orjson.dumps(document(DID, KEY))


class Names(AbstractResolver):
    """Resolves every name to the next of some addresses, at one port."""

    def __init__(self, port: int, *addresses: str) -> None:
        self._port = port
        self._addresses = list(addresses)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self._addresses.pop(0) if len(self._addresses) > 1 else self._addresses[0]
        return [ResolveResult(hostname=host, host=address, port=self._port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        pass


class Setup:
    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        self._path = path
        self._stack = stack
        self.metrics = Metrics()

    async def resolver(
        self, urls: list[str], web: Fetcher | None = None, limits: KeyLimits = LIMITS
    ) -> Resolver:
        cache = await self._stack.enter_async_context(KeyCache(KeyStore(self._path), limits))
        plc, web = open_fetcher(24), web or open_public_fetcher(8)
        for fetcher in (plc, web):
            self._stack.push_async_callback(fetcher.close)
        directories = Directories(urls, plc, Rate(1_000.0, 1_000), limits)
        resolver = Resolver(cache, directories, web, self.metrics.keys(KEY_FAILURES), limits)
        self._stack.push_async_callback(resolver.close)
        return resolver

    async def server(self, handler: Any, **more: Any) -> int:
        return await self._stack.enter_async_context(http_server(handler, **more))

    def counted(self) -> dict[str, float]:
        """Return how many requests had each result."""
        samples = (sample for family in self.metrics.registry.collect() for sample in family.samples)
        return {
            sample.labels["result"]: sample.value
            for sample in samples
            if sample.name == "jetstream_key_requests_total" and sample.value
        }


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    async with AsyncExitStack() as stack:
        yield Setup(tmp_path, stack)


async def forever(_request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def endless(request: web.Request) -> web.StreamResponse:
    """Send 10 GB, if they are read."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(10_000):
        await response.write(b'"' + b" " * 1_000_000)
    return response


async def big(_request: web.Request) -> web.StreamResponse:
    return web.Response(body=b" " * (PATIENT.document_bytes_max + 1))


async def bomb(_request: web.Request) -> web.StreamResponse:
    """Send 64 MB in 64 kB."""
    return web.Response(body=gzip.compress(bytes(64 << 20)), headers={"Content-Encoding": "gzip"})


async def drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.01)


async def local(_request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("http://127.0.0.1:1/secret")


async def busy(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=429, headers={"Retry-After": "30"})


async def broken(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=500)


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"{")
    assert request.transport is not None
    request.transport.abort()
    return response


def says(body: bytes, status: int = 200) -> Callable[[web.Request], Any]:
    async def handle(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status)

    return handle


HOSTILE = [
    (forever, "timeout"),
    (drip, "timeout"),
    (endless, "too_big"),
    (big, "too_big"),
    (bomb, "too_big"),
    (local, "redirect"),
    (busy, "rate_limited"),
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
    assert await resolver.resolve(DID) == Answer(KEY, "")


@pytest.mark.parametrize(("handler", "reason"), HOSTILE)
async def test_a_hostile_directory_is_counted_and_bounded(setup: Setup, handler: Any, reason: str) -> None:
    port = await setup.server(handler)
    limits = LIMITS if reason == "timeout" else PATIENT
    resolver = await setup.resolver([f"http://127.0.0.1:{port}"], limits=limits)
    assert await resolver.resolve(DID) == Answer(None, reason)
    assert setup.counted() == {reason: 1}


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
    assert await resolver.resolve(DID) == Answer(KEY, "")


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
        server, client = certificate(tmp_path, HOST)
        asked = []

        async def serve(request: web.Request) -> web.StreamResponse:
            asked.append((request.scheme, request.host, request.path))
            return web.Response(body=orjson.dumps(document(WEB, KEY)))

        port = await setup.server(serve, tls=server)
        web_hosts = open_public_fetcher(8, lambda _: True, client, Names(port, "127.0.0.1"))
        resolver = await setup.resolver([], web_hosts, PATIENT)
        assert await resolver.resolve(WEB) == Answer(KEY, "")
        assert asked == [("https", HOST, "/.well-known/did.json")]

    @pytest.mark.parametrize(("handler", "reason"), [each for each in HOSTILE if each[1] != "bad_key"])
    async def test_a_hostile_host(self, setup: Setup, tmp_path: Path, handler: Any, reason: str) -> None:
        server, client = certificate(tmp_path, HOST)
        port = await setup.server(handler, tls=server)
        web_hosts = open_public_fetcher(8, lambda _: True, client, Names(port, "127.0.0.1"))
        limits = LIMITS if reason == "timeout" else PATIENT
        resolver = await setup.resolver([], web_hosts, limits)
        assert await resolver.resolve(WEB) == Answer(None, reason)
        assert setup.counted() == {reason: 1}

    async def test_a_certificate_that_nobody_trusts(self, setup: Setup, tmp_path: Path) -> None:
        server, _ = certificate(tmp_path, HOST)
        port = await setup.server(says(orjson.dumps(document(WEB, KEY))), tls=server)
        web_hosts = open_public_fetcher(8, lambda _: True, resolver=Names(port, "127.0.0.1"))
        resolver = await setup.resolver([], web_hosts, PATIENT)
        assert await resolver.resolve(WEB) == Answer(None, "tls")

    @pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "0.0.0.0"])
    async def test_no_connection_is_made_to_an_address_that_is_not_public(
        self, setup: Setup, address: str
    ) -> None:
        accepted = asyncio.Event()
        listener = await asyncio.start_server(lambda *_: accepted.set(), "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        resolver = await setup.resolver([], open_public_fetcher(8, resolver=Names(port, address)), PATIENT)
        assert await resolver.resolve(WEB) == Answer(None, "not_public")
        assert not accepted.is_set()
        listener.close()

    async def test_a_name_that_is_resolved_again_is_checked_again(self, setup: Setup, tmp_path: Path) -> None:
        """DNS rebinding: the first answer is public, and the next one is not."""
        server, client = certificate(tmp_path, HOST)
        port = await setup.server(broken, tls=server)

        def allowed(address: str) -> bool:
            return is_public(address) or address == "127.0.0.2"  # stands for a public one

        names = Names(port, "127.0.0.2", "127.0.0.1")
        fetcher = open_public_fetcher(8, allowed, client, names)
        seen = []
        for _ in range(2):
            with pytest.raises(NoKey) as caught:
                await fetcher.get(f"https://{HOST}/", 100, 10.0)
            seen.append(caught.value.reason)
        assert seen == ["unreachable", "not_public"]
        await fetcher.close()

    async def test_a_name_that_does_not_exist(self, setup: Setup) -> None:
        def no_such_name(*_: Any, **__: Any) -> list[Any]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        fetcher = open_public_fetcher(8, resolver=ThreadResolver(8, no_such_name))
        resolver = await setup.resolver([], fetcher, PATIENT)
        assert await resolver.resolve(WEB) == Answer(None, "unreachable")

    async def test_names_that_are_not_answered_hold_up_nobody_else(self, setup: Setup) -> None:
        """Their look-ups cannot be cancelled. There are few, and they are in threads of their own."""
        answer = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait(*_: Any, **__: Any) -> list[Any]:
            asyncio.run_coroutine_threadsafe(answer.wait(), loop).result()
            return []

        names = ThreadResolver(2, wait)
        resolver = await setup.resolver([], open_public_fetcher(2, resolver=names))
        answers = [await resolver.resolve(f"did:web:{name}.example.com") for name in "abcd"]
        assert [each.reason for each in answers] == ["timeout", "timeout", "overload", "overload"]
        answer.set()
        await until(lambda: not names._running)
