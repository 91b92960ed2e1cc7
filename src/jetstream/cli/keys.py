"""`jetstream keys`: the signing keys of all accounts, from the export of a PLC directory.

    export, page by page ─▶ ExportFollower ─▶ KeyCache: a database ─▶ a server that verifies

What was read is stored with how far it was read, so an interrupted import goes on where it was. Only one
process may import at a time (`export_lock`); servers read the keys meanwhile.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import structlog
from cyclopts import Parameter

from jetstream import logging_setup
from jetstream.cli.log import DEFAULT_DATA_DIR, DataDir
from jetstream.cli.tail import EXIT_INTERRUPTED
from jetstream.clock import iso
from jetstream.errors import KeyCacheFull, SettingError
from jetstream.identity.cache import KeyCache
from jetstream.identity.export import Progress
from jetstream.identity.fetch import Fetcher
from jetstream.identity.follower import ExportFollower
from jetstream.identity.store import KeyStore, export_lock
from jetstream.limits import ExportLimits
from jetstream.runtime import run, stop_on_signals
from jetstream.settings import PLC_URL, PLC_URL_VARIABLE, first_at_comma, parse_web_url
from jetstream.urls import shown

# What is said at the end of the export.
_ALL: Final = "all signing keys are there"
# Seconds between two progress lines on a terminal.
_LINE_S: Final = 0.25

logger = structlog.get_logger(__name__)


def import_keys(
    *,
    data_dir: Annotated[
        DataDir, Parameter(help="Directory of the keys; that of the server.")
    ] = DEFAULT_DATA_DIR,
    plc_url: Annotated[
        str, Parameter(env_var=PLC_URL_VARIABLE, env_var_split=first_at_comma, metavar="URL")
    ] = PLC_URL,
    follow: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Fetch the signing keys of all did:plc accounts into the data directory, for a server that verifies.

    Parameters
    ----------
    plc_url
        The PLC directory. Of several in the variable, the first.
    follow
        When the end is reached, keep up: ask once a minute for what is new, until interrupted.
    """
    logging_setup.configure("info", "auto")
    _check_url(plc_url)
    # Held until the end. Raises KeyCacheError if another process reads the export into this directory.
    with export_lock(data_dir):
        try:
            run(_import(data_dir, plc_url, follow))
        except KeyCacheFull as error:
            problem = f"{error.problem}: free some space and run the command again"
            raise KeyCacheFull(error.path, problem) from error


def _check_url(url: str) -> None:
    """Raise SettingError for what is no base URL, or has a query: a path is appended to it."""
    try:
        parse_web_url(url)
    except ValueError as error:
        raise SettingError("--plc-url", shown(url), str(error)) from error
    if urlsplit(url).query:
        raise SettingError("--plc-url", shown(url), "must have no query")


async def _import(data_dir: Path, url: str, follow: bool) -> None:
    """Read the export to its end, and with `follow` until interrupted.

    Raises what the import raises, and SystemExit with `EXIT_INTERRUPTED` if it was interrupted before
    the end.
    """
    fetcher = Fetcher(1)
    report = Report(sys.stderr.isatty())
    try:
        async with KeyCache(KeyStore(data_dir)) as cache:
            logger.info("importing signing keys", directory=shown(url), operations=cache.progress.operations)
            # The import is a task of its own: a signal cancels it, and the cache is closed in good order
            # after it.
            follower = ExportFollower(url, fetcher, cache, note=report.note)
            task = asyncio.create_task(_work(follower, follow, cache, report))
            stop_on_signals(partial(_cancel, task))
            await asyncio.wait([task])
            complete = bool(cache.progress.complete_s)
    finally:
        report.end()
        await fetcher.close()
    # An interruption after the end of the export, while it is followed, is no failure.
    if not task.cancelled():
        task.result()
    elif not complete:
        logger.info("interrupted: run the command again to go on")
        sys.exit(EXIT_INTERRUPTED)


def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel the import, at the first signal: `Task.cancel` without its result."""
    task.cancel()


async def _work(follower: ExportFollower, follow: bool, cache: KeyCache, report: Report) -> None:
    """Read to the end of the export, say how much there is, and follow it if that is wanted."""
    progress = await follower.read_to_end()
    report.end()
    size = f"{await cache.bytes_on_disk() / 1e6:,.1f} MB"
    said = _ALL if not progress.unreadable else f"{_ALL}, except those in lines that cannot be read"
    logger.info(said, operations=progress.operations, unreadable=progress.unreadable, on_disk=size)
    if follow:
        await follower.run()


class Report:
    """Says how far an import is: on a terminal in one line that is written again, else in the log.

    `terminal` tells whether standard error is one. `clock` gives monotonic seconds.
    """

    def __init__(self, terminal: bool, clock: Callable[[], float] = time.monotonic) -> None:
        # Fixed. Lines of the log are rarer than those on a terminal.
        self._terminal = terminal
        self._clock = clock
        self._every_s = _LINE_S if terminal else ExportLimits().progress_s
        # When the last line was written, in seconds of the clock; at first, when the import began.
        self._said_at = clock()
        # Time and operations of the first page. What was there before this run does not count for the
        # rate. None before.
        self._began: tuple[float, int] | None = None
        # Whether a line on the terminal has no end yet. Then a log line would be written behind it.
        self._open = False

    def note(self, progress: Progress) -> None:
        """Say it, unless it was said a moment ago. Called with each page of the export."""
        now = self._clock()
        if self._began is None:
            self._began = now, progress.operations
        if now - self._said_at < self._every_s:
            return
        self._said_at = now
        # The mean of this run. Never divided by 0, should two pages come in the same moment.
        rate = round((progress.operations - self._began[1]) / max(now - self._began[0], 0.001))
        until = iso(progress.newest_us)
        if self._terminal:
            text = f"{progress.operations:,} operations, {rate:,}/s, up to {until}"
            sys.stderr.write(f"\r{text:<70}")
            sys.stderr.flush()
            self._open = True
        else:
            logger.info("reading", operations=progress.operations, per_s=rate, up_to=until)

    def end(self) -> None:
        """End a line on the terminal, before something else is written. Does nothing if there is none."""
        if self._open:
            sys.stderr.write("\n")
            self._open = False
