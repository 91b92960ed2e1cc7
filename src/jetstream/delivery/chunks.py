"""Cutting the log: what one flush takes, and what one write carries to a reader that catches up. Pure.

Both are bounded by a number of events, for the time they take, and by bytes, for the memory in which they
wait when a socket is slow. One event is always taken, however large it is, so that every reader makes
progress.
"""

from __future__ import annotations

from collections.abc import Sequence

from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.render_cache import Chunk, RenderCache, fitting
from jetstream.delivery.subscriber import Subscriber
from jetstream.limits import DeliveryLimits
from jetstream.model.batch import Batch


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
    all their chunks but the first are the same bytes, made once.
    """
    encoding, options = reader.encoding, reader.options
    last = min(last, first + limits.judged_events)
    chosen = options.wanted.select(batch, first, last)
    if options.content is not None:
        few = _few(batch, chosen, limits)
        last = chosen[len(few)] if len(few) < len(chosen) else last
        chosen = features.select(options.content, batch, few)
    if not chosen:
        return Chunk(b"", 0, last)
    rendered, whole = cache.get(batch, encoding), limits.chunk_events
    shared = isinstance(chosen, range) and not options.message_bytes_max and first % whole == 0
    if shared and (kept := rendered.chunks.get(first)) is not None and kept.reached <= last:
        return kept
    # The first chunk of a reader of everything ends where the next shared one begins.
    some = chosen[: whole - first % whole if isinstance(chosen, range) else whole]
    # Large records are left to the next chunk before they are rendered: compressing 8 MiB takes 20 ms.
    bodies = batch.bodies
    pieces = bodies[some[0] : some[-1] + 1] if isinstance(some, range) else [bodies[i] for i in some]
    some = some[: fitting(pieces, limits.chunk_bytes)]
    rendered = cache.render(batch, some, encoding)
    # Bytes are counted before long messages are left out: simpler, and the next chunk takes what is left.
    some = rendered.fit(some, limits.chunk_bytes)
    frames = rendered.frames(some, options.message_bytes_max)
    reached = last if len(some) == len(chosen) else some[-1] + 1
    chunk = Chunk(b"".join(frames), len(frames), reached)
    if shared and reached == first + whole:  # else it was cut short, by `last` or by bytes
        rendered.keep(first, chunk)
    return chunk


def _few(batch: Batch, chosen: Sequence[int], limits: DeliveryLimits) -> Sequence[int]:
    """Return the first of `chosen` whose records may be parsed for one chunk."""
    few = chosen[: limits.parsed_events]
    return few[: fitting([batch.bodies[i] for i in few], limits.parsed_bytes)]


def flush_end(batch: Batch, first: int, stop: int, limits: DeliveryLimits) -> int:
    """Return where a flush that begins at `first` ends: at `stop`, or earlier at a limit.

    Bytes are counted as bodies, which are nearly all of a large message.
    """
    last = min(stop, first + limits.flush_events)
    return first + fitting(batch.bodies[first:last], limits.flush_bytes)
