"""A process is started with its sockets, and its end is waited for."""

from __future__ import annotations

import signal

from jetstream.supervisor.starting import start, wait

ISOLATED = ("-I", "-S", "-c")
SPEAK = """
import socket, sys
control, passing = socket.socket(fileno=0), socket.socket(fileno=int(sys.argv[2]))
control.sendall(sys.argv[1].encode())
passing.sendall(b"passing")
"""


def test_a_process_has_its_name_and_the_other_ends_of_its_sockets() -> None:
    child = start("edge-3", (*ISOLATED, SPEAK))
    with child.control, child.passing:
        wait(child.process)
        assert child.process.returncode == 0
        assert (child.control.recv(100), child.control.recv(100)) == (b"edge-3", b"")
        assert (child.passing.recv(100), child.passing.recv(100)) == (b"passing", b"")
    assert child.process.stderr is not None
    child.process.stderr.close()


def test_one_that_goes_on_is_killed() -> None:
    child = start("edge-3", (*ISOLATED, "import time; time.sleep(1000)"))
    with child.control, child.passing:
        wait(child.process, within_s=0.0)
    assert child.process.returncode == -signal.SIGKILL
    assert child.process.stderr is not None
    child.process.stderr.close()
