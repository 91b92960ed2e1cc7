"""From which rev on messages were read. Pure.

Of a repository without a state, nothing tells what is missing but the rev that its first message names as the
one before (`since`). If that is from after the time when reading began, its message should have come.

When that was is only known from the first messages, so a source may have lost one just before those. Another
source, which is behind, can bring it for as long as a message is held. So that much before the first messages
counts as well.
"""

from __future__ import annotations

from bisect import insort
from typing import Final

from jetstream.atproto.tid import tid, tid_us

# The revs that are remembered, and which of them counts. An account chooses its revs, so neither the lowest
# nor the first one tells when reading began.
_FIRST_REVS: Final = 20
_LOW: Final = 1


class Beginning:
    """From which rev on messages were read: from about `apart_us` before the first ones that were passed on.

    `apart_us` is how far sources may be apart, in microseconds.
    """

    def __init__(self, apart_us: int) -> None:
        self._apart_us = apart_us
        # The revs of the first messages, rising.
        self._revs: list[str] = []
        # Messages of higher revs should have been read; empty until enough were passed on to tell.
        self._low = ""

    def note(self, rev: str) -> None:
        """Take the rev of a message that was passed on. After the first twenty, it changes nothing."""
        if len(self._revs) < _FIRST_REVS:
            insort(self._revs, rev)
            if len(self._revs) > _LOW:
                self._low = self._earlier(self._revs[_LOW])

    def is_after(self, rev: str, named_by: str) -> bool:
        """Return whether a message of this rev should have been read.

        `named_by` is the rev of the message that names it. Of the first messages, that is when reading began.
        """
        return rev > (self._low or self._earlier(named_by))

    def _earlier(self, rev: str) -> str:
        """Return the rev that is `apart_us` before one: the lowest of its microsecond."""
        return tid(max(0, tid_us(rev) - self._apart_us), 0)
