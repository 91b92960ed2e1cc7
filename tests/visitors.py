"""Clients of every kind that connect and disconnect at once, over plain sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

from jetstream.dictionary.own import OWN

_UPGRADE: Final = (
    "Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
# The request line of each, and what follows it. `%d` is the number of the client.
KINDS: Final = {
    "live": ("GET /subscribe", _UPGRADE),
    "cursor": ("GET /subscribe?cursor=0", _UPGRADE),
    "v1": ("GET /v1/subscribe?cursor=1", _UPGRADE),
    "future": ("GET /subscribe?cursor=99999999999999999", _UPGRADE),
    "dids": ("GET /subscribe?wantedDids=did:plc:x%d", _UPGRADE),
    "dids behind": ("GET /subscribe?cursor=0&wantedDids=did:plc:x%d", _UPGRADE),
    "collections": ("GET /subscribe?wantedCollections=com.example.x%d", _UPGRADE),
    "no hello": ("GET /subscribe?requireHello=true", _UPGRADE),
    "lines": ("GET /events", "Host: x\r\n"),
    "server-sent": ("GET /events?cursor=0", "Host: x\r\nAccept: text/event-stream\r\n"),
    "gzip": ("GET /events?cursor=0&wantedDids=did:plc:x%d", "Host: x\r\nAccept-Encoding: gzip\r\n"),
    "zstd": ("GET /events", "Host: x\r\nAccept-Encoding: zstd\r\n"),
    "v2": ("GET /xrpc/network.bsky.jetstream.subscribeEvents?cursor=0", _UPGRADE),
    "compressed": (f"GET /v1/subscribe?cursor=0&zstdDictionary={OWN.dictionary_id}", _UPGRADE),
    "heartbeat": ("GET /subscribe?heartbeat=1", _UPGRADE),
    "limit": ("GET /subscribe?cursor=0&limit=1", _UPGRADE),
    "until": ("GET /events?until=9999-01-01T00:00:00Z&heartbeat=1", "Host: x\r\n"),
    "content": ("GET /subscribe?text=x%d&lang=en", _UPGRADE),
    "content behind": ("GET /subscribe?cursor=0&text=x%d&kinds=commit,identity", _UPGRADE),
    "sample": ("GET /subscribe?sample=1.%d", _UPGRADE),
    "excluded": ("GET /subscribe?cursor=0&excludeDids=did:plc:x%d&excludeCollections=a.b.c", _UPGRADE),
    "explain": ("GET /explain?text=x%d", "Host: x\r\n"),
    "half a body": ("POST /filters", "Host: x\r\nContent-Length: 99\r\n\r\ndid:plc:x"),
    "refused": ("GET /subscribe?cursor=x%d", _UPGRADE),
    "plain": ("GET /health", "Host: x\r\n"),
    "unknown": ("GET /nothing/%d", "Host: x\r\n"),
    "no request": ("\0\1", "\r\n"),
    "half": ("GET /subscribe", "Host: x\r\nX-Half: "),
}


async def visit(port: int, kind: str, number: int, *, reset: bool) -> None:
    """Connect as one of `KINDS`, wait for the response if there is one, and disconnect; `reset`: with RST."""
    line, headers = KINDS[kind]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{line.replace('%d', str(number))} HTTP/1.1\r\n{headers}".encode())
    if not kind.startswith("half"):
        writer.write(b"\r\n")
        await reader.read(1)
    if reset:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
