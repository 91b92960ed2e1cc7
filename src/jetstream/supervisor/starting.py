"""Starting a process of the server, and waiting for its end.

Three things join the two processes from the start, and need no address:

    supervisor ── control ── standard input of the child: messages (`channel`)
               ── passing ── a file descriptor of the child: connections (`passing`)
               ◀── pipe ──── standard error of the child: its log (`lines`)
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

# `-P` keeps Python from importing what lies in the working directory.
COMMAND: Final = ("-P", "-m", "jetstream.supervisor.child_main")
# Seconds for what a process does after it has closed its channel: Python ends its threads.
EXIT_S: Final = 2.0


class Child(NamedTuple):
    """A process that was started, and the sockets to it: for messages, and for connections.

    The sockets are the supervisor's ends. The caller of `start` has to close them.
    """

    process: subprocess.Popen[bytes]
    control: socket.socket
    passing: socket.socket


def start(name: str, command: Sequence[str] = COMMAND) -> Child:
    """Start a process by its name. `command` are the arguments of Python. Raises OSError.

    It is executed, and not a copy of this process: it has none of its files. In a session of its own,
    it does not get the signals of a terminal, which are for the supervisor.

    The ends of the child are closed here once it has them: when the child ends, both sockets end. Its
    standard output goes nowhere.
    """
    control, its_control = socket.socketpair()
    passing, its_passing = socket.socketpair()
    with its_control, its_passing:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, *command, name, str(its_passing.fileno())],
                stdin=its_control.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[its_passing.fileno()],
                start_new_session=True,
            )
        except OSError:
            control.close()
            passing.close()
            raise
    return Child(process, control, passing)


def wait(process: subprocess.Popen[bytes], within_s: float = EXIT_S) -> None:
    """Wait for the end of a process, which has closed its channel. Kill it if it goes on for longer.

    It blocks, for at most `within_s` seconds and the time of a kill: to be called in a thread.
    """
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
