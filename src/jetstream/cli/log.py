"""`jetstream log`: inspect, check, repair and export the event log.

    stats, check, cat             read a log; a server may be running
    repair, rebase-time           change a log in SQLite; the server must be stopped
    migrate, copy                 change a database

A log is named as for a server, by `--log` or `--data-dir` and their variables, so that the same
environment serves both. Modules of PostgreSQL are loaded for such a log only: without the driver,
everything works that is about SQLite. A LogError, such as that of a log that another process writes,
ends the command with exit code 1.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import orjson
from cyclopts import Parameter

from jetstream.cli.times import parse_moment
from jetstream.clock import unix_us
from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.renderers.v1 import V1
from jetstream.errors import SettingError
from jetstream.eventlog.contents import Checked, Contents
from jetstream.eventlog.opening import require_driver
from jetstream.eventlog.sqlite.check import Findings
from jetstream.eventlog.sqlite.check import check as check_log
from jetstream.eventlog.sqlite.export import contents, selected
from jetstream.eventlog.sqlite.rebase import rebase
from jetstream.eventlog.sqlite.repair import repair as repair_log
from jetstream.model.batch import Batch
from jetstream.model.event import KIND_NAMES, Event
from jetstream.model.filter import Filter
from jetstream.settings import refuse_file, unset_if_empty
from jetstream.settings.log import LOG, log_directory
from jetstream.settings.values import LogUrl

# Of `check`. It has said what is damaged by then, so there is no line on standard error.
EXIT_DAMAGED: Final = 1
# Lines of `stats`. With `--json` all collections are shown.
COLLECTIONS_SHOWN: Final = 20

# Also of `jetstream keys` and `jetstream dictionary`. A file in place of the directory is refused here;
# whether the directory exists is not asked.
DataDir = Annotated[
    Path,
    Parameter(
        env_var="JETSTREAM_DATA_DIR",
        env_var_split=unset_if_empty,
        validator=lambda _type, directory: refuse_file(directory),
        metavar="DIRECTORY",
        show_default=lambda directory: f"./{directory}",
        help="Directory of the event log, if --log is not given.",
    ),
]
LogPlace = Annotated[LogUrl | None, LOG]
# That of `jetstream serve`.
DEFAULT_DATA_DIR: Final = Path("./data")


def _directory(log: LogUrl | None, data_dir: Path) -> Path:
    """Return the directory of the log. Raises SettingError, with the flag that names it."""
    directory = log_directory(log, data_dir)
    refuse_file(directory, "--data-dir" if log is None else "--log")
    return directory


def _contents(log: LogUrl | None, data_dir: Path) -> Contents:
    """Count what a log holds: all events are read. Raises LogError, and SettingError without the driver."""
    if log is None or log.address is None:
        return contents(_directory(log, data_dir))
    # The module after it imports asyncpg: without it, this error names the extra to install.
    require_driver()
    from jetstream.eventlog.postgresql import export  # noqa: PLC0415 - loads asyncpg

    return export.contents(log.address)


def _selected(
    log: LogUrl | None, data_dir: Path, start: int, stop: int | None, wanted: Filter
) -> Iterator[tuple[Batch, Sequence[int]]]:
    """Yield the wanted events of a log in `[start, stop)`, as batches with the indices of those in each.

    Positions are unix microseconds; `stop` None: up to the tip. Raises as `_contents` does.
    """
    if log is None or log.address is None:
        return selected(_directory(log, data_dir), start, stop, wanted)
    require_driver()
    from jetstream.eventlog.postgresql import export  # noqa: PLC0415 - loads asyncpg

    return export.selected(log.address, start, stop, wanted)


def _checked(log: LogUrl | None, data_dir: Path) -> Findings | Checked:
    """Return what a check of the whole log has found. Raises as `_contents` does.

    In SQLite damaged parts can be removed afterwards, so its `Findings` say more.
    """
    if log is None or log.address is None:
        return check_log(_directory(log, data_dir))
    require_driver()
    from jetstream.eventlog.postgresql import export  # noqa: PLC0415 - loads asyncpg

    return export.check(log.address)


def stats(
    *,
    log: LogPlace = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    json: Annotated[bool, Parameter(help="Print one JSON object.", negative=())] = False,
) -> None:
    """Show the size of the log, its time range and what it contains. A server may be running."""
    held = _contents(log, data_dir)
    if json:
        _print(orjson.dumps(_as_json(held), option=orjson.OPT_INDENT_2).decode())
    else:
        _print_stats(held)


def _as_json(held: Contents) -> dict[str, object]:
    """Return what a log holds as the object of `--json`; all collections are in it.

    Figures that are quotients are null in an empty log.
    """
    events = sum(held.kinds.values())
    return {
        "events": events,
        "segments": held.segments,
        "bytes_on_disk": held.bytes_on_disk,
        "bytes_per_event": round(held.bytes_on_disk / events, 1) if events else None,
        "share_of_json": round(_ratio(held), 4) if events else None,
        "floor_us": held.floor,
        "tip_us": held.tip,
        "oldest_us": held.oldest_us,
        "newest_us": held.newest_us,
        "upstreams": {source: cursor.seq for source, cursor in held.cursors.items()},
        "repos": held.repos,
        "repo_changes": held.repo_changes,
        "gaps": held.gaps,
        "kinds": {KIND_NAMES[kind]: count for kind, count in sorted(held.kinds.items())},
        "collections": {name.decode(): count for name, count in held.collections.most_common()},
    }


def _print_stats(held: Contents) -> None:
    """Print what a log holds, one figure a line.

    Its size comes first, then its ends and the cursors of upstreams, then events by kind and by
    collection.
    """
    events = sum(held.kinds.values())
    _print(f"events       {events:,}")
    _print(f"segments     {held.segments:,}")
    _print(f"on disk      {held.bytes_on_disk:,} bytes")
    if events:
        _print(
            f"per event    {held.bytes_on_disk / events:.1f} bytes, {_ratio(held):.3f} of the same as JSON"
        )
    _print(f"floor        {_moment(held.floor)}")
    _print(f"oldest       {_moment(held.oldest_us)}")
    _print(f"newest       {_moment(held.newest_us)}")
    cursors = [f"{source}, seq {cursor.seq}" for source, cursor in held.cursors.items()]
    _print(f"upstream     {'; '.join(cursors) or 'none'}")
    if held.repos or held.repo_changes:
        _print(f"states       {held.repos:,} of repositories; {held.repo_changes:,} appends not merged yet")
    if held.gaps:
        _print(f"gaps         {held.gaps:,}")
    for kind, count in sorted(held.kinds.items()):
        _print(f"{KIND_NAMES[kind]:12} {count:,}")
    for collection, count in held.collections.most_common(COLLECTIONS_SHOWN):
        _print(f"{count:12,} {collection.decode()}")
    if len(held.collections) > COLLECTIONS_SHOWN:
        _print(f"{'':12} and {len(held.collections) - COLLECTIONS_SHOWN} more collections")


def check(*, log: LogPlace = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Read the whole log and verify its checksums; exit 1 if it is damaged. A server may be running."""
    found = _checked(log, data_dir)
    for problem in found.problems:
        _print(f"damaged: {problem}")
    _print(f"{found.events:,} events in {found.segments:,} segments and the tail are undamaged")
    if found.problems:
        # A database is not repaired: what PostgreSQL has lost is in its backups.
        in_file = "stop the server and run `jetstream log repair` to keep them"
        _print(in_file if isinstance(found, Findings) else "restore the database from a backup")
        sys.exit(EXIT_DAMAGED)


def repair(*, log: LogPlace = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Keep every undamaged segment of a damaged log, and keep the old file too. Stop the server first."""
    found, aside = repair_log(_directory(log, data_dir))
    for problem in found.problems:
        _print(f"damaged: {problem}")
    _print(f"kept {found.events:,} events in {found.segments:,} segments and the tail")
    if aside is not None:
        _print(f"the damaged file is now {aside}")
    elif found.problems:
        _print("repaired in place: damaged parts were deleted")
    else:
        _print("nothing is damaged: nothing was changed")


def rebase_time(*, log: LogPlace = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Move positions that are ahead of the clock back to the present. Stop the server first.

    Cursors that clients have stored from that range then refer to other events.
    """
    result = rebase(_directory(log, data_dir), unix_us())
    if result.tip_before_us == result.tip_us:
        _print(
            f"the newest position, {_moment(result.tip_us)}, is not ahead of the clock: nothing was changed"
        )
        return
    _print(f"the newest position was {_moment(result.tip_before_us)}, and is now {_moment(result.tip_us)}")
    _print(f"{result.events:,} events have new positions, in the same order")
    _print("cursors that clients have stored refer to other events now: start from a time, or live")


def migrate(*, log: LogPlace = None) -> None:
    """Create the tables of a log in PostgreSQL, or change those of the version before.

    In an upgrade of many machines, replace the programs first, and migrate last.
    """
    address = _address(log)
    from jetstream.eventlog.postgresql import leading  # noqa: PLC0415

    version = asyncio.run(leading.migrate_tables(address))
    _print(f"the tables of {log} have version {version}")


def copy(*, log: LogPlace = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Copy the log of --data-dir into the empty database of --log. Stop the server first.

    Positions stay, so cursors that clients have stored stay valid.
    """
    address = _address(log)
    from jetstream.eventlog.postgresql import copying  # noqa: PLC0415

    refuse_file(data_dir)
    copied = asyncio.run(copying.copy(data_dir, address))
    _print(f"copied {copied.events:,} events, {copied.segments:,} segments, up to {_moment(copied.tip_us)}")


def _address(log: LogUrl | None) -> str:
    """Return the address of a database. Raises SettingError for a log in none, or without the driver.

    For commands that need PostgreSQL: their modules may be imported after this.
    """
    if log is None or log.address is None:
        raise SettingError("--log", "none" if log is None else str(log), "is not a postgresql:// address")
    require_driver()
    return log.address


def cat(
    *,
    log: LogPlace = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    since: Annotated[
        str | None,
        Parameter(
            help="Start at this time: unix microseconds, 2026-07-04T14:30:00Z, or an age: -10m, 24h.",
            allow_leading_hyphen=True,
            metavar="TIME",
        ),
    ] = None,
    until: Annotated[
        str | None,
        Parameter(help="End before this time. Like --since.", allow_leading_hyphen=True, metavar="TIME"),
    ] = None,
    collection: Annotated[
        list[str] | None,
        Parameter(
            help="Only commits to this collection, or to a prefix: app.bsky.graph.*. May be repeated.",
            negative=(),
            metavar="NSID",
        ),
    ] = None,
    did: Annotated[
        list[str] | None,
        Parameter(help="Only events of this account. May be repeated.", negative=(), metavar="DID"),
    ] = None,
    wire: Annotated[Literal["classic", "v1", "v2"], Parameter(help="Wire format; v2 has syncs.")] = "v1",
) -> None:
    """Write events as JSON lines, in the v1 wire or another. A server may be running."""
    # Ages count from one moment, so `--since -10m --until -5m` are five minutes.
    wanted = Filter.parse(collection or [], did or [])
    now_us = unix_us()
    start = 0 if since is None else parse_moment("--since", since, now_us)
    stop = None if until is None else parse_moment("--until", until, now_us)
    out = sys.stdout.buffer
    try:
        # A wire that has no message for an event renders it empty, as v1 does with syncs.
        for batch, indices in _selected(log, data_dir, start, stop, wanted):
            out.writelines(message + b"\n" for message in RENDERERS[wire].render(batch, indices) if message)
        out.flush()
    except BrokenPipeError:
        # The reader has seen enough. Python would raise again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _ratio(held: Contents) -> float:
    """Return the bytes on disk over those of the same events as v1 JSON.

    The log must not be empty. The JSON is not made: its length is that of the values, and of what is
    around them.
    """
    around = sum(count * _around(kind) for kind, count in held.kinds.items())
    return held.bytes_on_disk / (held.text_bytes + around)


def _around(kind: bytes) -> int:
    """Return how many bytes v1 JSON has around the values of an event.

    It is measured on an event without values. All times have 16 digits, so any will do.
    """
    return len(V1.render(Batch.of([Event(kind, *[b""] * 6)], [10**15]), [0])[0])


def _moment(time_us: int | None) -> str:
    """Return a position as it is, and as a date in UTC; `none` for one that is absent or 0."""
    if not time_us:
        return "none"
    return f"{time_us} ({datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec='milliseconds')})"


def _print(text: str) -> None:
    # Not flushed: the output of these commands ends with the command.
    print(text)  # noqa: T201 - the output of a command
