"""A slice: what one write carries of a log to a reader that is behind."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from jetstream.delivery.subscriber import SubscriberOptions
from jetstream.delivery.wires import Wire, fitting
from jetstream.model.batch import Batch

SLICE_EVENTS_MAX: Final = 200  # a fifth of a millisecond to render
JUDGED_EVENTS_MAX: Final = 1_000  # 0.2 ms with 10,000 DIDs
SLICE_BYTES_MAX: Final = 128 << 10  # and so much more than its buffer a slow reader may have waiting


class Slice(NamedTuple):
    """Frames, how many they are, and the index up to which their batch has been judged."""

    data: bytes
    messages: int
    reached: int


def cut(batch: Batch, first: int, last: int, wire: Wire, options: SubscriberOptions) -> Slice:
    """Return the next slice of what is wanted of `batch[first:last]`.

    Slices of everything end at the same places, whoever reads them. So of thousands who come back together,
    all but the first slice are the same bytes, which are put together once.
    """
    last = min(last, first + JUDGED_EVENTS_MAX)
    chosen = options.wanted.select(batch, first, last)
    if isinstance(chosen, range):
        some: Sequence[int] = range(first, min(last, first - first % SLICE_EVENTS_MAX + SLICE_EVENTS_MAX))
        if len(some) == SLICE_EVENTS_MAX and not options.message_bytes_max:
            data = _shared(batch, first, wire)
            if data is not None:
                return Slice(data, SLICE_EVENTS_MAX, some[-1] + 1)
    else:
        some = chosen[:SLICE_EVENTS_MAX]
    frames = _frames(batch, some, wire)
    if sum(map(len, frames)) > SLICE_BYTES_MAX:
        sizes = list(accumulate(map(len, frames)))
        frames = frames[: bisect_right(sizes, SLICE_BYTES_MAX, lo=1)]
        some = some[: len(frames)]
    reached = last if len(some) == len(chosen) else some[-1] + 1
    frames = fitting(frames, options.message_bytes_max)
    return Slice(b"".join(frames), len(frames), reached)


def _shared(batch: Batch, first: int, wire: Wire) -> bytes | None:
    """Return a whole slice of everything, put together by the first who asks; None when it is too long."""
    shared = batch.slices.get(wire.name, {}).get(first)
    if shared is None:
        frames = _frames(batch, range(first, first + SLICE_EVENTS_MAX), wire)
        if sum(map(len, frames)) > SLICE_BYTES_MAX:
            return None
        shared = batch.slices.setdefault(wire.name, {})[first] = b"".join(frames)
    return shared


def _frames(batch: Batch, indices: Sequence[int], wire: Wire) -> list[bytes]:
    if not indices:
        return []
    if isinstance(indices, range):
        return wire.frames(batch, indices.stop)[indices.start : indices.stop]
    return wire.some_frames(batch, indices)
