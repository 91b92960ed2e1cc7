"""Positions are never given out twice, although a commit does not wait for the disk.

A loss of power can lose the last commits. Their events are read from upstream again, but readers have already
seen their positions. So a small file says, durably and ahead of time, up to where positions may have been
given out. A log that is opened after another boot continues above that.

    jetstream.reserved      <boot id> <position>

                     tip       reserved up to here
    ─── given out ────┼──────────────┼────────────────▶ position
                      └── AHEAD_US ──┘

A process that crashes loses no commit, so the next process of the same boot continues at the tip. That is why
the file has the id of the boot.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from jetstream.clock import boot_id, elapsed_us, iso
from jetstream.errors import LogCorrupt
from jetstream.eventlog.sqlite.schema import DATABASE, REMEDY

FILE: Final = "jetstream.reserved"
NEW_FILE: Final = "jetstream.new"  # becomes FILE when it is written
# Positions are reserved this far ahead of the newest event. A longer time writes the file less often, and
# leaves a larger gap of positions after a loss of power.
AHEAD_US: Final = 30_000_000
# A reservation is at most AHEAD_US above the newest event or the clock. But the clock may be wrong, and after
# a loss of power the newest event may be lost. A reservation that is further ahead than this is damaged.
BELIEVED_US: Final = 366 * 86_400_000_000
_POSITION_LIMIT: Final = 1 << 62  # leaves room for sums: SQLite's integers are signed, 64 bits

logger = structlog.get_logger(__name__)


class Machine(NamedTuple):
    """What the log asks of the machine beside its files. Tests pass others."""

    # Differs from boot to boot; `unknown` where the system does not tell. See `clock.boot_id`.
    boot: str
    # Microseconds since the boot, suspension included.
    elapsed_us: Callable[[], int] = elapsed_us
    # Waits until what was written to a descriptor is on the disk. Raises OSError.
    sync: Callable[[int], None] = os.fsync

    def has_booted_since(self, boot: str) -> bool:
        """Tell whether commits since another time may be lost: that boot was not certainly this one."""
        return boot != self.boot or boot == "unknown"


class Reservation:
    """The reservation of one log's directory."""

    def __init__(self, directory: Path, machine: Machine | None = None) -> None:
        """Read nothing yet. `machine` None: the one that this process runs on."""
        # The file in the directory of the log, and the machine, whose boot is written.
        self._path = directory / FILE
        self._machine = machine or Machine(boot_id())
        # Positions up to this one are reserved on disk. Set when it is written; `extend` only raises it.
        self.until_us = 0
        # Held while the file is written: the event loop and upkeep extend it from threads of their own.
        self._writing = threading.Lock()

    def restored_tip(self, tip_us: int, now_us: int = 0, *, is_new: bool = False) -> int:
        """Return the highest position that may have been given out, where `tip_us` is the newest on disk.

        That is `tip_us` if only the process crashed, since then no commit was lost. A database that `is_new`,
        although positions were reserved, has lost everything. A reservation that is damaged is written again,
        above the log and the clock, with a warning. Raises OSError.
        """
        try:
            boot, reserved = self.read(max(tip_us, now_us) + BELIEVED_US)
        except LogCorrupt as error:
            restored = max(tip_us + AHEAD_US, now_us)
            logger.warning(
                "log: the reservation is damaged and written again", problem=error.problem, up_to_us=restored
            )
            self.restore(restored)
            return restored
        if is_new and reserved:
            logger.warning(
                "log: the database with the stored events is missing, starting a new one",
                missing=str(self._path.with_name(DATABASE)),
                stored_up_to=iso(reserved),
                remedy="if this is not what you want, stop the server and put the files back",
            )
        may_have_lost = is_new or self._machine.has_booted_since(boot)
        self.until_us = max(tip_us, reserved) if may_have_lost else tip_us
        return self.until_us

    def read(self, believed_us: int = _POSITION_LIMIT) -> tuple[str, int]:
        """Return the id of the boot that wrote the file, and the position; "" and 0 without a file.

        Raises LogCorrupt, also for a position above `believed_us`, which no right clock can have reserved.
        """
        try:
            boot, until = self._path.read_text().split()
            until_us = int(until)
        except FileNotFoundError:
            return "", 0
        except (ValueError, OSError) as error:
            raise LogCorrupt(self._path, f"is damaged ({error}); {REMEDY}") from error
        if not 0 <= until_us < _POSITION_LIMIT:
            raise LogCorrupt(self._path, f"is damaged ({until_us} is no position); {REMEDY}")
        if until_us > believed_us:
            problem = f"reserves positions up to {until_us}, far beyond every event and the clock"
            raise LogCorrupt(self._path, problem)
        return boot, until_us

    def extend(self, position: int) -> None:
        """Reserve positions up to AHEAD_US above `position`. Raises OSError.

        Called in threads. Waits for the disk twice, for the file and for its directory, only if positions
        run out.
        """
        with self._writing:
            if position + AHEAD_US > self.until_us:
                self.write(position + AHEAD_US)

    def restore(self, until_us: int) -> None:
        """Write a new reservation; a directory in its place is moved aside. Raises OSError.

        `until_us` must be above every position that may have been given out.
        """
        if self._path.is_dir():
            self._path.rename(unused_name(self._path))
        self.write(until_us)

    def write(self, until_us: int) -> None:
        """Replace the reservation, durably: a crash leaves the old or the new one. Raises OSError.

        The new file gets its bytes on the disk before it takes the name, and the directory after that.
        `until_us` of this object follows only then.
        """
        new = self._path.with_name(NEW_FILE)
        try:
            with new.open("w") as file:
                file.write(f"{self._machine.boot} {until_us}\n")
                file.flush()
                self._machine.sync(file.fileno())
            new.replace(self._path)
        except OSError:
            with suppress(OSError):
                new.unlink()
            raise
        descriptor = os.open(self._path.parent, os.O_RDONLY)
        try:
            self._machine.sync(descriptor)
        finally:
            os.close(descriptor)
        self.until_us = until_us


def unused_name(path: Path) -> Path:
    """Return a name under which a damaged file can be kept beside its replacement."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside
