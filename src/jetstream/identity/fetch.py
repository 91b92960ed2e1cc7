"""One request to a URL that the operator has set, with a bound on its time and the size of its answer.

Such a URL is trusted as far as its address goes: it may be one of a private network. Its answer is not
trusted. Hosts that accounts have chosen are asked by `public`, which checks their addresses as well. `public`
uses the functions below, so that both report the same failures.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import aiohttp

from jetstream import __version__
from jetstream.identity.failures import NoKey
from jetstream.retry import parse_retry_after

USER_AGENT: Final = f"jetstream-python/{__version__}"
# A larger body is read in a thread: 256 KiB of small values take 15 ms.
_LARGE_BYTES: Final = 16 << 10

Answer = TypeVar("Answer")


class Fetches(Protocol):
    """Makes GET requests: a `Fetcher`, a `public.PublicFetcher`, or what a test puts in its place."""

    async def get(self, url: str, bytes_max: int, timeout_s: float) -> bytes:
        """Return the body of a URL. Raises NoKey for anything but a body of at most `bytes_max` bytes."""
        ...


class Fetcher:
    """Makes GET requests, on connections that are kept open. Has at most `connections_max` of them.

    It must be made while the event loop runs, and be closed. A request that finds all connections in use
    waits for one, and its time runs.
    """

    def __init__(self, connections_max: int) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections_max),
            headers={"User-Agent": USER_AGENT},
            cookie_jar=aiohttp.DummyCookieJar(),  # keeps none
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def get(self, url: str, bytes_max: int, timeout_s: float) -> bytes:
        """Return the body of a URL. Raises NoKey for anything but a body of at most `bytes_max` bytes.

        `timeout_s` is for all of it: the connection, the response and its body. Redirects are not followed.
        Bytes are counted after they were decompressed.
        """
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.get(url, allow_redirects=False, timeout=timeout) as response:
                check_status(response.status, response.headers.get("Retry-After"))
                return await _body(response, bytes_max)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _failure(error, timeout_s) from error


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


def check_status(status: int, retry_after: str | None) -> None:
    """Raise NoKey for a response that has no document. `retry_after` is its header field of that name.

    404 and 410 are the answers of a directory for a DID that it does not know, and that has a tombstone.
    """
    if status == 200:
        return
    text = f"HTTP {status}"
    if status in {404, 410}:
        raise NoKey("not_found", text, status=status)
    if 300 <= status < 400:
        raise NoKey("redirect", text, status=status)
    reason = "rate_limited" if status == 429 else "status"
    raise NoKey(reason, text, retry_after=parse_retry_after(retry_after) or 0.0, status=status)


def _failure(error: Exception, timeout_s: float) -> NoKey:
    """Return what an error of the client library means: `timeout`, `tls`, or else `unreachable`."""
    if isinstance(error, TimeoutError):
        return NoKey("timeout", f"no answer within {timeout_s:.3g} s")
    if isinstance(error, aiohttp.ClientSSLError):
        return NoKey("tls", in_one_line(error))
    return NoKey(
        "unreachable",
        in_one_line(error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error),
    )


def in_one_line(error: Exception) -> str:
    """Return what an error says; that of a connection as the system says it."""
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and (error.errno or 0) > 0:
        return os.strerror(error.errno or 0)
    return " ".join(str(error).split()) or type(error).__name__


async def read_body(read: Callable[[bytes], Answer], body: bytes) -> Answer:
    """Return what `read` makes of a body, without holding up the event loop.

    `read` may run in a thread, so it must be pure. What it raises is raised here.
    """
    return read(body) if len(body) <= _LARGE_BYTES else await asyncio.to_thread(read, body)
