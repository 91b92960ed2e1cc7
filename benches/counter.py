"""A subscriber in a process of its own, which counts events and reports when the last one was received.

python -m benches.counter HOST PORT EVENTS
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Sequence

from jetstream.bench import stream

BUFFER_BYTES = 1 << 20


def connect(
    host: str, port: int, path: str = "/subscribe", query: Sequence[tuple[str, str]] = ()
) -> tuple[socket.socket, bytes]:
    """Subscribe. Return the socket, and what was received after the response."""
    connection = socket.create_connection((host, port))
    connection.sendall(stream.request(f"{host}:{port}", path, query))
    head = b""
    while (parts := stream.split_head(head)) is None:
        head += connection.recv(BUFFER_BYTES)
    if stream.status(parts[0]) != 101:
        raise SystemExit(parts[0].decode())
    return connection, parts[1]


def count(data: bytearray) -> int:
    """Remove complete frames from the start of `data`. Return how many of them were events."""
    events = position = 0
    size = len(data)
    while position + 4 <= size:
        length = data[position + 1]
        if length < 126:
            after = position + 2 + length
        elif length == 126:
            after = position + 4 + (data[position + 2] << 8 | data[position + 3])
        else:
            after = position + 10 + int.from_bytes(data[position + 2 : position + 10], "big")
        if after > size:
            break
        events += data[position] == 0x81
        position = after
    del data[:position]
    return events


def main(host: str, port: int, events: int) -> None:
    """Subscribe, report it, count, and report when the last event was received, in unix seconds."""
    connection, rest = connect(host, port)
    print(json.dumps({"subscribed": True}), flush=True)
    data, seen = bytearray(rest), 0
    while seen < events:
        received = connection.recv(BUFFER_BYTES)
        if not received:
            break
        data += received
        seen += count(data)
    print(json.dumps({"events": seen, "at": time.time()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
