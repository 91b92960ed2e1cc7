"""One request to a host that somebody else has chosen: that of a `did:web`.

    address   a public one. It is checked, and then connected to as it is: nothing resolves the name again
    TLS       always, port 443, with a certificate that is valid for the name
    response  at most `bytes_max` and `HEAD_BYTES_MAX` bytes, whatever is in them
    time      one deadline for all of it
    redirects are never followed

The client library that directories are asked with is not used here. It parses what it has received at once,
and a hostile server can make that long: 256 KiB of `HTTP/1.1 100` held the event loop for 0.3 s. Here the
bytes are collected, which takes no time, and parsed in a thread when they are all there and few enough.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException, HTTPResponse, IncompleteRead
from io import BytesIO
from threading import Thread
from typing import Any, Final
from urllib.parse import urlsplit

from jetstream.identity.addresses import is_public
from jetstream.identity.failures import NoKey
from jetstream.identity.fetch import USER_AGENT, check_status, in_one_line

PORT: Final = 443
HEAD_BYTES_MAX: Final = 32 << 10
_READ_BYTES: Final = 64 << 10
_ADDRESSES_MAX: Final = 4  # of a host, that are tried
# Lines that end with CR LF: of heads, and of chunks. A document has fewer bytes than this would need.
_LINES_MAX: Final = 2_000
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE).search

_REQUEST: Final = (
    "GET {path} HTTP/1.1\r\nHost: {host}\r\n"
    f"User-Agent: {USER_AGENT}\r\nAccept: application/json\r\nAccept-Encoding: identity\r\n"
    "Connection: close\r\n\r\n"
)

# As `socket.getaddrinfo` returns it. Of the address, the first two are the IP address and the port.
AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
LookUp = Callable[..., list[Any]]


class PublicFetcher:
    """Makes GET requests to https URLs, to addresses that are `allowed`, each on a connection of its own.

    At most `lookups_max` names are looked up at the same time. `tls` is what certificates are checked with.
    """

    def __init__(
        self,
        lookups_max: int,
        allowed: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
        look_up: LookUp = socket.getaddrinfo,
    ) -> None:
        self._names = Names(lookups_max, look_up)
        self._allowed = allowed
        self._tls = tls  # made when it is first needed: it loads all certificates of the system

    async def get(self, url: str, bytes_max: int, timeout_s: float) -> bytes:
        """Return the body of a URL. Raises NoKey for anything but a body of at most `bytes_max` bytes."""
        parts = urlsplit(url)
        try:
            async with asyncio.timeout(timeout_s):
                raw = await self._exchange(parts.netloc, parts.path, HEAD_BYTES_MAX + bytes_max)
        except TimeoutError as error:
            raise NoKey("timeout", f"no answer within {timeout_s:.3g} s") from error
        except ssl.SSLError as error:
            raise NoKey("tls", in_one_line(error)) from error
        except OSError as error:
            raise NoKey("unreachable", in_one_line(error)) from error
        return await asyncio.to_thread(parse_response, raw, bytes_max)

    async def _exchange(self, host: str, path: str, bytes_max: int) -> bytes:
        """Send a request; return all bytes of the response. Raises OSError, NoKey."""
        reader, writer = await self._connect(host)
        try:
            writer.write(_REQUEST.format(path=path, host=host).encode())
            return await _collect(reader, bytes_max)
        finally:
            writer.transport.abort()

    async def _connect(self, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first address that answers. Raises OSError, NoKey."""
        if self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        addresses = [info[4] for info in await self._names.look_up(host) if self._allowed(info[4][0])]
        problem: OSError = OSError("no address answers")
        for number, (address, port, *_) in enumerate(addresses[:_ADDRESSES_MAX], 1):
            try:
                # The last one has all the time that is left.
                async with asyncio.timeout(2.0 if number < len(addresses) else None):
                    return await asyncio.open_connection(
                        address, port, ssl=self._tls, server_hostname=host, limit=_READ_BYTES
                    )
            except OSError as error:
                problem = error
        if not addresses:
            raise NoKey("not_public", "its host has no public address")
        raise problem


async def _collect(reader: asyncio.StreamReader, bytes_max: int) -> bytes:
    """Read until the response is complete, the connection ends, or it is too long."""
    raw = bytearray()
    end = 0  # of the response, once its length is known
    while part := await reader.read(_READ_BYTES):
        before = len(raw)
        raw += part
        if len(raw) > bytes_max:
            raise NoKey("too_big", f"the response has more than {bytes_max:,} bytes")
        # Only from where the last search has ended: a part may be a single byte.
        if not end and (head := raw.find(b"\r\n\r\n", max(0, before - 3))) >= 0:
            length = _LENGTH(raw, 0, head + 2)
            end = bytes_max + 1 if length is None else head + 4 + int(length[1])
        if end and len(raw) >= end:
            break
    return bytes(raw)


def parse_response(raw: bytes, bytes_max: int) -> bytes:
    """Return the body of a response. Raises NoKey."""
    if raw.count(b"\r\n") > _LINES_MAX:
        raise NoKey("malformed", f"the response has more than {_LINES_MAX:,} lines")
    # It needs no more of a socket than that.
    response = HTTPResponse(_Received(raw))  # type: ignore[arg-type]
    try:
        response.begin()
        check_status(response.status, response.headers.get("Retry-After"))
        # The library reads as many bytes as it is told to, whatever the number.
        if not response.chunked and (response.length or 0) > bytes_max:
            raise NoKey("too_big", f"it says that it has more than {bytes_max:,} bytes")
        body = response.read(bytes_max + 1) if response.chunked else response.read()
    except IncompleteRead as error:
        raise NoKey("unreachable", "the connection was lost") from error
    except (HTTPException, ValueError, OverflowError) as error:  # the last: a chunk of -2^64 bytes
        raise NoKey("malformed" if raw else "unreachable", in_one_line(error)) from error
    if len(body) > bytes_max:
        raise NoKey("too_big", f"it has more than {bytes_max:,} bytes")
    return body


class _Received:
    """Bytes in the place of a socket."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> BytesIO:
        return BytesIO(self._raw)


class Names:
    """Looks names up in threads, of which at most `lookups_max` run at the same time.

    A look-up cannot be cancelled, and the servers of a hostile name may take half a minute to say nothing. In
    the threads that an event loop has for this, a few such names would hold up everybody else. And these
    threads do not hold up the end of the process.
    """

    def __init__(self, lookups_max: int, look_up: LookUp = socket.getaddrinfo) -> None:
        self._lookups_max = lookups_max
        self._look_up = look_up
        self.running = 0  # look-ups whose thread has not ended; changed by the event loop only

    async def look_up(self, host: str) -> list[AddressInfo]:
        """Return the addresses of a name. Raises OSError, and NoKey when too many look-ups run."""
        if self.running >= self._lookups_max:
            raise NoKey("overload", "too many names are being looked up")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[AddressInfo]] = loop.create_future()
        thread = Thread(target=self._run, args=(loop, found, host), name="did-web-lookup", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no room for another thread
            raise NoKey("overload", in_one_line(error)) from error
        self.running += 1  # before the thread can lower it, which needs the event loop
        return await found

    def _run(
        self, loop: asyncio.AbstractEventLoop, found: asyncio.Future[list[AddressInfo]], host: str
    ) -> None:
        """Look a name up, in a thread."""
        result: list[AddressInfo] | OSError
        try:
            # The dot keeps the search domains of this network out of it.
            result = self._look_up(f"{host}.", PORT, type=socket.SOCK_STREAM)
        except OSError as error:
            result = error
        except UnicodeError as error:  # a label that is too long, for example
            result = OSError(str(error))
        with suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(self._finish, found, result)

    def _finish(self, found: asyncio.Future[list[AddressInfo]], result: list[AddressInfo] | OSError) -> None:
        self.running -= 1
        if found.done():  # the request was given up
            return
        if isinstance(result, OSError):
            found.set_exception(result)
        else:
            found.set_result(result)
