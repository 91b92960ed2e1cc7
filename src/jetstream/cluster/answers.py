"""What a process on this machine answers over HTTP: one request, one connection, with limits.

The cluster asks its own processes about themselves once a second. A client library is not needed for
that: nothing is sent but a GET, and the connection ends with the response. No redirects, no TLS, no
chunks.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from jetstream.cluster.members import HOST

# Seconds for all of it. A process that is frozen accepts a connection, and never answers.
ANSWER_S: Final = 2.0
# Bytes of a response, with its head. More is no answer of a server of ours.
_BYTES_MAX: Final = 8 << 20


class Answer(NamedTuple):
    """A response.

    The body is what follows the head, as it came.
    """

    status: int
    body: bytes


async def get(port: int, path: str, within_s: float = ANSWER_S) -> Answer | None:
    """Return the response to a GET; None: there is none in time, or none that is HTTP.

    It raises nothing. `path` begins with a slash, and is not escaped here.
    """
    try:
        async with asyncio.timeout(within_s):
            return await _get(port, path)
    except (OSError, TimeoutError, ValueError, IndexError):
        return None


async def accepts(port: int, within_s: float = ANSWER_S) -> bool:
    """Tell whether something accepts connections on a port.

    Nothing is sent. The connection is closed at once.
    """
    try:
        async with asyncio.timeout(within_s):
            _, writer = await asyncio.open_connection(HOST, port)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


async def _get(port: int, path: str) -> Answer:
    """Send a request and read its response to the end of the connection.

    Raises OSError, ValueError or IndexError for what is no HTTP; the deadline is the caller's.
    """
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        # The end of the connection is that of the body.
        request = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        data = await _all(reader)
    finally:
        writer.transport.abort()
    head, _, body = data.partition(b"\r\n\r\n")
    return Answer(int(head.split(maxsplit=2)[1]), body)


async def _all(reader: asyncio.StreamReader) -> bytes:
    """Return everything up to the end. Raises ValueError if that is too much."""
    parts, size = [], 0
    while part := await reader.read(1 << 16):
        parts.append(part)
        size += len(part)
        if size > _BYTES_MAX:
            raise ValueError("the answer is too long")
    return b"".join(parts)
