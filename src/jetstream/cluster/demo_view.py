"""What `jetstream demo-cluster` shows: its processes as a table, and what to try. Pure but for rich.

Functions whose name begins with `of_` return what a process does, in words, and its mood: `good`,
`waits` or `bad`. `demo` asks the processes, and nothing here does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

# How a mood is shown.
_STYLES: Final = {"good": "green", "waits": "yellow", "bad": "bold red"}
# Characters of what a process says of itself: a row should fit into one or two lines of a terminal.
_TEXT_CHARS_MAX: Final = 90


class Row(NamedTuple):
    """A process: who it is, where it answers, and what it does."""

    name: str
    # Its ID, to kill it with; None: it does not run.
    pid: int | None
    # Its URL, or host and port of PostgreSQL.
    where: str
    state: str
    # A key of `_STYLES`.
    mood: str = "good"


class Served(NamedTuple):
    """What clients have."""

    url: str
    # Events that are new in the log each second; None: it is not known.
    events_per_s: float | None = None


def view(served: Served, rows: Iterable[Row]) -> RenderableType:
    """Return the screen.

    It is the first line, and the table below it.
    """
    return Group(_head(served), _table(rows))


def _head(served: Served) -> Text:
    """Return the line above the table: where clients get events, and how many are new."""
    rate = "-" if served.events_per_s is None else f"{served.events_per_s:.0f}"
    return Text.assemble(
        ("events  ", "dim"),
        (served.url, "bold"),
        f"   {rate} new a second",
    )


def _table(rows: Iterable[Row]) -> Table:
    """Return the table. States are folded, and all other columns keep their width."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column("process", no_wrap=True)
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("where", no_wrap=True)
    table.add_column("state", overflow="fold")
    for row in rows:
        pid = "-" if row.pid is None else str(row.pid)
        table.add_row(row.name, pid, row.where, Text(row.state, _STYLES[row.mood]))
    return table


def counted(count: int, thing: str) -> str:
    """Return a number of things, in words."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def of_edge(status: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return what an edge does, and its mood, by its `/status.json`; None: it does not answer."""
    if status is None:
        return "does not answer", "bad"
    text = counted(status["subscribers"]["total"], "subscriber")
    return (text, "good") if status["ready"] else (f"{text}; not ready: {_why(status)}", "waits")


def of_ingest(status: Mapping[str, Any] | None, epoch: int | None) -> tuple[str, str]:
    """Return what an ingest does, and its mood. `epoch` is its term; None: it does not lead.

    One that leads is `good`, one that stands by `waits`. An ingest is ready also while it stands by, so
    one that is not ready is `bad`.
    """
    if status is None:
        return "does not answer", "bad"
    text = "stands by" if epoch is None else f"leads, term {epoch}"
    if status["ready"]:
        return text, "good" if epoch is not None else "waits"
    return f"{text}; not ready: {_why(status)}", "bad"


def of_server(*, accepts: bool, standby: bool, synchronous: bool | None) -> tuple[str, str]:
    """Return what a server of PostgreSQL does, and its mood.

    `synchronous` tells of a standby whether commits wait for it; None: the primary does not answer.
    """
    if not accepts:
        return "does not answer", "bad"
    if not standby:
        return "primary", "good"
    if synchronous:
        return "standby, synchronous", "good"
    return "standby, without a primary" if synchronous is None else "standby, not connected", "waits"


def _why(status: Mapping[str, Any]) -> str:
    """Return why a process is not ready, by its `/status.json`, cut to `_TEXT_CHARS_MAX` characters."""
    texts = [each["text"] for each in status["not_ready"]]
    return "; ".join(texts)[:_TEXT_CHARS_MAX] or "it starts"


def to_try(url: str, directory: Path, database: str, *, ingests: int, restarts: bool) -> Text:
    """Return what an operator could try. `directory` has the files with the IDs of processes.

    `url` is that of the balancer and `database` the address of a server for psql. What happens after a
    kill depends on how many ingests there are, and on whether processes are started again.
    """
    then = "ingest-2 leads after 3 s" if ingests > 1 else "nothing new comes until it is back"
    after = "" if restarts else ", and stays away"
    lines = [
        ("jetstream tail" if ":6008/" in url else f"jetstream tail {url}", "read events"),
        (f"kill -9 $(cat {directory}/ingest-1.pid)", f"the leader is lost{after}: {then}"),
        (f"kill -9 $(cat {directory}/edge-1.pid)", f"an edge is lost{after}: its clients go on at others"),
        (f"kill -9 $(cat {directory}/postgres-1.pid)", f"the primary is lost{after}"),
        (f"psql {database}", "look at the log's tables: term, tail, segment"),
        (f"tail -f {directory}/ingest-1.log", "what a process says"),
    ]
    text = Text("\ntry, in another terminal\n")
    for command, why in lines:
        text.append(f"  # {why}\n", "dim").append(f"  {command}\n")
    return text.append("Ctrl-C ends everything.\n")
