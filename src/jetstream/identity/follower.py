"""Reads a PLC directory's `/export` to its end, and then keeps up with it.

    import      from the beginning, or from where an earlier one has ended. Keys count when the end is reached
    follow      once a minute, what is new. Keys count at once

While the follower keeps up, the cache knows every key of every `did:plc` (`Progress.complete_s`), and nothing
else needs to be asked for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import structlog

from jetstream.atproto.compact_did import compact_did
from jetstream.errors import ExportError, KeyCacheError, KeyCacheReplaced
from jetstream.identity.cache import KeyCache
from jetstream.identity.documents import Declared
from jetstream.identity.export import Page, Progress, Step, advance, before, parse_page, path_of
from jetstream.identity.failures import NoKey
from jetstream.identity.fetch import Fetches, read_body
from jetstream.identity.store import record
from jetstream.limits import ExportLimits
from jetstream.logging_setup import Throttled
from jetstream.retry import backoff_s
from jetstream.urls import shown

logger = structlog.get_logger(__name__)


class ExportFollower:
    """Reads the export of one directory into a cache.

    `url` is its base URL. `note` is called after each page, with the progress. `now` gives unix seconds.
    """

    def __init__(
        self,
        url: str,
        fetcher: Fetches,
        cache: KeyCache,
        limits: ExportLimits = ExportLimits(),
        note: Callable[[Progress], None] = lambda _progress: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._url = url.rstrip("/")
        self._name = shown(self._url)
        self._fetcher = fetcher
        self._cache = cache
        self._limits = limits
        self._note = note
        self._sleep = sleep
        self._now = now
        self._staged = _Staged()  # operations of an import that are not in the file yet
        self._largest = 0  # operations of the largest page so far
        self._answered = False  # whether the directory has ever answered, be it with an error
        self._progress = Progress()  # after the last page, which the file may lag behind
        self._known = 0  # operations that were read before `read_to_end` was called
        self._logger = Throttled(logger)

    async def run(self, ended: Callable[[str], None] = lambda _problem: None) -> None:
        """Read the export to its end, and keep up with it, until cancelled. Retry after failures.

        `ended` is called whenever its end is reached, with an empty text, and after each failure, with what
        was wrong.
        """
        while True:
            problem = ""
            try:
                await self.read_to_end()
            except (ExportError, KeyCacheError) as error:
                problem = str(error)
                self._logger.warning("the export is not followed: keys are fetched", problem=problem)
            except Exception as error:
                problem = f"{self._name}/export cannot be read, by an error of the server itself: {error!r}"
                self._logger.exception("the export is not followed: an error of the server itself")
            ended(problem)
            await self._sleep(self._limits.poll_s)

    async def read_to_end(self) -> Progress:
        """Read what is new; return the progress.

        If the file is found to be damaged, the new one is filled from the beginning, once. When it is
        cancelled, what was read is written. Raises ExportError for a directory that has no export, has less
        than was read from it before, or fails again and again, and KeyCacheError.
        """
        try:
            return await self._read_to_end()
        except KeyCacheReplaced:
            return await self._read_to_end()

    async def _read_to_end(self) -> Progress:
        self._progress = self._begin(self._cache.progress)
        self._known = self._progress.operations
        self._answered |= self._progress.operations > 0
        try:
            await self._read_pages()
        except asyncio.CancelledError:
            with suppress(KeyCacheReplaced):  # else `read_to_end` would begin again
                await asyncio.shield(self._write_staged())
            raise
        except ExportError:
            await self._write_staged()
            raise
        finally:
            self._staged = _Staged()
        return self._progress

    def _begin(self, progress: Progress) -> Progress:
        """Return where to begin. What was read of another directory says nothing of what this one has."""
        if progress.directory in {"", self._name}:
            return replace(progress, directory=self._name)
        self._logger.info(
            "another directory than before: it is read from the beginning",
            directory=self._name,
            before=progress.directory,
        )
        return Progress(self._name)

    async def _read_pages(self) -> None:
        at_end = False
        while not at_end:
            at_s = int(self._now())
            page, at_end = await self._page()
            self._report_unreadable(page)
            await self._take(page.accounts, at_s, at_end)
            self._note(self._progress)

    def _report_unreadable(self, page: Page) -> None:
        if page.unreadable:
            self._logger.warning(
                "lines of the export cannot be read, and are left out",
                lines=page.unreadable,
                since_the_beginning=self._progress.unreadable,
                example=page.example,
            )

    async def _take(self, accounts: Mapping[str, Declared], at_s: int, at_end: bool) -> None:
        """Write what a page says, now or with those of others. `at_s` is when it was asked for."""
        following = self._progress.complete_s > 0  # the import is over
        if not following:
            await self._staged.add(accounts, self._cache)
            if at_end or self._staged.operations >= self._limits.stage_ops:
                await self._write_staged()
        if at_end:
            self._progress = replace(self._progress, complete_s=at_s - self._limits.settle_s)
        if following:
            await self._cache.apply(accounts, at_s, self._progress)
        elif at_end:
            await self._cache.fold(self._limits.fold_ops, at_s, self._progress)

    async def _write_staged(self) -> None:
        """Write what an import has read, and how far that is.

        While nothing was read, the progress in the file may be that of another directory. It is kept.
        """
        done = self._progress
        if done.operations and not done.complete_s and done != self._cache.progress:
            staged, self._staged = self._staged, _Staged()
            await self._cache.stage(staged.records, self._progress)

    async def _page(self) -> tuple[Page, bool]:
        """Fetch the next page, after pauses if that fails. Return it, and whether it is the last one."""
        attempts = failures = 0
        while True:
            try:
                page = await self._fetch(self._progress)
                if not page.lines and self._progress.operations == self._known:
                    await self._require_newest()
                step = self._advance(page)
            except NoKey as error:
                attempts += 1
                failures += error.reason != "rate_limited"  # a directory that asks for patience works
                await self._recover(error, attempts, failures)
            else:
                self._progress = step.progress
                return page, step.at_end

    async def _require_newest(self) -> None:
        """Raise ExportError for a directory without the newest operation that was read before.

        With several servers behind one name, this may pass. So the progress is kept.
        """
        if not self._known:
            raise ExportError(f"{self._name}/export is empty: is this a PLC directory?")
        newest = replace(self._progress, after=before(self._progress.after))
        if not (await self._fetch(newest)).lines:
            raise ExportError(
                f"{self._name}/export ends before {self._progress.after}, up to which it was read: run the"
                " command again later or, if it is another directory now, delete keys.sqlite3 to begin again"
            )

    async def _fetch(self, progress: Progress) -> Page:
        url = self._url + path_of(progress, self._limits.page_ops)
        body = await self._fetcher.get(url, self._limits.page_bytes_max, self._limits.page_timeout_s)
        self._answered = True
        return await read_body(parse_page, body)

    def _advance(self, page: Page) -> Step:
        self._largest = max(self._largest, page.lines)
        return advance(self._progress, page, self._largest, self._limits.overlap_us)

    async def _recover(self, error: NoKey, attempts: int, failures: int) -> None:
        """Wait before another attempt. Raises ExportError when there should be none."""
        if error.status == 400 and self._progress.after == "0":
            self._progress = replace(self._progress, after="")  # it knows no numbers
            return
        self._answered |= error.status > 0
        failures_max = self._limits.page_failures_max if self._answered else self._limits.first_failures_max
        hopeless = error.reason in {"not_found", "redirect", "tls"} or 400 <= error.status < 429
        no_directory = error.reason == "malformed" and not self._largest
        if hopeless or no_directory or failures >= failures_max:
            raise ExportError(f"{self._name}/export cannot be read: {error}")
        pause_s = max(error.retry_after, backoff_s(attempts, jitter=max))
        logger.warning("the directory's export fails", problem=str(error), next_attempt_s=round(pause_s, 1))
        await self._sleep(pause_s)


class _Staged:
    """Operations of an import, as records of the file, by the first byte of their DID."""

    def __init__(self) -> None:
        self.operations = 0
        self._hosts: dict[str, int] = {}  # the numbers of hosts in the file, by name
        self._buckets: dict[int, bytearray] = {}

    async def add(self, accounts: Mapping[str, Declared], cache: KeyCache) -> None:
        """Add what a page says."""
        if unknown := {each.pds for each in accounts.values()} - self._hosts.keys():
            self._hosts |= await cache.number_hosts(unknown)
        for did, (key, pds) in accounts.items():
            compact = compact_did(did)
            self._buckets.setdefault(compact[0], bytearray()).extend(record(compact, key, self._hosts[pds]))
        self.operations += len(accounts)

    @property
    def records(self) -> dict[int, bytes]:
        """The records of each first byte."""
        return {bucket: bytes(records) for bucket, records in self._buckets.items()}
