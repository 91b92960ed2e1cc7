"""Ports of this machine that nothing listens on.

A port that is free now may be taken before it is used: there is no way to reserve one for another
program. So ports are chosen at random, out of a range that the system does not use by itself.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from jetstream.cluster.members import HOST

# The ports that Linux gives to outgoing connections: two numbers.
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
# The lowest port that is chosen. Below it are those of well-known services, and of many programs.
_LOWEST: Final = 10_240
_BELOW: Final = 32_768  # Linux's default
# Attempts to find ports in a row. Mostly the first one succeeds.
_TRIES: Final = 200


def is_free(port: int) -> bool:
    """Tell whether a program could listen on a port now.

    With `SO_REUSEADDR`, as servers have it: a port whose connections have ended a moment ago counts as
    free.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def taken(ports: Iterable[int]) -> int | None:
    """Return the first port that is not free; None: all are."""
    return next((port for port in ports if not is_free(port)), None)


def free_ports(count: int) -> list[int]:
    """Return free ports that follow each other. Raises OSError if none are found.

    They are below those that the system gives to outgoing connections: a process that is started again finds
    its port free.
    """
    for _ in range(_TRIES):
        first = random.randrange(_LOWEST, _first_of_system() - count)  # noqa: S311 - no secret
        ports = range(first, first + count)
        if taken(ports) is None:
            return list(ports)
    raise OSError(f"there are no {count} free ports in a row")


def _first_of_system() -> int:
    """Return the first port that the system gives to outgoing connections, or the default of Linux."""
    try:
        return max(int(_RANGE.read_text().split()[0]), _LOWEST + 1_000)
    except (OSError, ValueError):
        return _BELOW
