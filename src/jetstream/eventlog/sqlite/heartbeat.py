"""The writer's heartbeat: the lock file says which process writes, that it is alive, and how far it is.

    <number of the process> <beat> <tip> <checksum>

The writer replaces this line about once a second. It does not wait for the disk, and nothing is read from the
file after a crash. An edge takes the writer for gone when the line has been the same for some seconds of its
own clock: no two clocks are compared. The beat also carries the watermark (see `eventlog.watermark`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

LINE_BYTES: Final = 64  # always as many, so that a line never ends with a part of the one before


class Beat(NamedTuple):
    """What the line says. `beat` differs from the one before, `tip` is the newest position."""

    process: int
    beat: int
    tip: int


def write_beat(descriptor: int, beat: Beat) -> None:
    """Replace the line in the lock file. On a disk that refuses it, the old one stays.

    `descriptor` is the one that holds the lock. The line has `LINE_BYTES` bytes, padded with spaces.
    """
    text = " ".join(map(str, beat)).encode()
    line = b"%b %08x" % (text, crc32(text))
    with suppress(OSError):
        os.pwrite(descriptor, line.ljust(LINE_BYTES - 1) + b"\n", 0)


def read_beat(path: Path) -> Beat | None:
    """Return what the lock file says; None if it says nothing that is whole.

    A line that is being replaced at that moment does not match its checksum: the next look finds it.
    """
    try:
        *values, checksum = path.read_bytes().split()
        if len(values) != len(Beat._fields) or crc32(b" ".join(values)) != int(checksum, 16):
            return None
        return Beat(*map(int, values))
    except (OSError, ValueError):
        return None
