"""The keys of active accounts in memory, before those of all accounts in a file.

One thread does everything that concerns the file, so the event loop never waits for a disk. Keys that are
fetched are written in batches. When the file cannot be read or written, the cache goes on without it.

    put, forget ──▶ memory ──▶ unwritten ──▶ in writing ──▶ the file
                      ▲                                        │
                      └──────────────── load ──────────────────┘
    apply, stage, fold: pages of the export ──▶ the file, and what of it memory has

What is newer wins. A value in memory, unwritten or in writing is newer than what a read has found meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Self, TypeVar

import structlog

from jetstream.atproto.compact_did import compact_did
from jetstream.atproto.encoded_key import EncodedKey
from jetstream.errors import KeyCacheError, KeyCacheReplaced
from jetstream.identity.documents import Declared
from jetstream.identity.export import Progress
from jetstream.identity.generations import Generations
from jetstream.identity.held import Held, pack, pack_key, unpack
from jetstream.identity.store import KeyStore, Row
from jetstream.limits import KeyLimits
from jetstream.logging_setup import Throttled

Result = TypeVar("Result")

logger = structlog.get_logger(__name__)


class KeyCache:
    """What is known of accounts, in memory and in a file: an async context manager that closes the file.

    Used by the event loop's thread only. `now` gives unix seconds. Methods that say so raise KeyCacheError.
    The others log what is wrong with the file, and go on.
    """

    def __init__(
        self, store: KeyStore, limits: KeyLimits = KeyLimits(), now: Callable[[], float] = time.time
    ) -> None:
        self._store = store  # used in `_thread` only
        self._limits = limits
        self._now = now
        self._thread = ThreadPoolExecutor(1, "keys")
        # What is known of the accounts that were used last, packed (`held`), by DID.
        self._memory: Generations[str, bytes] = Generations(limits.memory_entries)
        # What is not in the file yet: by DID, packed; None: the row is to be removed.
        self._unwritten: dict[str, bytes | None] = {}
        # What is being written, so that a read which came before it is known to be older.
        self._in_writing: dict[str, bytes | None] = {}
        self._writing: asyncio.Task[None] | None = None  # writes them, now or in a moment
        # DIDs that are about to be read from the file, each with a future that is done after the look,
        # and the task that reads.
        self._wanted: dict[str, asyncio.Future[None]] = {}
        self._reading: asyncio.Task[None] | None = None
        # How far the export was read, as the file has it; see `load_progress`.
        self.progress = Progress()
        self._logger = Throttled(logger)

    def __len__(self) -> int:
        """Return how many accounts are in memory."""
        return len(self._memory)

    async def __aenter__(self) -> Self:
        await self.load_progress()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Write what was not written, and close the file. What cannot be written is given up, and logged."""
        for task in (self._reading, self._writing):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        while self._unwritten and await self._write():
            pass
        if self._unwritten:
            logger.warning(
                "signing keys are not in the file: they will be fetched", keys=len(self._unwritten)
            )
        await self.call(self._store.close)
        self._thread.shutdown()

    def get(self, did: str) -> Held | None:
        """Return what memory has of an account, which is a use. None: nothing; `load` reads the file."""
        packed = self._memory.get(did)
        return None if packed is None else unpack(packed)

    async def load(self, dids: Iterable[str]) -> None:
        """Read what the file has of accounts into memory. All calls of one moment are one query.

        A file that is not read in `read_s` is not waited for.
        """
        loading = [self._want(did) for did in dids if did not in self._memory]
        if loading:
            await asyncio.wait(loading, timeout=self._limits.read_s)

    def put(self, did: str, key: EncodedKey | None, pds: str | None = None) -> None:
        """Note a key that was fetched now, and the host of the account's PDS. It is written in a moment.

        `key` None: the account has none. `pds` is empty if it has none; None: it is not known.
        """
        packed = pack(pack_key(key), int(self._now()), pds)
        self._memory.put(did, packed)
        self._write_later(did, packed)

    def forget(self, did: str) -> None:
        """Remove what is known of an account, from memory at once and from the file in a moment."""
        self._memory.pop(did)
        self._write_later(did, None)

    def forget_memory(self) -> None:
        """Drop what memory has. It is read from the file again when it is needed."""
        self._memory.clear()

    async def apply(self, accounts: Mapping[str, Declared], at_s: int, progress: Progress) -> None:
        """Write what a page of the export says, and how far it was read. Raises KeyCacheError.

        `at_s` is when the page was asked for, in unix seconds.
        """
        rows = [(compact_did(did), pack_key(key), at_s, pds) for did, (key, pds) in accounts.items()]
        await self.call(self._store.apply, rows, progress)
        self.progress = progress
        for did, (key, pds) in accounts.items():
            known = self.get(did)
            # The same rule as in the file (`store`): older than the page, or of a clock that was wrong.
            if known is not None and (known.at_s <= at_s or known.at_s > self._now()):
                self._memory.put(did, pack(pack_key(key), at_s, pds))

    async def number_hosts(self, names: Iterable[str]) -> dict[str, int]:
        """Return the numbers that hosts have in the file. Raises KeyCacheError."""
        return await self.call(self._store.number_hosts, names)

    async def stage(self, records: Mapping[int, bytes], progress: Progress) -> None:
        """Write operations of an import: records (`store.record`) by the first byte of their compact DID.

        They do not count before `fold`. Raises KeyCacheError.
        """
        await self.call(self._store.stage, records, progress)
        self.progress = progress

    async def fold(self, operations_max: int, at_s: int, progress: Progress) -> None:
        """Make the operations of an import count, at its end. Raises KeyCacheError.

        `at_s` is when its last page was asked for, in unix seconds.
        """
        while await self.call(self._store.fold, operations_max, at_s):
            pass
        await self.save(progress)
        self.forget_memory()

    async def save(self, progress: Progress) -> None:
        """Write how far the export was read. Raises KeyCacheError."""
        await self.call(self._store.save, progress)
        self.progress = progress

    async def load_progress(self) -> None:
        """Read how far the export was read, perhaps by another process. Raises KeyCacheError."""
        with suppress(KeyCacheReplaced):  # then `call` has set it
            self.progress = await self.call(self._store.progress)

    async def bytes_on_disk(self) -> int:
        """Return the size of the file. Raises KeyCacheError."""
        return await self.call(self._store.bytes_on_disk)

    async def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Run a method of the store in the thread of the file, after those before it.

        It is run even if the caller is cancelled. Raises KeyCacheError. KeyCacheReplaced is one: the call had
        no effect, and the new file knows nothing of the export.
        """
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.shield(loop.run_in_executor(self._thread, partial(function, *arguments)))
        except KeyCacheReplaced:
            self.progress = Progress()  # the new file has nothing
            raise

    # --- reading ---

    def _want(self, did: str) -> asyncio.Future[None]:
        """Return a future that is done when an account was read from the file."""
        future = self._wanted.get(did)
        if future is None:
            future = self._wanted[did] = asyncio.get_running_loop().create_future()
            if self._reading is None:
                self._reading = asyncio.create_task(self._read())
        return future

    async def _read(self) -> None:
        """Read what is wanted until nothing is, all of one moment together. One of these runs at a time.

        All that wait for a DID are woken, also when it is not in the file or the file cannot be read.
        """
        try:
            while self._wanted:
                wanted, self._wanted = self._wanted, {}
                try:
                    await self._read_some(list(wanted))
                finally:
                    for future in wanted.values():
                        if not future.done():
                            future.set_result(None)
        finally:
            self._reading = None

    async def _read_some(self, dids: list[str]) -> None:
        """Read what the file has of some accounts into memory, but for what is newer there."""
        by_row = {compact_did(did): did for did in dids}
        try:
            found = await self.call(self._store.read, list(by_row))
        except KeyCacheError as error:
            self._logger.warning("signing keys cannot be read: they are fetched", problem=str(error))
            return
        for row, (key, at_s, pds) in found.items():
            did = by_row[row]
            if not any(did in newer for newer in (self._memory, self._unwritten, self._in_writing)):
                self._memory.put(did, pack(key, at_s, pds))

    # --- writing ---

    def _write_later(self, did: str, packed: bytes | None) -> None:
        """Have what is known of an account written, in place of what waits of it; None: have it removed."""
        self._unwritten.pop(did, None)
        if len(self._unwritten) < self._limits.unwritten_max:
            self._unwritten[did] = packed
        else:
            self._logger.warning(
                "too many signing keys wait to be written: the others are kept in memory only",
                waiting=len(self._unwritten),
            )
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_in_batches())

    async def _write_in_batches(self) -> None:
        """Write until nothing is left, with a pause before what is no full batch, and after a failure."""
        can_write = True
        try:
            while self._unwritten:
                if not can_write or len(self._unwritten) < self._limits.write_keys:
                    await asyncio.sleep(self._limits.write_s)
                can_write = await self._write()
        finally:
            self._writing = None

    async def _write(self) -> bool:
        """Write the next batch; return whether that was possible. Only one of these runs at a time.

        What cannot be written waits for the next attempt.
        """
        writing = dict(islice(self._unwritten.items(), self._limits.write_keys))
        for did in writing:
            del self._unwritten[did]
        self._in_writing = writing
        rows: list[Row] = []
        forgotten: list[bytes] = []
        for did, packed in writing.items():
            if packed is None:
                forgotten.append(compact_did(did))
            else:
                held = unpack(packed)
                rows.append((compact_did(did), pack_key(held.key), held.at_s, held.pds))
        try:
            await self.call(self._store.write, rows, forgotten)
        except KeyCacheError as error:
            self._logger.warning(
                "signing keys cannot be written: they are kept in memory until they can", problem=str(error)
            )
            self._write_again(writing)
            return False
        finally:
            self._in_writing = {}
        return True

    def _write_again(self, failed: dict[str, bytes | None]) -> None:
        """Let what could not be written wait before all that is newer, as far as there is room."""
        newer = self._unwritten
        older = ((did, packed) for did, packed in failed.items() if did not in newer)
        room = max(0, self._limits.unwritten_max - len(newer))
        self._unwritten = dict(islice(older, room)) | newer
