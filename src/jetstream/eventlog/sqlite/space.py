"""Room on the disk for getting out of a full one.

Trimming makes room, but takes some first: each transaction is written to the write-ahead log, which shrinks
only after it was copied into the database, and the database may have to grow for that. So

* a file of `reserve_size` bytes is kept in reserve. It also keeps other programs from using the last bytes,
  so it is only released for what makes room and cannot be written otherwise;
* commits of events are refused while the disk still has so much room that the write-ahead log can be copied.

    free on the disk      what happens
    ─────────────────     ─────────────────────────────────────────────────────────
    much                  the file system is asked again after half of it is used
    `low`                 upkeep checkpoints and shrinks each time that it runs
    less than an append   the reserve is cut to what copying the write-ahead log needs
    no `room`             appends are refused; upkeep trims, with the reserve if it must

Of free bytes and the reserve together, half can be written to the write-ahead log, and the other half is
needed when it is copied. So the reserve can be cut to that half, and what may be written is the same as
without it. It is never cut for an append that is refused all the same.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from jetstream.errors import LogUnwritable
from jetstream.eventlog.sqlite.connection import wal_bytes
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.limits import LogLimits

FILE: Final = "jetstream.reserve"
UNKNOWN_BYTES: Final = 1 << 60  # free, where the file system does not say
# What one transaction of upkeep writes at most: it trims or shrinks by 1 MiB; and the index of the
# write-ahead log.
STEP_BYTES: Final = 1 << 20
# Commits leave this much for sealing the next segment, which frees three quarters of what its events take.
SEAL_BYTES: Final = 1 << 20
# What a commit writes beside the batch: a few pages of the tables' trees, each as a whole.
COMMIT_BYTES: Final = 32 << 10


def free_bytes(directory: Path) -> int | None:
    """Return how many bytes the file system of a directory has free; None if it does not say."""
    with suppress(OSError):
        disk = os.statvfs(directory)
        return disk.f_bavail * disk.f_frsize if disk.f_blocks else None
    return None


class Space:
    """The disk under a log's directory: how much may be written, and the reserve."""

    def __init__(self, directory: Path, limits: LogLimits = LogLimits()) -> None:
        """Look how much is in reserve. Raises OSError if the directory is gone."""
        # The directory of the log, the reserve, and the database, whose write-ahead log takes room.
        self._directory = directory
        self._file = directory / FILE
        self._database = directory / DATABASE
        disk = os.statvfs(directory)
        # Bytes that should be in reserve; fixed.
        share = int(disk.f_blocks * disk.f_frsize * limits.reserve_share)
        self.reserve_size = min(limits.reserve_bytes, share)
        # Bytes that are in reserve; changed as it is taken, cut and released.
        self.reserve_held = 0
        with suppress(OSError):
            self.reserve_held = self._file.stat().st_blocks * 512
        # Whether the disk has refused a write since upkeep last freed what it can. Set by the writer and by
        # upkeep, reset by upkeep.
        self.full = False
        # Whether upkeep is freeing room with the reserve, which commits must not use up. Set by upkeep.
        self.freeing = False
        # Bytes that may be committed before the file system is asked again; used up by `spend`. Upkeep resets
        # it when it has freed room.
        self.allowance = 0

    def free(self) -> int:
        """Return how many bytes the file system has free, UNKNOWN_BYTES if it does not say.

        Raises LogUnwritable if the directory is gone, or cannot be read.
        """
        try:
            disk = os.statvfs(self._directory)
        except OSError as error:
            raise LogUnwritable(self._directory, str(error)) from error
        return disk.f_bavail * disk.f_frsize if disk.f_blocks else UNKNOWN_BYTES

    def free_or_none(self) -> int | None:
        """Return how many bytes the file system has free; None if it does not say. Raises nothing."""
        return free_bytes(self._directory)

    def room(self) -> int:
        """Return how many bytes can be added to the write-ahead log so that all of it can still be copied.

        The result is the same whether the reserve is held or released, but bytes in reserve cannot be written
        before it is cut or released.
        """
        free = self.free()
        return min(free, self._copyable(free + self.reserve_held))

    def _copyable(self, total: int) -> int:
        """Return `room` where so many bytes are free or in reserve, and those in reserve count as free.

        Each byte takes one now, and may take another one in the database.
        """
        return (total - wal_bytes(self._database)) // 2 - STEP_BYTES

    def make_room(self, size: int) -> int:
        """Cut the reserve if `size` bytes can be added only after that; return `room`.

        The reserve keeps what is needed to copy the write-ahead log with them.
        """
        free = self.free()
        total = free + self.reserve_held
        room = self._copyable(total)
        if free < size <= room:
            self._cut_reserve(total - room)
            free = self.free()
        return min(free, room)

    @property
    def low(self) -> bool:
        """Whether the write-ahead log cannot grow to twice its bound: all that can be freed must be."""
        return self.room() < 2 * self.reserve_size

    def spend(self, size: int) -> bool:
        """Take room for a commit of an event batch of `size` bytes; return whether upkeep should free room.

        Leaves room for sealing, and cuts the reserve if it must. Raises LogUnwritable if there is not enough.

        Nearly every call only subtracts: the file system is asked again when `allowance` is used up.
        """
        if self.freeing:
            raise LogUnwritable(self._database, "the disk is full")
        size += COMMIT_BYTES
        self.allowance -= size
        if self.allowance >= 0:
            return False
        kept = min(SEAL_BYTES, self.reserve_size)
        room = self.make_room(size + kept) - kept
        self.allowance = room // 2 - size
        if room < size:
            raise LogUnwritable(self._database, "the disk is full; the rest is reserved for freeing space")
        return self.low

    def find_reserve(self) -> None:
        """Notice that somebody has deleted or cut the reserve: what is gone is not counted any more."""
        size = 0
        with suppress(OSError):
            size = self._file.stat().st_size
        self.reserve_held = min(self.reserve_held, size)

    def take_reserve(self) -> bool:
        """Write what is missing of the reserve, if there is room; return whether all of it is there.

        `room` stays as it is, and so much is left for what else is written on the disk.
        """
        total = self.free() + self.reserve_held
        size = min(self.reserve_size, total - max(self._copyable(total), STEP_BYTES))
        if size > self.reserve_held:
            with suppress(OSError):
                self._allocate(size)
        return self.reserve_held >= self.reserve_size

    def _allocate(self, size: int) -> None:
        """Let the file system allocate so many bytes for the reserve, or leave what there was.

        Raises OSError if the file cannot be opened.
        """
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, size)
            self.reserve_held = size
        except OSError:
            os.ftruncate(descriptor, self.reserve_held)
        finally:
            os.close(descriptor)

    def lend(self, size: int) -> None:
        """Make `size` bytes free, as far as they are in reserve. `take_reserve` takes them back."""
        self._cut_reserve(max(0, self.reserve_held - max(0, size - self.free())))

    def _cut_reserve(self, size: int) -> None:
        """Keep `size` bytes in reserve, if there are more."""
        if size < self.reserve_held:
            with suppress(OSError):
                os.truncate(self._file, size)
                self.reserve_held = size

    def release_reserve(self) -> None:
        """Delete the reserve, so that its bytes are free."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)
            self.reserve_held = 0
