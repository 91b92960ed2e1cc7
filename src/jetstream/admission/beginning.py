"""From which rev on messages were read. Pure.

Of a repository without a state, nothing tells what is missing but the rev that its first message names as the
one before (`since`). If that is from after the time when reading began, its message should have come.
"""

from __future__ import annotations

from bisect import insort
from typing import Final

# The revs that are remembered, and which of them counts. An account chooses its revs, so neither the lowest
# nor the first one tells when reading began.
_FIRST_REVS: Final = 20
_LOW: Final = 1


class Beginning:
    """From which rev on messages were read: about that of the first ones that were passed on."""

    def __init__(self) -> None:
        # The revs of the first messages, rising.
        self._revs: list[str] = []

    def note(self, rev: str) -> None:
        """Note that a message was passed on."""
        if len(self._revs) < _FIRST_REVS:
            insort(self._revs, rev)

    def is_after(self, rev: str) -> bool:
        """Return whether a message of this rev should have been read."""
        return len(self._revs) > _LOW and rev > self._revs[_LOW]
