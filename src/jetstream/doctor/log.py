"""The health of an event log: whether it can be read, is undamaged, and agrees with the clock.

Of a log in SQLite. It is only read, and a server may write it meanwhile.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from jetstream.clock import clock_reason
from jetstream.doctor.finding import Finding, size
from jetstream.errors import LogError, LogFormat
from jetstream.eventlog.sqlite.check import check
from jetstream.eventlog.sqlite.export import Extent, extent
from jetstream.eventlog.sqlite.schema import DATABASE

# Bytes up to which a log is read as a whole. `jetstream log check` reads one of any size.
CHECK_BYTES_MAX: Final = 1 << 30


def read_extent(directory: Path) -> Extent | None:
    """Return what a log holds; None without one that can be read. Why not is what `check_log` says."""
    try:
        return extent(directory)
    except LogError:
        return None


def check_log(directory: Path, now_us: int, bytes_max: int = CHECK_BYTES_MAX) -> Finding:
    """Check a log. Its checksums are verified if it has up to `bytes_max` bytes. A server may be running.

    `now_us` is unix microseconds. A directory without a log is well: the server creates it.
    """
    if not (directory / DATABASE).exists():
        return Finding("log", "ok", f"{directory} has none yet: the process that writes it creates one")
    try:
        held = extent(directory)
        problem = _unusable(directory) or _damage(directory, held, bytes_max)
    except LogFormat as error:
        return Finding("log", "fail", str(error), "use the version that wrote it, or another --data-dir")
    except LogError as error:
        return Finding("log", "fail", str(error), "stop the server and run `jetstream log repair`")
    if problem is not None:
        return problem
    # No step of the clock is ignored here, so the reason can only be that the tip is ahead.
    if reason := clock_reason(held.tip_us, now_us, 0, 0):
        text, _, hint = reason.partition("; ")
        return Finding("log", "warn", text, hint)
    return Finding(
        "log", "ok", f"{held.events:,} events, {size(held.bytes_on_disk)}{_depth(held, bytes_max)}"
    )


def _depth(held: Extent, bytes_max: int) -> str:
    """Return how far it was checked, as the end of a sentence."""
    if held.bytes_on_disk <= bytes_max:
        return ", undamaged"
    return "; not read as a whole: `jetstream log check` does"


def _unusable(directory: Path) -> Finding | None:
    """Return why this user cannot write a log that is there.

    SQLite makes files beside the database, so the directory must be writable, too.
    """
    for path in (directory, directory / DATABASE):
        if not os.access(path, os.W_OK):
            text = f"{path} cannot be written by user {os.geteuid()}"
            return Finding(
                "log", "fail", text, f"chown -R it to the user of the server, of {directory} as a whole"
            )
    return None


def _damage(directory: Path, held: Extent, bytes_max: int) -> Finding | None:
    """Return what is damaged of a log; None if nothing is, or if it is too large to be read as a whole.

    Raises LogError.
    """
    if held.bytes_on_disk > bytes_max:
        return None
    problems = check(directory).problems
    if not problems:
        return None
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    hint = "stop the server and run `jetstream log repair`"
    return Finding("log", "fail", f"is damaged: {problems[0]}{more}", hint)
