"""The process that examines messages for a server: `python -m jetstream.admission.examiners.worker_main`.

Its standard input is a socket to the server; `in_flight` says what is sent.

    server                                  this process
    Setup ────────────────────────────────▶
      ◀──────────────────────────── True    it is ready
    [Task, …] ────────────────────────────▶ examine each
      ◀────────────────── [Finding, …]      in the order of the tasks

It ends when the socket does: with the server, however that ends. Signals that a terminal or a service manager
sends to all processes of the server are ignored, because the server still needs it to stop in good order.
"""

from __future__ import annotations

import faulthandler
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader
from typing import Any

from jetstream.admission.examiners.examination import Finding, Task, examine
from jetstream.admission.examiners.in_flight import HEAD, Setup, packed, unpacked
from jetstream.limits import UpstreamLimits
from jetstream.runtime import STOP_SIGNALS, tune_gc
from jetstream.verify_modes import Mode

Examine = Callable[[Task, Mode, UpstreamLimits], Finding]


def main(examine: Examine = examine) -> None:
    """Examine what comes in from standard input, until it ends.

    A crash writes its Python stack to standard error, which is that of the server. `examine` is another
    function in tests.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    tune_gc()
    with suppress(ConnectionError), socket.socket(fileno=0) as connection:
        _serve(connection, examine)


def _serve(connection: socket.socket, examine: Examine) -> None:
    """Read the setup, say that this process is ready, and answer each list of tasks.

    The timer counts CPU time of this process only. If a list takes more than `cpu_s` of it, SIGPROF ends
    the process: nobody has to kill it, and a busy machine ends none.
    """
    with connection.makefile("rb") as incoming:
        setup: Setup | None = _read(incoming)
        if setup is None:
            return
        mode, limits, cpu_s = setup
        connection.sendall(packed(True))
        while (tasks := _read(incoming)) is not None:
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            findings = packed([examine(task, mode, limits) for task in tasks])
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.sendall(findings)


def _read(incoming: BufferedReader) -> Any:
    """Return the next value; None at the end, also in the middle of a value: the server has ended."""
    head = incoming.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    (size,) = HEAD.unpack(head)
    data = incoming.read(size)
    return unpacked(data) if len(data) == size else None


if __name__ == "__main__":
    main()
