"""Identity messages that several sources bring: equal ones pass once. Pure.

Every relay passes on the same `#identity`. Two are equal if DID, handle and time are; each source has a `seq`
of its own. An equal one within the window is a repeat. After it, it passes: readers may get it twice, which
says nothing new. Such a message means *look at this account again*. So one without a time always passes: the
account may have changed twice.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Any, Final

import orjson

_DIGEST_BYTES: Final = 16


class Identities:
    """Remembers the identity messages of the last `window_us` microseconds, `entries_max` at most.

    All times are unix microseconds. When there are too many, the oldest is forgotten. It takes 200 bytes for
    each.
    """

    def __init__(self, window_us: int, entries_max: int) -> None:
        self._window_us = window_us
        # Of both limits, the one that is reached first counts.
        self._entries_max = entries_max
        # When each was seen first, by its digest, the oldest first.
        self._seen: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        """Return how many are remembered."""
        return len(self._seen)

    def passes(self, body: bytes, now_us: int) -> bool:
        """Return whether an identity event is new, and remember it. `body` is that of the event.

        A repeat does not make the first one newer: an equal one passes `window_us` after the first,
        however many came between.
        """
        digest = _digest(body)
        if digest is None:
            return True
        self._forget(now_us)
        if digest in self._seen:
            return False
        self._seen[digest] = now_us
        if len(self._seen) > self._entries_max:
            self._seen.popitem(last=False)
        return True

    def remember(self, body: bytes, time_us: int) -> None:
        """Note an event that is in the log, at its position. The events are given in the order of the log.

        With those of the last `window_us`, a server that starts knows what it had passed on.
        """
        self.passes(body, time_us)

    def _forget(self, now_us: int) -> None:
        """Forget what is older than the window."""
        while self._seen and next(iter(self._seen.values())) + self._window_us <= now_us:
            self._seen.popitem(last=False)


def _digest(body: bytes) -> bytes | None:
    """Return what two equal messages have in common; None for one without a time."""
    fields: dict[str, Any] = orjson.loads(body)
    if "time" not in fields:
        return None
    # The rest of the body is the `seq` of the source.
    parts = [fields["did"], fields.get("handle"), fields["time"]]
    return blake2b(orjson.dumps(parts), digest_size=_DIGEST_BYTES).digest()
