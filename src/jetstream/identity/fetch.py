"""One request, with a bound on everything that its server decides: time, size, redirects, addresses.

A request to a URL that the operator has set may go anywhere. One to the host of a `did:web` may go only to
public addresses. That is checked when a socket for the connection is made, with the address that it is going
to be connected to: a name that is resolved twice, to different addresses, gains nothing.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any, Final, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from jetstream import __version__
from jetstream.identity.addresses import is_public
from jetstream.identity.failures import NoKey
from jetstream.retry import parse_retry_after

_HEADERS: Final = {"User-Agent": f"jetstream-python/{__version__}", "Accept": "application/json, */*;q=0.5"}
_ADDRESSES_MAX: Final = 4  # of a host, that are tried
# A larger body is read in a thread: 256 KiB of small values take 15 ms.
_LARGE_BYTES: Final = 16 << 10
_NOT_FOUND: Final = frozenset({404, 410})

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]  # as `socket.getaddrinfo` returns it


Answer = TypeVar("Answer")


class NotPublic(OSError):
    """An address is not public, so no connection is made to it."""


class Fetcher:
    """Makes GET requests by a session, which it closes."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def get(self, url: str, bytes_max: int, timeout_s: float) -> bytes:
        """Return the body of a URL. Raises NoKey for anything but a body of at most `bytes_max` bytes."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.get(url, allow_redirects=False, timeout=timeout) as response:
                _check(response)
                return await _body(response, bytes_max)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _failure(error, timeout_s) from error


async def read_body(read: Callable[[bytes], Answer], body: bytes) -> Answer:
    """Return what `read` makes of a body, without holding up the event loop."""
    return read(body) if len(body) <= _LARGE_BYTES else await asyncio.to_thread(read, body)


def open_fetcher(connections_max: int) -> Fetcher:
    """Return what fetches URLs that the operator has set, on connections that are kept open."""
    return _fetcher(aiohttp.TCPConnector(limit=connections_max))


def open_public_fetcher(
    lookups_max: int,
    allowed: Callable[[str], bool] = is_public,
    tls: ssl.SSLContext | None = None,
    resolver: AbstractResolver | None = None,
) -> Fetcher:
    """Return what fetches URLs that others have chosen: only from addresses that are `allowed`.

    `lookups_max` bounds the look-ups of names that run at the same time.
    """

    def make_socket(info: AddressInfo) -> socket.socket:
        if not allowed(info[4][0]):
            raise NotPublic("the host has no public address")
        return socket.socket(info[0], info[1], info[2])

    connector = aiohttp.TCPConnector(
        ssl=tls or True,
        resolver=resolver or ThreadResolver(lookups_max),
        use_dns_cache=False,  # it has no bound
        force_close=True,  # hardly any host is asked twice
        socket_factory=make_socket,
    )
    return _fetcher(connector)


def _fetcher(connector: aiohttp.BaseConnector) -> Fetcher:
    jar = aiohttp.DummyCookieJar()  # keeps none
    return Fetcher(aiohttp.ClientSession(connector=connector, headers=_HEADERS, cookie_jar=jar))


def _check(response: aiohttp.ClientResponse) -> None:
    """Raise NoKey for a response that has no document."""
    status = response.status
    if status == 200:
        return
    if status in _NOT_FOUND:
        raise NoKey("not_found", f"HTTP {status}", status=status)
    if 300 <= status < 400:
        raise NoKey("redirect", f"HTTP {status}", status=status)
    retry_after = parse_retry_after(response.headers.get("Retry-After")) or 0.0
    reason = "rate_limited" if status == 429 else "status"
    raise NoKey(reason, f"HTTP {status}", retry_after=retry_after, status=status)


async def _body(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """Read a body, decompressed. What is above the limit is not read: the connection is closed."""
    body = bytearray()
    too_big = (response.content_length or 0) > bytes_max
    while not too_big and (part := await response.content.readany()):
        body += part
        too_big = len(body) > bytes_max
    if too_big:
        response.close()
        raise NoKey("too_big", f"it has more than {bytes_max:,} bytes")
    return bytes(body)


def _failure(error: Exception, timeout_s: float) -> NoKey:
    """Return what an error of the client library means."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, NotPublic):
        return NoKey("not_public", str(cause))
    if isinstance(error, TimeoutError):
        return NoKey("timeout", f"no answer within {timeout_s:g} s")
    if isinstance(error, aiohttp.ClientSSLError):
        return NoKey("tls", " ".join(str(error).split()))
    return NoKey("unreachable", " ".join(str(cause).split()) or type(cause).__name__)


class ThreadResolver(AbstractResolver):
    """Looks names up in threads of its own, of which at most `lookups_max` run at the same time.

    A look-up cannot be cancelled, and the servers of a hostile name may take half a minute to say nothing. In
    the threads that an event loop has for this, a few such names would hold up everybody else. And these
    threads do not hold up the end of the process.
    """

    def __init__(self, lookups_max: int, look_up: Callable[..., list[Any]] = socket.getaddrinfo) -> None:
        self._lookups_max = lookups_max
        self._look_up = look_up
        self._running = 0  # look-ups whose thread has not ended; changed by the event loop only

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name. Raises OSError, and NoKey when too many look-ups run."""
        if self._running >= self._lookups_max:
            raise NoKey("overload", "too many names are being looked up")
        self._running += 1
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[AddressInfo]] = loop.create_future()

        def finish(infos: list[AddressInfo] | None, error: OSError | None) -> None:
            self._running -= 1
            if found.done():  # the request was given up
                return
            if error is not None:
                found.set_exception(error)
            else:
                found.set_result(infos or [])

        def run() -> None:
            infos, problem = None, None
            try:
                infos = self._look_up(host, port, family=family, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                problem = error if isinstance(error, OSError) else OSError(str(error))
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(finish, infos, problem)

        Thread(target=run, name="did-web-lookup", daemon=True).start()
        return [_resolved(host, info) for info in (await found)[:_ADDRESSES_MAX]]

    async def close(self) -> None:
        """Do nothing: look-ups end by themselves."""


def _resolved(host: str, info: AddressInfo) -> ResolveResult:
    family, _, proto, _, address = info
    return ResolveResult(
        hostname=host,
        host=address[0],
        port=address[1],
        family=family,
        proto=proto,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )
