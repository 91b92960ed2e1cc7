"""Connections to the database, and what its errors mean.

An error is one of two kinds. Either the database has refused a statement: then nothing of its transaction is
stored. Or the connection was lost: then nobody knows.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from jetstream.errors import LogError, LogUnreachable
from jetstream.urls import shown

# Of the sessions that write. The server must notice soon that a writer is gone, or was frozen inside a
# transaction: until then, the locks of that one keep every other process from leading.
_WRITERS: Final = {
    "idle_in_transaction_session_timeout": "5000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
CONNECT_S: Final = 5.0  # after which a host that does not answer counts as gone
ANSWER_S: Final = 5.0  # the same for what is asked again and again, and takes no time
# A peer that answers nothing at all is noticed after about half a minute: the machine is gone, or the
# network.
_KEEPALIVE: Final = (
    ("TCP_KEEPIDLE", 10),
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 4),
    ("TCP_USER_TIMEOUT", 30_000),
)

# What is raised when the connection is lost or cannot be made. asyncpg raises InternalClientError, too, when
# the server ends in the middle of an answer.
LOST: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)


async def connect(
    address: str,
    *,
    writes: bool = False,
    primary: bool = False,
    answer_s: float | None = None,
    connect_s: float = CONNECT_S,
    **settings: str,
) -> asyncpg.Connection:
    """Connect to the first host that answers; with `primary` or `writes`, to one that is no replica.

    Each host has `connect_s` to answer: one that is frozen does not keep others from being tried. A statement
    that is not answered for `answer_s` seconds ends with TimeoutError, one of `LOST`; None: it is waited for.
    `settings` are of the session. Raises one of `LOST`, or asyncpg.PostgresError.

    The caller closes the connection, with `drop` if it may be broken.
    """
    failure: BaseException | None = None
    for host in addresses(address):
        try:
            connection = await asyncpg.connect(
                host,
                timeout=connect_s,
                command_timeout=answer_s,
                target_session_attrs="read-write" if writes else "primary" if primary else None,
                server_settings={"application_name": "jetstream", **(_WRITERS if writes else {}), **settings},
            )
        except LOST as error:
            failure = error
        else:
            keep_alive(connection)
            return connection
    assert failure is not None
    raise failure


def addresses(address: str) -> list[str]:
    """Return an address of its own for each host of an address.

    `asyncpg` would give all hosts of an address one time to answer in.
    """
    parts = urlsplit(address)
    login, separator, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return [address]
    return [urlunsplit(parts._replace(netloc=f"{login}{separator}{host}")) for host in hosts.split(",")]


def keep_alive(connection: asyncpg.Connection) -> None:
    """Let the system notice that the host of a connection is gone.

    Sets `_KEEPALIVE`, as far as the system has these options. A Unix socket needs none.
    """
    sock = connection._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg has no other way
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def drop(connection: asyncpg.Connection | None) -> None:
    """Close a connection that may be broken, at once.

    Does not wait for the server, and raises nothing. None: there is nothing to close.
    """
    if connection is not None:
        with suppress(Exception):
            connection.terminate()


@contextmanager
def translated(address: str, otherwise: type[LogError] = LogError) -> Iterator[None]:
    """Raise LogUnreachable for a lost connection inside, and `otherwise` for what the database refuses.

    `address` is named without its password. Other errors pass as they are.
    """
    try:
        yield
    except LOST as error:
        raise LogUnreachable(shown(address), describe(error)) from error
    except asyncpg.PostgresError as error:
        raise otherwise(shown(address), describe(error)) from error


def describe(error: BaseException) -> str:
    """Return the text of an error; its kind, if it has none."""
    return str(error) or type(error).__name__
