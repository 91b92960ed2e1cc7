"""What `jetstream top` shows: the figures of `/status.json` as tables. Pure but for rich.

    one line: version, health, ready
    ! reasons why it is not well
    upstreams
    processes, if there are several
    in            │ out
    log           │ server
    collections   │ counts since the start

Every figure may be missing or null: a server that has just started does not know all of them yet, and
one of another version may have others. What is missing is a dash.

What a server says is not trusted: text is cut and has no control characters, lists have a bound, and
nothing is read as markup of rich. docs/api.md has the fields of `/status.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

# Rows of each table at most, so that a screen is not longer than a terminal.
COLLECTIONS_MAX: Final = 10
UPSTREAMS_MAX: Final = 10
PROCESSES_MAX: Final = 20
REASONS_MAX: Final = 10
# What is missing.
DASH: Final = "-"
# Bars of a history, from none to the greatest value.
_BARS: Final = " ▁▂▃▄▅▆▇█"
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
# Characters of anything that a server says.
_TEXT_CHARS_MAX: Final = 200

# A JSON object of the server: the whole status, or a part of it.
Status = Mapping[str, Any]


def view(status: Status, url: str) -> RenderableType:
    """Return one screen. `url` is what the server is called in it."""
    return Group(
        _head(status, url),
        *_reasons(status),
        _upstreams(status),
        *_processes(status),
        _columns(_events(status), _out(status)),
        _columns(_log(status), _process(status)),
        _columns(_collections(status), _counts(status)),
    )


def problem(url: str, text: str) -> RenderableType:
    """Return the screen of a server that does not answer."""
    return Panel(Text(text), title=f"{url} does not answer", border_style="red", title_align="left")


def _head(status: Status, url: str) -> RenderableType:
    """Return the first line: version, URL, time since the start, health, and whether it is ready."""
    health, ready = _text(status.get("health")), status.get("ready")
    line = Text.assemble(
        ("Jetstream ", "bold"),
        (_text(status.get("version")), "bold"),
        f"  {url}  up {_since(status)}  ",
        (health, "green" if health == "ok" else "bold red"),
    )
    if ready is not None:
        line.append("  ready" if ready else "  not ready", "green" if ready else "bold red")
    return line


def _reasons(status: Status) -> list[RenderableType]:
    """Return a line for each reason why the server is not well or not ready, with what to do."""
    # A reason may be in both lists, in other words: one is a condition, the other a check of `/ready`.
    both = [*_list(status, "reasons"), *_list(status, "not_ready")]
    lines = [
        Text(f"! {_text(each.get('text'))}{_hint(each)}", style="red")
        for each in both[:REASONS_MAX]
        if isinstance(each, Mapping)
    ]
    more = len(both) - REASONS_MAX
    return [*lines, *([Text(f"! and {more} more", style="red")] if more > 0 else [])]


def _hint(reason: Mapping[str, Any]) -> str:
    """Return what to do about a reason, as the end of its line; empty if the server does not say."""
    return f": {_text(reason['hint'])}" if reason.get("hint") else ""


def _upstreams(status: Status) -> Table:
    """Return a table of the upstreams, one a line, and of PDSes of a file how many are in each state.

    `idle` is yellow: such a PDS may have nothing to send.
    """
    table = _table("upstream", "state", "lag", "last frame", "frames/s", "seq")
    rows = _list(status, "upstreams")
    for each in rows[:UPSTREAMS_MAX]:
        state = _text(each.get("state"))
        table.add_row(
            Text(_text(each.get("name"))),
            Text(state, "green" if state == "connected" else "yellow" if state == "idle" else "red"),
            _seconds(each.get("lag_s")),
            _seconds(each.get("last_frame_age_s")),
            _number(each.get("frames_per_s"), 1),
            _number(each.get("seq")),
        )
    if len(rows) > UPSTREAMS_MAX:
        table.add_row(f"and {len(rows) - UPSTREAMS_MAX} more")
    # Beside the counts by state, `pds` has names, which are left out.
    counts = {name: each for name, each in _dict(status, "pds").items() if isinstance(each, int)}
    for name, count in list(counts.items())[:UPSTREAMS_MAX]:
        table.add_row(f"{_number(count)} PDSes", Text(_text(name)))
    return table


def _processes(status: Status) -> list[Table]:
    """Return a table of the processes of a server that has several; else none. A name says the role, too."""
    rows = _list(status, "processes")
    if not rows:
        return []
    figures = ("subscribers", "events/s", "messages/s", "lag", "CPU", "memory", "restarts")
    table = _table("process", "pid", *figures)
    table.collapse_padding = True  # so that it fits into 80 columns
    for each in rows[:PROCESSES_MAX]:
        table.add_row(
            _process_name(each),
            Text(_text(each.get("pid"))),
            _number(each.get("subscribers")),
            _number(each.get("events_per_s"), 1),
            _number(each.get("messages_per_s"), 1),
            _seconds(each.get("lag_s")),
            _percent(each.get("cpu")),
            _bytes(each.get("rss_bytes")),
            _number(each.get("ended")),
        )
    if len(rows) > PROCESSES_MAX:
        table.add_row(f"and {len(rows) - PROCESSES_MAX} more")
    return [table]


def _process_name(process: Status) -> Text:
    """Return the name of a process, in red with `down` if it is not ready."""
    name = _text(process.get("name"))
    return Text(name, "green") if process.get("ready") else Text(f"{name} down", "red")


def _events(status: Status) -> Table:
    """Return what is read: events a second, by kind, and the last hour as bars."""
    events, history = _dict(status, "events"), _dict(status, "history")
    kinds = _dict(events, "by_kind")
    return _pairs(
        "in",
        {
            "events/s": _number(events.get("per_s"), 1),
            "last hour": spark(_numbers(history, "events_per_s")),
            "in all": _number(events.get("total")),
            **{f"{_text(kind)}/s": _number(rate, 1) for kind, rate in list(kinds.items())[:REASONS_MAX]},
        },
    )


def _out(status: Status) -> Table:
    """Return what is sent: subscribers, how many of them are behind, and messages and bytes a second."""
    out, readers = _dict(status, "out"), _dict(status, "subscribers")
    history = _dict(status, "history")
    return _pairs(
        "out",
        {
            "subscribers": f"{_number(readers.get('total'))} of {_number(readers.get('max'))}",
            "by wire": _shares(readers, "by_wire"),
            "compressed": _shares(readers, "by_compression"),
            "catching up": _number(readers.get("catching_up")),
            "lagging": _number(readers.get("lagging")),
            "messages/s": _number(out.get("messages_per_s"), 1),
            "last hour": spark(_numbers(history, "messages_per_s")),
            "bytes/s": _bytes(out.get("bytes_per_s")),
        },
    )


def _log(status: Status) -> Table:
    """Return what the log holds: how far it reaches back of how far it may, its size and its growth."""
    log = _dict(status, "log")
    return _pairs(
        "log",
        {
            "events": _number(log.get("events")),
            "span": f"{_duration(log.get('span_s'))} of {_duration(log.get('retention_s'))}",
            "size": _bytes(log.get("bytes")),
            "growth a day": _bytes(log.get("bytes_per_day")),
            "written/s": _bytes(log.get("written_bytes_per_s")),
            "disk free": _bytes(log.get("disk_free_bytes")),
            "damaged parts": _number(log.get("damaged")),
        },
    )


def _process(status: Status) -> Table:
    """Return what the server's process takes of the machine, and how fast it is.

    `loop` is the delay of the event loop, `delivery` that from the read of a frame to the last live write
    of its events.
    """
    process, loop, delivery = (_dict(status, name) for name in ("process", "loop_delay_ms", "delivery_ms"))
    return _pairs(
        "server",
        {
            "CPU": _percent(process.get("cpu")),
            "memory": _bytes(process.get("rss_bytes")),
            "open files": f"{_number(process.get('open_files'))} of {_number(process.get('open_files_max'))}",
            "loop p50, p99": f"{_number(loop.get('p50'), 1)}, {_number(loop.get('p99'), 1)} ms",
            "delivery p50, p99": f"{_number(delivery.get('p50'), 1)}, {_number(delivery.get('p99'), 1)} ms",
            "waiting": _number(status.get("waiting")),
        },
    )


def _collections(status: Status) -> Table:
    """Return the most frequent collections, with events a second."""
    rows = _list(_dict(status, "events"), "by_collection")[:COLLECTIONS_MAX]
    return _pairs(
        "collections/s",
        {_text(each.get("collection")): _number(each.get("per_s"), 1) for each in rows},
    )


def _counts(status: Status) -> Table:
    """Return what was dropped, disconnected and refused since the start, by reason."""
    found: dict[str, str] = {}
    for name, label in (("drops", "dropped"), ("disconnects", "disconnected"), ("refused", "refused")):
        counts = {reason: count for reason, count in _dict(status, name).items() if count}
        for reason, count in list(counts.items())[:REASONS_MAX]:
            found[f"{label}: {_text(reason)}"] = _number(count)
    return _pairs("since the start", found or {"nothing dropped or refused": ""})


def spark(values: Sequence[float | None], width: int = 30) -> str:
    """Return numbers as bars, `width` at most: each the mean of its part. A gap is a space.

    The highest bar is the greatest mean; a value of 0 has the lowest one. None stands for a step that is
    not known.
    """
    if not values:
        return DASH
    # Rounded up, so that there are at most `width` parts; the last one may be shorter.
    step = max(1, -(-len(values) // width))
    parts = [
        [each for each in values[start : start + step] if each is not None]
        for start in range(0, len(values), step)
    ]
    means = [sum(part) / len(part) if part else None for part in parts]
    # 1 where all values are 0 or unknown: nothing is divided by 0.
    top = max((each for each in means if each is not None), default=0) or 1
    return "".join(" " if each is None else _BARS[max(1, round(each / top * 8))] for each in means)


def _columns(left: Table, right: Table) -> Table:
    """Return two tables side by side, each with half of the width."""
    grid = Table.grid(expand=True, padding=(0, 2))
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(left, right)
    return grid


def _table(*columns: str) -> Table:
    """Return an empty table with these columns: the first two to the left, figures to the right."""
    table = Table(box=None, header_style="bold", expand=True, padding=(0, 1))
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < 2 else "right", no_wrap=True)
    return table


def _pairs(title: str, rows: Mapping[str, str]) -> Table:
    """Return a table of names and values under a title."""
    table = _table(title, "")
    table.columns[1].justify = "right"
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))  # a string could have markup of rich
    return table


def _dict(status: Status, name: str) -> Mapping[str, Any]:
    """Return an object of a status; an empty one if it is missing or something else."""
    found = status.get(name)
    return found if isinstance(found, Mapping) else {}


def _list(status: Status, name: str) -> list[Any]:
    """Return the objects of a list; none if it is missing or something else."""
    found = status.get(name)
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def _numbers(status: Status, name: str) -> list[float | None]:
    """Return the numbers of a list, with None for what is none."""
    found = status.get(name)
    values = found if isinstance(found, list) else []
    return [each if isinstance(each, int | float) else None for each in values]


def _text(value: object) -> str:
    """Return what a server says of itself without control characters, which could write on the screen."""
    text = DASH if value is None else str(value)[:_TEXT_CHARS_MAX]
    return "".join(each if each.isprintable() else "?" for each in text)


def _number(value: object, digits: int = 0) -> str:
    """Return a number with commas; a dash if it is none."""
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else DASH


def _percent(value: object) -> str:
    """Return a share as whole percent, of one core for CPU time; a dash if it is no number."""
    return f"{value:.0%}" if isinstance(value, int | float) else DASH


def _seconds(value: object) -> str:
    """Return seconds with a decimal; a dash if it is no number."""
    return f"{value:,.1f} s" if isinstance(value, int | float) else DASH


def _bytes(value: object) -> str:
    """Return bytes with a decimal unit up to TB; a dash if it is no number."""
    if not isinstance(value, int | float):
        return DASH
    size, unit = float(value), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{size:.0f} B"


def _duration(value: object) -> str:
    """Return seconds as `2d 3:04:05`, at most 100,000 days; a dash if it is no number."""
    if not isinstance(value, int | float):
        return DASH
    whole = timedelta(seconds=round(max(0, min(value, 86_400 * 100_000))))
    clock = str(timedelta(seconds=whole.seconds))
    return f"{whole.days}d {clock}" if whole.days else clock


def _since(status: Status) -> str:
    """Return for how long the server has been running, by its own clock; a dash if it does not say."""
    now, started = status.get("now_us"), status.get("started_us")
    if not isinstance(now, int | float) or not isinstance(started, int | float):
        return DASH
    return _duration((now - started) / 1e6)


def _shares(status: Status, name: str) -> str:
    """Return the counts of an object in one line, without those that are 0; a dash if there are none."""
    found = _dict(status, name)
    return ", ".join(f"{_text(each)} {_number(count)}" for each, count in found.items() if count) or DASH
