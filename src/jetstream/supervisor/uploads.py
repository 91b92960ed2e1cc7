"""The lists of DIDs that clients have uploaded, for edges that start later. Pure.

The edges decide which lists there are, all alike: each reads every upload. This is a copy of the
uploads, in the order in which they were used last, compressed. Their number and their bytes are
bounded.

An edge that becomes ready is sent all of them, the one that was used the longest ago first, so that it
has the same lists in the same order. The IDs are those that the edges gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from zstandard import ZstdCompressor, ZstdDecompressor

from jetstream.limits import Limits


class Uploads:
    """The uploads by the ID of their list. `clock` gives monotonic seconds."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        # `did_lists_max` and `did_lists_kept_s`: the same bounds as in an edge.
        self._limits = limits.web
        # The bound of all uploads together, in bytes before compression. With more, the oldest one
        # goes.
        self._bytes_max = limits.supervisor.uploads_bytes_max
        self._clock = clock
        # Each with until when it is kept in monotonic seconds, its size before compression, and its
        # compressed bytes. In the order of their last use: the first ends first.
        self._kept: dict[str, tuple[float, int, bytes]] = {}
        # Bytes of all of them, as they were uploaded.
        self.bytes = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)

    def add(self, list_id: str, body: bytes) -> None:
        """Keep an upload. Those that were used the longest ago make room for it.

        `body` is the upload as the client sent it, which the edges have accepted. One that is there
        already is replaced, and is the newest again.
        """
        data = ZstdCompressor(level=1).compress(body)
        self._drop(list_id)
        self._kept[list_id] = (self._until(), len(body), data)
        self.bytes += len(body)
        while len(self._kept) > self._limits.did_lists_max or self.bytes > self._bytes_max:
            self._drop(next(iter(self._kept)))

    def use(self, list_ids: Iterable[str]) -> None:
        """Keep lists for longer, as they are in use at some edge. IDs that are not known are ignored."""
        for list_id in list_ids:
            if list_id in self._kept:
                self._kept[list_id] = (self._until(), *self._kept.pop(list_id)[1:])

    def expire(self) -> None:
        """Drop what is kept no longer. To be called now and then."""
        now = self._clock()
        while self._kept and next(iter(self._kept.values()))[0] <= now:
            self._drop(next(iter(self._kept)))

    def bodies(self) -> Iterator[bytes]:
        """Return all uploads, the one that was used the longest ago first.

        Each is decompressed when it is asked for. What is added meanwhile is not among them.
        """
        decompressor = ZstdDecompressor()
        for _, _, data in list(self._kept.values()):
            yield decompressor.decompress(data)

    def _until(self) -> float:
        """Return until when an upload is kept that is used now, in monotonic seconds."""
        return self._clock() + self._limits.did_lists_kept_s

    def _drop(self, list_id: str) -> None:
        """Forget an upload, and its bytes; nothing happens if there is none with this ID."""
        _, size, _ = self._kept.pop(list_id, (0.0, 0, b""))
        self.bytes -= size
