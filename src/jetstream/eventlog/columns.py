"""A batch as columns of bytes: what is stored, before and after it is sealed.

    times        8 bytes each, signed, little-endian: microseconds since 1970
    the others   the values with a newline between any two

No value holds a newline: identifiers are checked against their syntax, bodies are compact JSON. So runs of
columns are put together by joining them, and taken apart by one `split`, without a loop over events.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple
from zlib import crc32

from jetstream.model.batch import Batch

NAMES: Final = ("kinds", "dids", "collections", "rkeys", "revs", "cids", "bodies")


class Damaged(Exception):
    """Stored bytes are not what was stored."""


class Columns(NamedTuple):
    """The columns of one or more events, as bytes."""

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
        return cls(write_times(batch.times), *(b"\n".join(getattr(batch, name)) for name in NAMES))

    @classmethod
    def joined(cls, runs: Iterable[Columns]) -> Columns:
        """Put at least one run of columns together, in order."""
        times, *texts = zip(*runs, strict=True)
        return cls(b"".join(times), *map(b"\n".join, texts))

    def batch(self) -> Batch:
        """Read the events back."""
        times, *texts = self
        return Batch(read_times(times), *(text.split(b"\n") for text in texts))

    @property
    def events(self) -> int:
        """How many events these are."""
        return len(self.times) // 8

    @property
    def size(self) -> int:
        """How many bytes these are."""
        return sum(map(len, self))

    def checksum(self) -> int:
        """Return the CRC-32 of all columns, one after the other."""
        # In one go, for each call lets go of the interpreter, and another thread may keep it for a while.
        return crc32(b"".join(self))


def write_times(times: Sequence[int]) -> bytes:
    """Write times as 8 little-endian bytes each."""
    return _little_endian(array("q", times)).tobytes()


def read_times(data: bytes) -> list[int]:
    """Read what `write_times` wrote. Raises ValueError when the length is no multiple of 8."""
    times = array("q")
    times.frombytes(data)
    return _little_endian(times).tolist()


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
