"""`FeatureCache`: each record is parsed once for the content filters of all readers. Pure.

What is parsed of a batch is kept while the batch lives, as in `RenderCache`: for the events that a content
filter had to judge, live or in replay. Without such a filter nothing is parsed.

The cache has a bound in bytes. When it is full, it drops the batch that was used least recently. Its records
are parsed again for the next reader that needs them.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from typing import Final

from jetstream.model.batch import Batch
from jetstream.model.content import Content, Features, features_of
from jetstream.model.filter import RECORDS

# Memory in CPython of the features of one record, beside its terms and its text. These take at most about
# twice the bytes of its JSON.
_FEATURES_BYTES: Final = 400


class Parsed:
    """What is parsed of one batch. It can be used after the cache has dropped it, and is not counted then."""

    __slots__ = ("_features", "_watch", "size")

    def __init__(self, watch: weakref.ref[Batch]) -> None:
        # Calls the cache back when the batch ends; kept here so that it lives as long as the entry.
        self._watch = watch
        # By the index in the batch, only of events that were judged.
        self._features: dict[int, Features] = {}
        # Bytes of memory of all this, at most about.
        self.size = 0

    def features(self, batch: Batch, index: int) -> Features:
        """Return the features of an event of this batch that carries a record; parse it if it is new."""
        found = self._features.get(index)
        if found is None:
            found = self._features[index] = features_of(batch.bodies[index])
            self.size += _FEATURES_BYTES + 2 * len(batch.bodies[index])
        return found


class FeatureCache:
    """What is parsed of all batches, at most `bytes_max` bytes of it, or one batch."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        # By the id of the batch; the last used is last. An entry is dropped when its batch ends, before
        # another object can have the id. That may happen in another thread: see `RenderCache`.
        self._entries: dict[int, Parsed] = {}

    @property
    def size(self) -> int:
        """How many bytes are held, at most about."""
        return sum(parsed.size for parsed in list(self._entries.values()))

    def parsed(self, batch: Batch) -> Parsed:
        """Return what there is of a batch, as the last used. Drops others until they are within the bound.

        What is added to the returned one is counted at the next call.
        """
        entries, key = self._entries, id(batch)
        parsed = entries.pop(key, None)
        if parsed is None:
            parsed = Parsed(weakref.ref(batch, lambda _: entries.pop(key, None)))
        entries[key] = parsed
        excess = self.size - self._bytes_max
        for other in list(entries)[:-1] if excess > 0 else ():
            dropped = entries.pop(other, None) if excess > 0 else None
            excess -= dropped.size if dropped is not None else 0
        return parsed

    def select(
        self, content: Content, batch: Batch, chosen: Sequence[int], cost_max: int = sys.maxsize
    ) -> tuple[list[int], int]:
        """Return those of `chosen` whose record matches, or that are no commits, and how many were judged.

        No delete is among them. Judging ends early where the search for phrases costs `cost_max`, as
        `Content.search_cost` counts it; one event is judged in any case.
        """
        parsed, kinds, found, cost = self.parsed(batch), batch.kinds, list[int](), 0
        for judged, i in enumerate(chosen):
            if cost >= cost_max:
                return found, judged
            if kinds[i] not in RECORDS:
                found.append(i)
                continue
            features = parsed.features(batch, i)
            if content.matches(features):
                found.append(i)
            if content.phrases:
                cost += content.search_cost(features)
        return found, len(chosen)
