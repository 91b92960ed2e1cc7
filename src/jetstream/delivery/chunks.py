"""Cutting the log: what a flush takes and renders, and what one write carries to a reader behind. Pure.

Both are bounded by a number of events, for the time they take, and by bytes, for the memory in which they
wait when a socket is slow. One event is always taken, however large it is, so that every reader makes
progress.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Final

from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.render_cache import Chunk, RenderCache, Rendered, fitting
from jetstream.delivery.subscriber import Encoding, Group, Subscriber
from jetstream.limits import DeliveryLimits
from jetstream.model.batch import Batch
from jetstream.steps import Budget, Steps

# Indices that `Rendering.gather` adds up in one step: 0.3 ms.
_GATHERED_PER_STEP: Final = 20_000


def cut(
    batch: Batch,
    first: int,
    last: int,
    reader: Subscriber,
    cache: RenderCache,
    features: FeatureCache,
    limits: DeliveryLimits,
) -> Chunk:
    """Return the next chunk of what a subscriber wants of `batch[first:last]`.

    A chunk may be empty although it has judged events: none of them was wanted. Readers of everything share
    chunks, which begin and end at multiples of `chunk_events`. So when thousands of readers return together,
    all their chunks but the first are the same bytes, made once. A reader with a limit of events gets no
    more than are left.

    What the subscriber has of its own is read, and nothing of it is changed: the caller moves its position to
    `Chunk.reached` and subtracts from `Bounds.left`. `first` and `last` are indices of the batch.
    """
    encoding, options = reader.encoding, reader.options
    last = min(last, first + limits.judged_events)
    # Each of the following steps cuts what the one before has left: by the filter, by the content of records,
    # by a number of events, by the bytes of records, by the bytes of frames.
    chosen = options.wanted.select(batch, first, last)
    if options.content is not None:
        few = _few(batch, chosen, limits)
        found, judged = features.select(options.content, batch, few, limits.searched_cost)
        last = chosen[judged] if judged < len(chosen) else last
        chosen = found
    if not chosen:
        return Chunk(b"", 0, last)
    rendered, whole = cache.get(batch, encoding), limits.chunk_events
    # A shared chunk has all events of its range, so it fits any reader of everything that may have them all.
    left = sys.maxsize if reader.bounds is None else reader.bounds.left
    shared = isinstance(chosen, range) and not options.message_bytes_max and first % whole == 0
    shared = shared and left >= whole
    if shared and (kept := rendered.chunks.get(first)) is not None and kept.reached <= last:
        return kept
    # The first chunk of a reader of everything ends where the next shared one begins.
    some = chosen[: min(left, whole - first % whole if isinstance(chosen, range) else whole)]
    # Large records are left to the next chunk before they are rendered: compressing 8 MiB takes 20 ms.
    bodies = batch.bodies
    pieces = bodies[some[0] : some[-1] + 1] if isinstance(some, range) else [bodies[i] for i in some]
    some = some[: fitting(pieces, limits.chunk_bytes)]
    # Bytes are counted before long messages are left out: simpler, and the next chunk takes what is left.
    if shared and not encoding.framing.costly and not rendered.has(first):
        frames = _made_for_once(batch, some, encoding, limits.chunk_bytes)
        some = some[: len(frames)]
        frames = frames if all(frames) else [frame for frame in frames if frame]
    else:
        rendered = cache.render(batch, some, encoding, options.message_bytes_max)
        some = rendered.fit(some, limits.chunk_bytes)
        frames = rendered.frames(some, options.message_bytes_max)
    reached = last if len(some) == len(chosen) else some[-1] + 1
    chunk = Chunk(b"".join(frames), len(frames), reached)
    if shared and reached == first + whole:  # else it was cut short, by `last` or by bytes
        cache.keep(rendered, first, chunk)
    return chunk


def _made_for_once(batch: Batch, some: Sequence[int], encoding: Encoding, bytes_max: int) -> list[bytes]:
    """Return the frames of events, as many as have at most `bytes_max` together, but at least one.

    They are not kept: who comes next takes the chunk that is made of them. That takes a third less time, as
    the memory of one chunk's frames is used again for the next one's.
    """
    messages, times = encoding.renderer.render(batch, some), (batch.times[i] for i in some)
    frames = encoding.framing.frames(messages, times)
    return frames[: fitting(frames, bytes_max)]


def _few(batch: Batch, chosen: Sequence[int], limits: DeliveryLimits) -> Sequence[int]:
    """Return the first of `chosen` whose records may be parsed for one chunk, but at least one."""
    few = chosen[: limits.parsed_events]
    return few[: fitting([batch.bodies[i] for i in few], limits.parsed_bytes)]


def flush_end(batch: Batch, first: int, stop: int, limits: DeliveryLimits) -> int:
    """Return where a flush that begins at `first` ends: at `stop`, or earlier at a limit.

    All are indices of the batch, and `stop` is above `first`. At least one event is taken. Bytes are counted
    as bodies, which are nearly all of a large message.
    """
    last = min(stop, first + limits.flush_events)
    return first + fitting(batch.bodies[first:last], limits.flush_bytes)


class Rendering:
    """What one flush renders of `batch[flushed]`, each part when it is first needed.

    Of an encoding whose frames are costly, only what groups want: `wanted` has the indices of each. A group
    with a limit on messages renders for itself, so that what it leaves out is not made. Of other encodings,
    all that is flushed.
    """

    def __init__(
        self, cache: RenderCache, batch: Batch, flushed: range, wanted: Mapping[Group, Sequence[int]]
    ) -> None:
        self._cache = cache
        self._batch = batch
        self._flushed = flushed
        self._wanted = wanted
        # What the groups of a costly encoding want that have no limit: indices, rising. Set by `gather`.
        self._gathered: dict[Encoding, Sequence[int]] = {}
        # What is shared by the groups of an encoding.
        self._shared: dict[Encoding, Rendered] = {}

    def gather(self, group: Group) -> Steps[None]:
        """Find what all groups of a costly encoding want, in steps, before `of` a group is asked.

        Done once per encoding. Does nothing for a group with a limit on messages.
        """
        encoding = group.encoding
        if encoding in self._gathered or group.message_bytes_max:
            return
        found, budget = set[int](), Budget(_GATHERED_PER_STEP)
        for other, indices in self._wanted.items():
            cost = 10  # to look at a group takes as long as to add ten indices
            if other.encoding == encoding and not other.message_bytes_max:
                found.update(indices)
                cost += len(indices)
                if len(found) == len(self._flushed):  # nothing can be added
                    break
            if budget.spend(cost):
                yield
        self._gathered[encoding] = sorted(found)

    def of(self, group: Group) -> Rendered:
        """Return what is rendered, with all that a group wants. `gather` must have run if it is costly."""
        encoding = group.encoding
        if group.costly and group.message_bytes_max:
            return self._cache.render(self._batch, self._wanted[group], encoding, group.message_bytes_max)
        rendered = self._shared.get(encoding)
        if rendered is None:
            indices = self._gathered[encoding] if group.costly else self._flushed
            rendered = self._shared[encoding] = self._cache.render(self._batch, indices, encoding)
        return rendered
