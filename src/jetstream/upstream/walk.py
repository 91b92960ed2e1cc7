"""CBOR item by item, without decoding it (RFC 8949, section 3).

What a peer sends is measured here before it is decoded: a decoder makes an object of every item, and a
megabyte may hold a million. A string is passed over in one step, whatever its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from jetstream.atproto.cbor import Unreadable

UNSIGNED, NEGATIVE, BYTES, TEXT, LIST, MAP, TAG, SIMPLE = range(8)  # the major types
_LENGTH_BYTES: Final = {24: 1, 25: 2, 26: 4, 27: 8}  # that follow a head, by its low five bits


def _step(head: int) -> int:
    """Return how long an item is, contents of lists and maps apart; 0 where more bytes must tell."""
    kind, low = head >> 5, head & 31
    if kind == BYTES or kind == TEXT:
        return 1 + low if low < 24 else 0 if low in _LENGTH_BYTES else 1
    return 1 + _LENGTH_BYTES.get(low, 0)


_STEPS: Final = tuple(map(_step, range(256)))


def heads(raw: bytes, limit: int) -> bytes:
    """Return the first byte of each item in `raw`, in order: one for a list and one for each thing in it.

    At most `limit` are read, 0.05 µs each. A decoder reads no more items than that, for it stops at
    what is malformed, and this goes on.
    """
    found = bytearray()
    add = found.append
    position, end = 0, len(raw)
    for _ in range(limit):
        if position >= end:
            break
        head = raw[position]
        add(head)
        position += _STEPS[head] or _string_bytes(raw, position)
    return bytes(found)


def texts(raw: bytes) -> Iterator[bytes]:
    """Give the bytes of every text in `raw`, keys included."""
    position, end = 0, len(raw)
    while position < end:
        head = raw[position]
        start = position
        position += _STEPS[head] or _string_bytes(raw, position)
        if head >> 5 == TEXT:
            yield raw[start + 1 + _LENGTH_BYTES.get(head & 31, 0) : position]


def _string_bytes(raw: bytes, position: int) -> int:
    start = position + 1
    stop = start + _LENGTH_BYTES[raw[position] & 31]
    return stop - position + int.from_bytes(raw[start:stop], "big")


class Reader:
    """A place in CBOR that moves on from item to item.

    `position` is where the next item begins. Every method raises Unreadable at the end of the bytes, at an
    indefinite length, and when `items_max` heads have been read.
    """

    __slots__ = ("_end", "_items_left", "position", "raw")

    def __init__(self, raw: bytes, items_max: int, position: int = 0) -> None:
        self.raw = raw
        self.position = position
        self._end = len(raw)
        self._items_left = items_max

    def head(self) -> tuple[int, int]:
        """Read a head: the major type of an item, and its value or length."""
        self._items_left -= 1
        if self._items_left < 0:
            raise Unreadable("more items than are worth it")
        if self.position >= self._end:
            raise Unreadable("it ends too soon")
        first = self.raw[self.position]
        kind, number = first >> 5, first & 31
        self.position += 1
        if number < 24:
            return kind, number
        if number > 27:
            raise Unreadable("an indefinite length or a reserved one")
        return kind, int.from_bytes(self.take(_LENGTH_BYTES[number]), "big")

    def take(self, size: int) -> bytes:
        """Read so many bytes."""
        start = self.position
        self._move(size)
        return self.raw[start : self.position]

    def skip(self) -> None:
        """Pass over one item and all that is in it."""
        self.skip_rest(*self.head())

    def skip_rest(self, kind: int, number: int) -> None:
        """Pass over what follows a head: the bytes of a string, the items of a list or a map."""
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
        self.position += size
        if self.position > self._end:
            raise Unreadable("it ends too soon")
