"""`jetstream top`: the figures of a server, live in the terminal.

    /status.json ─▶ fetch ─▶ view (`top_view`) ─▶ the terminal, again after each interval

The server keeps rates and the history itself, so the first screen has all of them, and nothing is
remembered from one look to the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console, RenderableType
from rich.live import Live

from jetstream.cli.ask import DEFAULT_URL, NoAnswer, address_of, ask, read_token
from jetstream.cli.top_view import Status, problem, view
from jetstream.urls import shown

# With --operator-tokens it needs a token.
PATH: Final = "/status.json"


def top(
    url: str = DEFAULT_URL,
    /,
    *,
    interval: Annotated[float, Parameter(validator=Number(gte=0.2, lte=3600), metavar="SECONDS")] = 2.0,
    once: Annotated[bool, Parameter(negative=())] = False,
    token_file: Annotated[Path | None, Parameter(metavar="FILE")] = None,
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
    token_file
        File with the token of an operator, if the server has --operator-tokens.
    """
    address, token = address_of(url, PATH), read_token(token_file)
    console = Console()
    if once or not console.is_terminal:
        # Here a server that does not answer ends the command with exit code 1; `watch` goes on asking.
        console.print(view(fetch(address, token), shown(url)))
        return
    watch(console, lambda: screen(address, shown(url), token), interval)


def watch(
    console: Console,
    look: Callable[[], RenderableType],
    interval_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show what `look` returns again and again, until Ctrl-C. The screen of before comes back at the end.

    `look` may take as long as `ask` does; `interval_s` seconds are waited after each.
    """
    try:
        with Live(look(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                sleep(interval_s)
                live.update(look(), refresh=True)
    except KeyboardInterrupt:
        return


def screen(address: str, url: str, token: str | None = None) -> RenderableType:
    """Return the screen of now, whether the server answers or not. `url` is what it is called there."""
    try:
        return view(fetch(address, token), url)
    except NoAnswer as error:
        return problem(url, f"{error}\nIt is asked again; Ctrl-C ends this.")


def fetch(address: str, token: str | None = None) -> Status:
    """Return the status of a server. Raises NoAnswer, also for JSON that is no object."""
    body = ask(address, token)
    if not isinstance(body, dict):
        raise NoAnswer(f"{address} does not answer with a status")
    return body
