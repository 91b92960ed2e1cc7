"""The process that examines messages for a server: `python -m jetstream.admission.worker_process`.

Its standard input is a socket to the server. Both sides send pickled values, each after its length:

    server  a `Setup`          then lists of tasks
    process True: it is ready  then a list of findings for each list of tasks, in order

It ends when the socket does: with the server, however that ends. Signals that a terminal or a service manager
sends to all processes of the server are ignored, because the server still needs it to stop in good order.
"""

from __future__ import annotations

import faulthandler
import pickle
import signal
import socket
from contextlib import suppress
from struct import Struct
from typing import Any, BinaryIO, Final, NamedTuple

from jetstream.admission.examination import Mode, examine
from jetstream.limits import UpstreamLimits
from jetstream.runtime import STOP_SIGNALS, tune_gc

HEAD: Final = Struct("<I")
_BUFFER_BYTES: Final = 256 << 10


class Setup(NamedTuple):
    """How a process examines messages."""

    mode: Mode
    limits: UpstreamLimits
    alarm_s: int  # after which it ends itself while it is busy with one list: the server may be gone


def packed(value: object) -> bytes:
    """Return a value as it is sent. Raises RecursionError for one that is nested too deeply."""
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return HEAD.pack(len(data)) + data


def unpacked(data: bytes | memoryview) -> Any:
    """Return the value of bytes without their length. They come from our own process."""
    return pickle.loads(data)  # noqa: S301


def main() -> None:
    """Examine what comes in from standard input, until it ends."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    tune_gc()
    with suppress(ConnectionError), socket.socket(fileno=0) as connection:
        _serve(connection)


def _serve(connection: socket.socket) -> None:
    with connection.makefile("rb", _BUFFER_BYTES) as incoming:
        setup: Setup | None = _read(incoming)
        if setup is None:
            return
        mode, limits, alarm_s = setup
        connection.sendall(packed(True))
        while (tasks := _read(incoming)) is not None:
            signal.alarm(alarm_s)
            findings = packed([examine(task, mode, limits) for task in tasks])
            signal.alarm(0)
            connection.sendall(findings)


def _read(incoming: BinaryIO) -> Any:
    """Return the next value; None at the end."""
    head = incoming.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    (size,) = HEAD.unpack(head)
    data = incoming.read(size)
    return unpacked(data) if len(data) == size else None


if __name__ == "__main__":
    main()
