"""Timestamp identifiers: 13 characters that sort as time does.

Source: the TID page of the ATProto specification. 53 bits of unix microseconds, then 10 bits that tell
apart clocks that run at once, in base 32 with an alphabet in ASCII order.
"""

from __future__ import annotations

from typing import Final

_ALPHABET: Final = "234567abcdefghijklmnopqrstuvwxyz"
# Three characters at a time: five look-ups instead of thirteen.
_TRIPLES: Final = tuple(a + b + c for a in _ALPHABET for b in _ALPHABET for c in _ALPHABET)
CLOCK_IDS: Final = 1024


def tid(time_us: int, clock_id: int) -> str:
    """Write the TID of a moment on one of the 1,024 clocks."""
    number = time_us << 10 | clock_id
    return (
        _ALPHABET[number >> 60]
        + _TRIPLES[number >> 45 & 0x7FFF]
        + _TRIPLES[number >> 30 & 0x7FFF]
        + _TRIPLES[number >> 15 & 0x7FFF]
        + _TRIPLES[number & 0x7FFF]
    )
