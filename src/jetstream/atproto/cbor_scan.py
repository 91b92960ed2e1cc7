"""Scan CBOR item by item, without decoding it (RFC 8949, section 3).

A decoder makes an object of every item, and a megabyte may hold a million of them. So what a peer sends is
measured here first, and what cannot be decoded as a whole is read here as far as it goes. A string is skipped
in one step, whatever its length.

An item begins with a head: a major type in the high three bits of its first byte, and a number that stands in
the low five bits or in the 1, 2, 4 or 8 bytes that follow. The number is the value of an integer, the length
of a string, or the count of what is in a list or map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from jetstream.atproto.cbor import Unreadable

UNSIGNED, NEGATIVE, BYTES, TEXT, LIST, MAP, TAG, SIMPLE = range(8)  # the major types
_NUMBER_BYTES: Final = {24: 1, 25: 2, 26: 4, 27: 8}  # that follow the first byte, by its low five bits


def _step(first: int) -> int:
    """Return the length of an item without what is in it; 0 where a number follows that must be read."""
    kind, low = first >> 5, first & 31
    if kind == BYTES or kind == TEXT:
        return 1 + low if low < 24 else 0 if low in _NUMBER_BYTES else 1
    return 1 + _NUMBER_BYTES.get(low, 0)


# The same for each first byte: a look-up is all that most items cost.
_STEPS: Final = tuple(map(_step, range(256)))


def item_heads(raw: bytes, limit: int) -> bytes:
    """Return the first byte of each item in `raw`, in order: one for a list and one for each thing in it.

    At most `limit` items are read, 0.05 µs each. A decoder reads no more items than are counted here,
    because it stops at what is malformed, and this goes on. Never raises: a string may end behind the end
    of `raw`.
    """
    found = bytearray()
    add = found.append
    position, end = 0, len(raw)
    for _ in range(limit):
        if position >= end:
            break
        first = raw[position]
        add(first)
        position += _STEPS[first] or _string_bytes(raw, position)
    return bytes(found)


def text_strings(raw: bytes) -> Iterator[bytes]:
    """Yield the bytes of every text string in `raw`, keys included. They need not be UTF-8.

    Each is a copy. What is malformed is read as `item_heads` does.
    """
    position, end = 0, len(raw)
    while position < end:
        first = raw[position]
        start = position
        position += _STEPS[first] or _string_bytes(raw, position)
        if first >> 5 == TEXT:
            yield raw[start + 1 + _NUMBER_BYTES.get(first & 31, 0) : position]


def _string_bytes(raw: bytes, position: int) -> int:
    """Return the length of a string item whose length is in the bytes after the first."""
    start = position + 1
    stop = start + _NUMBER_BYTES[raw[position] & 31]
    return stop - position + int.from_bytes(raw[start:stop], "big")


class Scanner:
    """Reads CBOR from one item to the next.

    Every method raises Unreadable at the end of the bytes, at an indefinite length, and when `items_max`
    heads have been read.
    """

    __slots__ = ("_end", "_items_left", "position", "raw")

    def __init__(self, raw: bytes, items_max: int, position: int = 0) -> None:
        # The bytes that are scanned.
        self.raw = raw
        # Where the next item begins. Every method moves it on.
        self.position = position
        # Where `raw` ends: nothing is read behind it.
        self._end = len(raw)
        # How many more heads may be read.
        self._items_left = items_max

    def head(self) -> tuple[int, int]:
        """Read a head: the major type of an item, and its number. What is in the item comes next."""
        self._items_left -= 1
        if self._items_left < 0:
            raise Unreadable("too many items")
        if self.position >= self._end:
            raise Unreadable("it ends too soon")
        first = self.raw[self.position]
        kind, number = first >> 5, first & 31
        self.position += 1
        if number < 24:
            return kind, number
        if number > 27:
            raise Unreadable("an indefinite length or a reserved one")
        return kind, int.from_bytes(self.take(_NUMBER_BYTES[number]), "big")

    def take(self, size: int) -> bytes:
        """Read `size` bytes: those of a string whose head was read."""
        start = self.position
        self._move(size)
        return self.raw[start : self.position]

    def skip(self) -> None:
        """Skip one item and all that is in it."""
        self.skip_rest(*self.head())

    def skip_rest(self, kind: int, number: int) -> None:
        """Skip what follows a head that was read: the bytes of a string, the items of a list or a map.

        Does not recurse, however deep lists nest: it counts the items that are still to come.
        """
        items = 0
        while True:
            if kind == BYTES or kind == TEXT:
                self._move(number)
            elif kind == LIST or kind == TAG:
                items += number if kind == LIST else 1
            elif kind == MAP:
                items += 2 * number
            if not items:
                return
            items -= 1
            kind, number = self.head()

    def _move(self, size: int) -> None:
        """Move on by so many bytes, which must be there. The position is of no use after Unreadable."""
        self.position += size
        if self.position > self._end:
            raise Unreadable("it ends too soon")
