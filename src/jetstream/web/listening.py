"""Where a server listens: the error for an address that cannot be used, and what its log says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from jetstream.errors import SettingError
from jetstream.settings import Address, Settings

T = TypeVar("T")


def urls(settings: Settings, port: int, *, tls: bool, serves: bool = True) -> dict[str, str]:
    """Return where the most important endpoints are, for a line of the log."""
    listening, metrics_listening = settings.listen, settings.metrics_listen
    base = f"{listening.host or 'localhost'}:{port}"
    ws, http = ("wss", "https") if tls else ("ws", "http")
    subscribe = {"subscribe": f"{ws}://{base}/subscribe", "client_libraries": f"{ws}://{base}/v1/subscribe"}
    metrics = (
        f"{http}://{base}/metrics" if metrics_listening is None else f"http://{metrics_listening}/metrics"
    )
    return {**(subscribe if serves else {"page": f"{http}://{base}/"}), "metrics": metrics}


async def listen(flag: str, address: Address, start: Callable[[str, int], Awaitable[T]]) -> T:
    """Return what `start` returns of an address. Raises SettingError where that cannot be listened on."""
    try:
        return await start(*address)
    except OSError as error:
        problem = (error.strerror or str(error)).partition(" (while ")[0]  # Python repeats the address
        raise SettingError(flag, str(address), f"cannot be listened on: {problem}") from error
