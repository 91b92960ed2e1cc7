"""One reader replays a log of a million events from a server that has just started, over a real socket.

Nothing is decoded or rendered when it begins; the log's file is in the kernel's page cache. The reader counts
bytes and nothing else, so that the server is what is measured.
"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benches.bench_log import fill
from benches.counter import BUFFER_BYTES, connect
from benches.events import Network
from benches.limits import Limit
from benches.stand import Server, alone, settle

TITLE: Final = "Replay of a million events to one reader, from a server that has just started"
EVENTS: Final = 1_000_000
LIMITS: Final = (Limit("events_per_s", 570_000, least=True),)
_TIMEOUT_S: Final = 10.0  # for the next bytes
_HEAD_BYTES: Final = 4  # of a message of 126 to 65,535 bytes, as all of these have


def main(events: int = EVENTS) -> dict[str, float]:
    """Run once. Return events a second, and CPU time."""
    with TemporaryDirectory(prefix="jetstream-bench-") as name:
        directory = Path(name)
        json_bytes, messages = asyncio.run(fill(directory, Network(), events))
        with alone(directory, "--retention", "100000d") as server:
            settle(1.0)
            figures = _replay(server, messages, json_bytes + _HEAD_BYTES * messages)
    print(
        f"replay: {figures['events_per_s']:,.0f} events/s ({LIMITS[0]}), "
        f"{figures['cpu_us_per_event']:.2f} µs of server CPU an event, {figures['mb_per_s']:.0f} MB/s",
        flush=True,
    )
    return figures


def _replay(server: Server, events: int, size: int) -> dict[str, float]:
    """Read `size` bytes, which is all there is. Raises TimeoutError if there are fewer."""
    cpu_s, began = server.cpu_s(), time.perf_counter()
    connection, rest = connect("127.0.0.1", server.port, "/v1/subscribe", [("cursor", "1")])
    with connection:
        connection.settimeout(_TIMEOUT_S)
        _read(connection, size - len(rest))
        took_s = time.perf_counter() - began
        cpu_s = server.cpu_s() - cpu_s
    return {
        "events_per_s": events / took_s,
        "cpu_us_per_event": cpu_s / events * 1e6,
        "cores": cpu_s / took_s,
        "mb_per_s": size / took_s / 1e6,
    }


def _read(connection: socket.socket, size: int) -> None:
    buffer = bytearray(BUFFER_BYTES)
    while size > 0:
        received = connection.recv_into(buffer)
        if not received:
            raise RuntimeError(f"the server closed the connection {size:,} bytes before the end")
        size -= received


if __name__ == "__main__":
    main()
