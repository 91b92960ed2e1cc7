"""`jetstream subscribers list` and `kick`: who is connected to a running server.

They ask `/subscribers.json` and `/subscribers/kick`, which are for operators: with a token, or without
one from the same machine if the server has no --operator-tokens. A server of another version may know
other fields: what is missing is a dash.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jetstream.cli.ask import DEFAULT_URL, NoAnswer, address_of, ask, read_token
from jetstream.errors import SettingError

# Routes of `web/subscribers.py`; docs/api.md describes them.
LIST_PATH: Final = "/subscribers.json"
KICK_PATH: Final = "/subscribers/kick"
# Of a filter in the table; what is longer ends with an ellipsis.
_FILTER_CHARS_MAX: Final = 60
# Seconds of lag below which a subscriber counts as live, and the column has a dash.
_LIVE_LAG_S: Final = 1.0
# Seconds that are shown at most, whatever the server says: `timedelta` takes no more than 8.6e13.
_DURATION_MAX_S: Final = 1e9
# Columns of a table that is written to a file or a pipe, where rich would take 80.
_WIDTH: Final = 160
# Restrictions that are a number or a list, in the order in which they are shown.
_LISTS: Final = ("collections", "excludeCollections", "kinds", "text")

Url = Annotated[str, Parameter(metavar="URL")]
TokenFile = Annotated[Path | None, Parameter(metavar="FILE")]
# One subscriber, as the server describes it.
Row = Mapping[str, Any]


def list_(
    *,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Show the subscribers of a server, the oldest first.

    Parameters
    ----------
    url
        The server: a host, or a URL.
    token_file
        File with the token of an operator, if the server has --operator-tokens.
    json
        Print one JSON object a line.
    """
    rows = subscribers(address_of(url, LIST_PATH, "--url"), read_token(token_file))
    if json:
        for row in rows:
            sys.stdout.buffer.write(orjson.dumps(row) + b"\n")
        sys.stdout.flush()
    else:
        # Into a pipe nothing is cut off at the width of a terminal.
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, _WIDTH)
        console.print(table(list(rows), time.time()))


def kick(
    *ids: Annotated[int, Parameter(metavar="ID")],
    address: Annotated[
        list[str] | None, Parameter(metavar="NETWORK", negative=(), consume_multiple=False)
    ] = None,
    all: Annotated[bool, Parameter(negative=())] = False,  # noqa: A002 - the flag is --all
    reason: Annotated[str | None, Parameter(metavar="TEXT")] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
) -> None:
    """Disconnect subscribers, and print how many. They may come back, unless something else stops them.

    Parameters
    ----------
    ids
        Those with these IDs, which `jetstream subscribers list` shows.
    address
        Those of an address or a network, such as 203.0.113.0/24. Repeat it for several.
    all
        All of them.
    reason
        What they are told.
    url
        The server: a host, or a URL.
    token_file
        File with the token of an operator, if the server has --operator-tokens.
    """
    if not (ids or address or all):
        raise SettingError("jetstream subscribers kick", "", "names nobody: give an ID, --address or --all")
    body: dict[str, object] = {"ids": ids, "addresses": address or [], "all": all}
    if reason is not None:
        body["reason"] = reason
    answer = ask(address_of(url, KICK_PATH, "--url"), read_token(token_file), body)
    print(f"disconnected {_number(answer, 'kicked')}{_gone(answer)}")  # noqa: T201 - the output of the command


def _gone(answer: Any) -> str:
    """Return which of the IDs are of nobody; empty if there is none."""
    unknown = answer.get("unknown_ids") if isinstance(answer, dict) else None
    return f"; not connected (any more): {', '.join(map(str, unknown))}" if unknown else ""


def subscribers(address: str, token: str | None = None) -> Iterator[Row]:
    """Yield the subscribers of a server, page by page. Raises NoAnswer.

    `address` is the URL of `LIST_PATH`. Subscribers that come meanwhile may be missing: a page begins
    after the ID of the last one.
    """
    after: int | None = 0
    while after is not None:
        page = ask(f"{address}?after={after}", token)
        rows = page.get("subscribers") if isinstance(page, dict) else None
        if not isinstance(rows, list):
            raise NoAnswer(f"{address} does not answer with subscribers")
        yield from rows
        after = page.get("next")


def table(rows: list[Row], now_s: float) -> Table:
    """Return a table of subscribers. A column in which nobody has anything is left out.

    `now_s` is unix seconds, for how long each is connected. Without subscribers all columns are there.
    """
    head = (
        "id",
        "address",
        "token",
        "wire",
        "transport",
        "filter",
        "since",
        "state",
        "lag",
        "messages",
        "bytes",
    )
    cells = [_cells(row, now_s) for row in rows]
    # By column, to find the empty ones; and back to rows.
    columns = [each for each in zip(head, *cells, strict=True) if not cells or {*each[1:]} != {"-"}]
    names, *rows_shown = zip(*columns, strict=True)
    made = Table(
        *names, box=None, header_style="bold", title=f"{len(rows)} subscribers", title_justify="left"
    )
    for each in rows_shown:
        made.add_row(*map(escape, each))
    return made


def _cells(row: Row, now_s: float) -> list[str]:
    """Return the cells of a row, in the order of the columns; `-` where there is nothing."""
    compression = row.get("compression", "none")
    transport = f"{row.get('transport')}" + ("" if compression == "none" else f" {compression}")
    since = _duration(now_s - row.get("connected_us", 0) / 1e6)
    lag = row.get("lag_s")
    return [
        f"{row.get('id')}",
        f"{row.get('address')}",
        row.get("token") or "-",
        f"{row.get('wire')}",
        transport,
        summary(row.get("filter", {})),
        f"{since}",
        f"{row.get('state')}",
        "-" if lag is None or lag < _LIVE_LAG_S else f"{_duration(lag)}",
        f"{row.get('messages', 0):,}",
        f"{row.get('bytes', 0):,}",
    ]


def _duration(seconds: float) -> timedelta:
    """Return seconds as a time that prints as `1:02:03`; below 0 as 0.

    They come from the server, whose clock may differ from ours.
    """
    return timedelta(seconds=int(max(0.0, min(seconds, _DURATION_MAX_S))))


def summary(wanted: Mapping[str, Any]) -> str:
    """Return a filter in a few words; all: there is none.

    Of DIDs only the number is shown, or the one if there is only one.
    """
    parts = [f"{name}={','.join(wanted[name])}" for name in _LISTS if wanted.get(name)]
    for name in ("dids", "excludeDids"):
        number = wanted.get(name, {}).get("number", 0)
        # With one account, its DID says more than the number.
        if number:
            some = wanted[name].get("some", [])
            parts.append(f"{name}={some[0]}" if number == 1 and some else f"{number} {name}")
    if wanted.get("sample", 100) != 100:
        parts.append(f"sample={wanted['sample']:g}")
    if wanted.get("records"):
        parts.append("records")
    text = " ".join(parts) or "all"
    return text if len(text) <= _FILTER_CHARS_MAX else text[: _FILTER_CHARS_MAX - 1] + "…"


def _number(answer: Any, name: str) -> int:
    """Return a count of an answer. Raises NoAnswer if it has none: something else has answered."""
    if not isinstance(answer, dict) or not isinstance(answer.get(name), int):
        raise NoAnswer(f"the server does not say how many were {name}")
    number: int = answer[name]
    return number
