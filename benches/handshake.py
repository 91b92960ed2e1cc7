"""What a handshake takes of the server's CPU: accept, HTTP, parameters, upgrade, subscriber."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benches.limits import Limit
from benches.stand import Server, alone, settle

from jetstream.bench import stream

TITLE: Final = "CPU time of a handshake, one client after another"
COUNT: Final = 3_000
WARM_UP: Final = 300
LIMITS: Final = (Limit("kept_ms", 0.15),)
_QUERY: Final = [("wantedCollections", "app.bsky.feed.post")]
_CLOSE: Final = bytes((0x88, 0x80, 0, 0, 0, 0))  # a masked close frame without a code


def main(count: int = COUNT) -> dict[str, float]:
    """Run once. Return milliseconds of CPU for each connection that is kept, and for each that is closed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with alone() as server:
        settle()
        for connection in opened(server, WARM_UP):
            _close(connection)
        closed_ms = _cpu_ms(server, count, kept=False)
        kept_ms = _cpu_ms(server, count, kept=True)
    print(f"handshake: {kept_ms:.3f} ms of CPU ({LIMITS[0]}), {closed_ms:.3f} ms with the close", flush=True)
    return {"kept_ms": kept_ms, "closed_ms": closed_ms}


def _cpu_ms(server: Server, count: int, *, kept: bool) -> float:
    """Open connections one after another. Return the server's CPU time for each."""
    with ExitStack() as connections:
        before_s = _cpu_s(server)
        for connection in opened(server, count):
            if kept:
                connections.enter_context(connection)
            else:
                _close(connection)
        return (_cpu_s(server) - before_s) / count * 1e3


def _cpu_s(server: Server) -> float:
    """Return the seconds for which its threads were on a core: in nanoseconds, where ticks are 10 ms."""
    threads = Path(f"/proc/{server.pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def opened(server: Server, count: int) -> Iterator[socket.socket]:
    """Yield connections, each when its handshake is done."""
    request = stream.request(f"127.0.0.1:{server.port}", "/subscribe", _QUERY)
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(request)
        if not connection.recv(4096).startswith(b"HTTP/1.1 101 "):
            raise RuntimeError("a handshake was refused")
        yield connection


def _close(connection: socket.socket) -> None:
    """Close as a client does: a close frame, the server's answer, the end of the stream."""
    with connection:
        connection.sendall(_CLOSE)
        while connection.recv(4096):
            pass


if __name__ == "__main__":
    main()
