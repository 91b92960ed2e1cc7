"""Where a server listens: the error for an address that cannot be used, and what its log says.

Used by `endpoints` for both listeners: the main one, and that of `--metrics-listen`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from jetstream.errors import SettingError
from jetstream.settings import Address, Settings

# What `start` returns: the port that is bound.
T = TypeVar("T")


def urls(settings: Settings, port: int, *, tls: bool, serves: bool = True) -> dict[str, str]:
    """Return where the most important endpoints are, by name, for a line of the log.

    `port` is the one that is bound, also where port 0 was asked for. An empty host is shown as
    `localhost`. `serves` tells whether there are subscribers: without them the page takes the place of the
    endpoints to subscribe. A listener of its own for metrics has no TLS.
    """
    listening, metrics_listening = settings.listen, settings.metrics_listen
    base = Address(listening.host or "localhost", port)
    ws, http = ("wss", "https") if tls else ("ws", "http")
    subscribe = {"subscribe": f"{ws}://{base}/subscribe", "client_libraries": f"{ws}://{base}/v1/subscribe"}
    metrics = (
        f"{http}://{base}/metrics" if metrics_listening is None else f"http://{metrics_listening}/metrics"
    )
    return {**(subscribe if serves else {"page": f"{http}://{base}/"}), "metrics": metrics}


async def listen(flag: str, address: Address, start: Callable[[str, int], Awaitable[T]]) -> T:
    """Return what `start` returns of the host and port of an address. Raises SettingError.

    That is where the address cannot be listened on: it is in use, is not of this machine, or needs
    privileges. `flag` is the setting that names the address, for the error.
    """
    try:
        return await start(*address)
    except OSError as error:
        problem = (error.strerror or str(error)).partition(" (while ")[0]  # Python repeats the address
        raise SettingError(flag, str(address), f"cannot be listened on: {problem}") from error
