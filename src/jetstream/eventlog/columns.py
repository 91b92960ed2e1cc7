"""Events as columns of bytes: the form in which the log stores them, before and after compression.

    times        8 bytes each, signed, little-endian: microseconds since 1970
    the others   the values, separated by newlines

No value contains a newline: identifiers were checked against their syntax, and bodies are compact JSON. So
runs of columns are concatenated by joining their bytes, and read back by one `split` per column, without a
Python loop over events. `docs/log-format.md` has the byte diagram.

Pure: this module knows nothing of files or SQLite, so another store can share the format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final, NamedTuple
from zlib import crc32

from jetstream.model.batch import Batch

# The text columns, in the order in which they are stored. They are attributes of `Batch` as well.
NAMES: Final = ("kinds", "dids", "collections", "rkeys", "revs", "cids", "bodies")
_TEXTS: Final = attrgetter(*NAMES)


class Damaged(Exception):
    """Stored bytes are not the bytes that were written. The text says what is wrong with them.

    Only within `eventlog`: the engines note it and go on, or raise LogCorrupt for it.
    """


class Columns(NamedTuple):
    """The columns of one or more consecutive events, uncompressed."""

    times: bytes
    kinds: bytes
    dids: bytes
    collections: bytes
    rkeys: bytes
    revs: bytes
    cids: bytes
    bodies: bytes

    @classmethod
    def of(cls, batch: Batch) -> Columns:
        """Write a batch of at least one event as columns."""
        return cls(write_times(batch.times), *map(b"\n".join, _TEXTS(batch)))

    @classmethod
    def joined(cls, runs: Iterable[Columns]) -> Columns:
        """Concatenate at least one run of columns, in order."""
        times, *texts = zip(*runs, strict=True)
        return cls(b"".join(times), *map(b"\n".join, texts))

    def batch(self) -> Batch:
        """Read the events back."""
        times, *texts = self
        return Batch(read_times(times), *(text.split(b"\n") for text in texts))

    def packed(self) -> bytes:
        """Return one value: the number of events as 4 bytes, the times, the texts with NULs between them.

        No value contains a NUL, for the same reason as it contains no newline.
        """
        times, *texts = self
        return self.events.to_bytes(4, "little") + times + b"\0".join(texts)

    @classmethod
    def unpacked(cls, data: bytes) -> Columns:
        """Read what `packed` has returned. Raises Damaged.

        Only lengths are checked. The zstd frame around it has the checksum.
        """
        count = int.from_bytes(data[:4], "little")
        times, *texts = data[4 : 4 + 8 * count], *data[4 + 8 * count :].split(b"\0")
        if len(times) != 8 * count or len(texts) != len(NAMES):
            raise Damaged("its events are cut off")
        return cls(times, *texts)

    @property
    def events(self) -> int:
        """The number of events."""
        return len(self.times) // 8

    @property
    def size(self) -> int:
        """The size of all columns in bytes."""
        return sum(map(len, self))

    @property
    def text_bytes(self) -> int:
        """`Batch.text_bytes` of the events, without a look at each."""
        separators = 3 * (self.events - 1)
        return len(self.dids) + len(self.rkeys) + len(self.bodies) - separators

    def checksum(self) -> int:
        """Return the CRC-32 of the concatenated columns.

        It is the `crc` of a row of the tail in SQLite.
        """
        # One call for all columns: each call releases the GIL, and another thread may hold it for a while.
        return crc32(b"".join(self))


def write_times(times: Sequence[int]) -> bytes:
    """Write times as 8 little-endian bytes each."""
    return struct.pack(f"<{len(times)}q", *times)


def read_times(data: bytes) -> list[int]:
    """Read what `write_times` wrote. Raises struct.error if the length is not a multiple of 8."""
    return list(struct.unpack(f"<{len(data) // 8}q", data))
