"""Timestamp identifiers (TIDs): 13 characters that sort by time.

53 bits of unix microseconds, then a clock ID of 10 bits that distinguishes clocks that run at the same time,
in base 32 with an alphabet in ASCII order. Source: the TID page of the AT Protocol specification.
"""

from __future__ import annotations

from typing import Final

# Clock IDs are below it: they have 10 bits.
CLOCK_IDS: Final = 1024
_ALPHABET: Final = "234567abcdefghijklmnopqrstuvwxyz"
# Two characters at a time: seven look-ups instead of thirteen, in a table that stays in the CPU's cache.
_PAIRS: Final = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
_DIGITS: Final = str.maketrans(_ALPHABET, "0123456789abcdefghijklmnopqrstuv")  # Python's own base 32


def tid(time_us: int, clock_id: int) -> str:
    """Return the TID of a time, in unix microseconds, on one of the 1,024 clocks.

    `time_us` has at most 53 bits, up to the year 2255. Neither number is checked.
    """
    pairs, low = _PAIRS, (time_us & 0xFFFFF) << 10 | clock_id
    high = time_us >> 20
    return (
        _ALPHABET[high >> 30]
        + pairs[high >> 20 & 0x3FF]
        + pairs[high >> 10 & 0x3FF]
        + pairs[high & 0x3FF]
        + pairs[low >> 20]
        + pairs[low >> 10 & 0x3FF]
        + pairs[low & 0x3FF]
    )


def tid_us(text: str) -> int:
    """Return the time of a TID in unix microseconds. Raises ValueError for other characters.

    It is what its author says: nothing keeps an account from choosing another time.
    """
    return tid_number(text) >> 10


def tid_number(text: str) -> int:
    """Return a TID as an integer of 64 bits, which sorts like it. Raises ValueError for other characters."""
    return int(text.translate(_DIGITS), 32)


def tid_of(number: int) -> str:
    """Return the TID of an integer: the inverse of `tid_number`."""
    return tid(number >> 10, number & 0x3FF)
