"""Cutting the log: what one flush takes, and what one write carries to a reader that catches up. Pure."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from jetstream.delivery.render_cache import Chunk, RenderCache
from jetstream.delivery.subscriber import Subscriber
from jetstream.limits import DeliveryLimits
from jetstream.model.batch import Batch


def cut(
    batch: Batch, first: int, last: int, reader: Subscriber, cache: RenderCache, limits: DeliveryLimits
) -> Chunk:
    """Return the next chunk of what a subscriber wants of `batch[first:last]`.

    Chunks of everything end at the same places, whoever reads them: at multiples of `chunk_events`. So when
    thousands of readers come back together, all their chunks but the first are the same bytes, made once.
    """
    encoding, options = reader.encoding, reader.options
    last = min(last, first + limits.judged_events)
    chosen = options.wanted.select(batch, first, last)
    if not chosen:
        return Chunk(b"", 0, last)
    rendered, whole = cache.get(batch, encoding), limits.chunk_events
    shared = isinstance(chosen, range) and not options.message_bytes_max and first % whole == 0
    if shared and (kept := rendered.chunk(first)) is not None and kept.reached <= last:
        return kept
    some = chosen[: whole - first % whole if isinstance(chosen, range) else whole]
    rendered = cache.render(batch, some, encoding)
    some = rendered.fit(some, limits.chunk_bytes)
    frames = rendered.frames(some, options.message_bytes_max)
    reached = last if len(some) == len(chosen) else some[-1] + 1
    chunk = Chunk(b"".join(frames), len(frames), reached)
    if shared and reached == first + whole:
        rendered.keep(first, chunk)
    return chunk


def flush_end(batch: Batch, first: int, stop: int, limits: DeliveryLimits) -> int:
    """Return where a flush that begins at `first` ends: at `stop`, or where a limit is met; never empty."""
    last = min(stop, first + limits.flush_events)
    if sum(map(len, batch.bodies[first:last])) <= limits.flush_bytes:
        return last
    sizes = list(accumulate(map(len, batch.bodies[first:last])))
    return first + bisect_right(sizes, limits.flush_bytes, lo=1)
