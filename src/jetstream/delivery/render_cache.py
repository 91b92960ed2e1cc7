"""`RenderCache`: each event is rendered and framed once per encoding, for all readers.

What is rendered of a batch is kept per encoding, as one `Rendered`: a frame per event, and the chunks that
readers share while they catch up. It is made when a reader first needs it, live or in replay, for the events
that this reader needs.

The cache measures what it holds and has a bound in bytes. When it is full, it drops the batch and encoding
that were used least recently; they are rendered again for the next reader that needs them. The cache does not
keep a batch alive, and drops what is rendered of it when the batch ends. So a record that is erased from the
log's batches is gone from here, too.
"""

from __future__ import annotations

import sys
import weakref
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, compress
from operator import not_
from typing import Final, NamedTuple

from jetstream.delivery.framing import Framing
from jetstream.delivery.subscriber import Encoding
from jetstream.model.batch import Batch

# Memory in CPython: a `bytes` takes 33 bytes and is rounded up to 16, an item of a list takes 8, an item of
# an array of "I" 4.
_FRAME_BYTES: Final = 33 + 8
_SLOT_BYTES: Final = 8 + 4
_CHUNK_BYTES: Final = 400  # of the chunk's tuple, its integers, and its place in a dict
_NOT_MADE: Final = b"not made"  # compared by identity


class Chunk(NamedTuple):
    """What one write carries to a reader that catches up."""

    data: bytes  # whole frames
    messages: int  # in `data`; declined events and messages above a limit are not counted
    reached: int  # the index up to which the batch has been judged


class Rendered:
    """What is rendered of one batch in one encoding. Only `RenderCache` adds to it."""

    __slots__ = ("_complete", "_declined", "_encoding", "_frames", "_lengths", "_watch", "chunks", "size")

    def __init__(self, encoding: Encoding, watch: weakref.ref[Batch]) -> None:
        self._encoding = encoding
        # Calls the cache back when the batch ends; kept here so that it lives as long as the entry.
        self._watch = watch
        # The frame of each event, by its index in the batch, up to the last one that was needed: `_NOT_MADE`
        # if it is not rendered, or costly and wanted by nobody; empty if the renderer declined the event.
        self._frames: list[bytes] = []
        # Whether no frame is missing among these; False for good after the first that was passed over.
        self._complete = True
        # The length of each event's JSON, which limits on messages are compared with. 0 if not rendered or
        # declined.
        self._lengths = array("I")
        # The indices of the events that the renderer has declined, rising. There are few: the classic and
        # the v1 wire have no syncs, of which there is one in some thousand events.
        self._declined: list[int] = []
        # Shared chunks, by the index of their first event; see `chunks.cut`.
        self.chunks: dict[int, Chunk] = {}
        # Bytes of memory of all this, measured when something is added.
        self.size = 0

    def has(self, index: int) -> bool:
        """Tell whether an event is rendered, or was declined."""
        return index < len(self._frames) and self._frames[index] is not _NOT_MADE

    def has_all(self, indices: Sequence[int]) -> bool:
        """Tell whether all of these events are rendered; False, too, if that is not known at once."""
        return self._complete and indices[-1] < len(self._frames)

    def frames(self, indices: Sequence[int], message_bytes_max: int = 0) -> list[bytes]:
        """Return the frames of events that have been rendered, in their order.

        Leaves out events that the renderer declined or whose JSON is longer than `message_bytes_max`; 0 is no
        limit.
        """
        frames = self._frames
        if message_bytes_max:
            lengths = self._lengths
            indices = [i for i in indices if 0 < lengths[i] <= message_bytes_max]
        if len(indices) == 1:  # as nearly always for a reader of few repos
            made = [frames[indices[0]]]
        elif isinstance(indices, range):
            made = frames[indices.start : indices.stop]
        else:
            made = [frames[i] for i in indices]
        if self._declined and self._has_declined(indices):
            return list(filter(None, made))
        return made

    def _has_declined(self, indices: Sequence[int]) -> bool:
        """Tell whether an event was declined between the first and the last of `indices`."""
        declined = self._declined
        if not indices:
            return False
        at = bisect_left(declined, indices[0])
        return at < len(declined) and declined[at] <= indices[-1]

    def fit(self, indices: Sequence[int], bytes_max: int) -> Sequence[int]:
        """Return the first of `indices` whose frames have at most `bytes_max` together, but at least one.

        Declined events count as no bytes.
        """
        frames = self._frames
        return indices[: fitting([frames[i] for i in indices], bytes_max)]

    def keep(self, first: int, chunk: Chunk) -> None:
        """Keep a chunk for the next reader that comes to its first event."""
        self.chunks[first] = chunk
        self.size += len(chunk.data) + _CHUNK_BYTES

    def add(self, batch: Batch, indices: Sequence[int], message_bytes_max: int = 0) -> None:
        """Render those of `indices` that are not rendered yet.

        Where frames are costly, none is made of a message that is longer than `message_bytes_max`.
        """
        renderer, framing = self._encoding
        # At the tip, all of them are new and follow the last one.
        if isinstance(indices, range) and indices.start == len(self._frames) and not framing.costly:
            messages = renderer.render(batch, indices)
            made = framing.frames(messages, map(batch.times.__getitem__, indices))
            self._frames += made
            self._lengths.extend(map(len, messages))
            self._note(indices, messages, made, len(made))
        else:
            self._put(batch, indices, (framing.costly and message_bytes_max) or sys.maxsize)

    def _put(self, batch: Batch, indices: Sequence[int], most: int) -> None:
        """Do what `add` does, wherever the events are. No frame is made of a message longer than `most`."""
        frames, lengths = self._frames, self._lengths
        known = len(frames)
        if indices[0] < known:
            indices = [i for i in indices if i >= known or (frames[i] is _NOT_MADE and lengths[i] <= most)]
            if not indices:
                return
        indices = _run(indices)
        messages = self._encoding.renderer.render(batch, indices)
        # An iterator: nothing is looked up for framings without times.
        times = map(batch.times.__getitem__, indices)
        made = _short_frames(self._encoding.framing, messages, times, most)
        run = isinstance(indices, range)
        if (short := (indices[0] if run else indices[-1] + 1) - known) > 0:
            frames += [_NOT_MADE] * short
            lengths.extend([0] * short)
        self._complete = self._complete and short <= 0 and most == sys.maxsize
        if run:  # which may go beyond the end
            frames[indices[0] : indices[-1] + 1] = made
            lengths[indices[0] : indices[-1] + 1] = array("I", map(len, messages))
        else:
            for i, frame, message in zip(indices, made, messages, strict=True):
                frames[i] = frame
                lengths[i] = len(message)
        self._note(indices, messages, made, len(frames) - known)

    def _note(self, indices: Sequence[int], messages: list[bytes], made: list[bytes], slots: int) -> None:
        """Note what was declined of what was rendered, and the memory that it takes: `slots` are new."""
        if not all(messages):
            declined = list(compress(indices, map(not_, messages)))
            self._declined = sorted({*self._declined, *declined})
        self.size += sum(map(len, made)) + len(made) * _FRAME_BYTES + slots * _SLOT_BYTES


class RenderCache:
    """What is rendered of all batches, at most `bytes_max` bytes of it, or one batch in one encoding.

    Used by the event loop's thread only, but for the end of batches.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        # By the id of the batch, and the encoding; the last used is last. An entry is dropped when its batch
        # ends, before another object can have the id. That may happen in another thread, so nothing but `pop`
        # is done there, and everything here works on a copy.
        self._entries: dict[tuple[int, Encoding], Rendered] = {}
        # What is held is no more than this. Grows with what is added, and is measured when it is over the
        # bound: entries that end with their batch are not subtracted.
        self._size_max = 0

    @property
    def size(self) -> int:
        """How many bytes are held. Looks at every entry."""
        return sum(rendered.size for rendered in list(self._entries.values()))

    def get(self, batch: Batch, encoding: Encoding) -> Rendered:
        """Return what there is of a batch, as the last used."""
        entries, key = self._entries, (id(batch), encoding)
        rendered = entries.pop(key, None)
        if rendered is None:
            rendered = Rendered(encoding, weakref.ref(batch, lambda _: entries.pop(key, None)))
        entries[key] = rendered
        return rendered

    def render(
        self, batch: Batch, indices: Sequence[int], encoding: Encoding, message_bytes_max: int = 0
    ) -> Rendered:
        """Return what there is of a batch, with the events that `indices` names: rising, and at least one.

        Events whose JSON is longer than `message_bytes_max` may be missing; 0 is no limit. What is returned
        stays whole when the cache drops it.
        """
        rendered = self.get(batch, encoding)
        if not rendered.has_all(indices):
            before = rendered.size
            rendered.add(batch, indices, message_bytes_max)
            self._make_room(rendered.size - before)
        return rendered

    def keep(self, rendered: Rendered, first: int, chunk: Chunk) -> None:
        """Keep a chunk of what was last used, for the next reader that comes to its first event."""
        before = rendered.size
        rendered.keep(first, chunk)
        self._make_room(rendered.size - before)

    def _make_room(self, added: int) -> None:
        """Count what was added; drop what was used least recently until the rest is within the bound."""
        self._size_max += added
        if self._size_max <= self._bytes_max:  # as nearly always, and nothing is measured
            return
        self._size_max = self.size
        for key in list(self._entries)[:-1]:
            if self._size_max <= self._bytes_max:
                break
            dropped = self._entries.pop(key, None)
            self._size_max -= dropped.size if dropped is not None else 0


def fitting(pieces: Sequence[bytes], bytes_max: int) -> int:
    """Return how many of the first pieces have at most `bytes_max` together, but at least one."""
    if sum(map(len, pieces)) <= bytes_max:  # as nearly always, and faster to find
        return len(pieces)
    return bisect_right(list(accumulate(map(len, pieces))), bytes_max, lo=1)


def _short_frames(framing: Framing, messages: list[bytes], times: Iterable[int], most: int) -> list[bytes]:
    """Return the frames of messages; that of one that is longer than `most` is not made."""
    if most == sys.maxsize:
        return framing.frames(messages, times)
    made = framing.frames([message if len(message) <= most else b"" for message in messages], times)
    pairs = zip(messages, made, strict=True)
    return [frame if len(message) <= most else _NOT_MADE for message, frame in pairs]


def _run(indices: Sequence[int]) -> Sequence[int]:
    """Return indices without holes as a range, which is faster to render."""
    if indices[-1] - indices[0] + 1 == len(indices):
        return range(indices[0], indices[-1] + 1)
    return indices
