"""`jetstream top`: the figures of a server, live in the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from http.client import HTTPException
from typing import Annotated, Final
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import orjson
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console, RenderableType
from rich.live import Live

from jetstream.cli.top_view import Status, problem, view
from jetstream.errors import JetstreamError, SettingError
from jetstream.urls import shown, without_secrets

DEFAULT_URL: Final = "http://localhost:6008"
PATH: Final = "/status.json"
TIMEOUT_S: Final = 5.0
BODY_BYTES_MAX: Final = 8 << 20
_SCHEMES: Final = {"ws": "http", "wss": "https", "http": "http", "https": "https"}


class StatusError(JetstreamError):
    """A server has not told its status."""


def top(
    url: str = DEFAULT_URL,
    /,
    *,
    interval: Annotated[float, Parameter(validator=Number(gte=0.2, lte=3600), metavar="SECONDS")] = 2.0,
    once: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Show the figures of a server, live, until Ctrl-C. Without a terminal, show them once.

    Parameters
    ----------
    url
        The server: a host, or a URL.
    interval
        Seconds between two looks at the server.
    once
        Show the figures once, also on a terminal.
    """
    address = status_url(url)
    console = Console()
    if once or not console.is_terminal:
        console.print(view(fetch(address), shown(url)))
        return
    watch(console, lambda: screen(address, shown(url)), interval)


def watch(
    console: Console,
    look: Callable[[], RenderableType],
    interval_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show what `look` returns again and again, until Ctrl-C."""
    try:
        with Live(look(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                sleep(interval_s)
                live.update(look(), refresh=True)
    except KeyboardInterrupt:
        return


def screen(address: str, url: str) -> RenderableType:
    """Return the screen of now, whether the server answers or not."""
    try:
        return view(fetch(address), url)
    except StatusError as error:
        return problem(url, f"{error}\nIt is asked again; Ctrl-C ends this.")


def status_url(text: str) -> str:
    """Return where a server has its status. Raises SettingError."""
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host = parts.hostname and f"{parts.netloc.rpartition('@')[2]}"
        usable = parts.port != 0
    except ValueError:
        host, usable = None, False
    scheme = _SCHEMES.get(parts.scheme) if host else None
    if not scheme or not usable or any(map(str.isspace, text)):
        raise SettingError("URL", shown(text), f"is not a host or URL such as {DEFAULT_URL}")
    return f"{scheme}://{host}{PATH}"


def fetch(address: str) -> Status:
    """Return the status of a server. Raises StatusError."""
    try:
        with urlopen(Request(address), timeout=TIMEOUT_S) as response:  # noqa: S310 - http and https only
            body = orjson.loads(response.read(BODY_BYTES_MAX))
    except HTTPError as error:
        error.close()
        raise StatusError(f"{address}: HTTP {error.code}: is this a Jetstream server of ours?") from error
    except orjson.JSONDecodeError as error:
        raise StatusError(f"{address} does not answer with JSON") from error
    except (OSError, HTTPException, ValueError) as error:
        raise StatusError(f"{address}: {without_secrets(str(error))}") from error
    if not isinstance(body, dict):
        raise StatusError(f"{address} does not answer with a status")
    return body
