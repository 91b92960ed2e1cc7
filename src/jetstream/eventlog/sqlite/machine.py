"""What the log asks of the machine beside its files: the boot, the time since then, flushing to the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from jetstream.clock import elapsed_us


class Machine(NamedTuple):
    """The machine on which a log is used. Tests pass others."""

    # Differs from boot to boot; `unknown` where the system does not tell. See `clock.boot_id`.
    boot: str
    # Microseconds since the boot, suspension included.
    elapsed_us: Callable[[], int] = elapsed_us
    # Waits until what was written to a descriptor is on the disk. Raises OSError.
    sync: Callable[[int], None] = os.fsync

    def has_booted_since(self, boot: str) -> bool:
        """Tell whether commits since another time may be lost: that boot was not certainly this one."""
        return boot != self.boot or boot == "unknown"
