"""The lists of DIDs that clients have uploaded, for edges that start later. Pure.

The edges decide which lists there are, all alike: each reads every upload. This is a copy of the uploads, in
the order in which they were used last, compressed. Their number and their bytes are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from zstandard import ZstdCompressor, ZstdDecompressor

from jetstream.limits import Limits


class Uploads:
    """The uploads by the ID of their list. `clock` gives monotonic seconds."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits.web
        self._bytes_max = limits.supervisor.uploads_bytes_max
        self._clock = clock
        # Each with until when it is kept, and its size; the first ends first.
        self._kept: dict[str, tuple[float, int, bytes]] = {}
        # Bytes of all of them, as they were uploaded.
        self.bytes = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)

    def add(self, list_id: str, body: bytes) -> None:
        """Keep an upload. Those that were used the longest ago make room for it."""
        data = ZstdCompressor(level=1).compress(body)
        self._drop(list_id)
        self._kept[list_id] = (self._until(), len(body), data)
        self.bytes += len(body)
        while len(self._kept) > self._limits.did_lists_max or self.bytes > self._bytes_max:
            self._drop(next(iter(self._kept)))

    def use(self, list_ids: Iterable[str]) -> None:
        """Note that lists are in use."""
        for list_id in list_ids:
            if list_id in self._kept:
                self._kept[list_id] = (self._until(), *self._kept.pop(list_id)[1:])

    def expire(self) -> None:
        """Drop what is kept no longer. To be called now and then."""
        now = self._clock()
        while self._kept and next(iter(self._kept.values()))[0] <= now:
            self._drop(next(iter(self._kept)))

    def bodies(self) -> Iterator[bytes]:
        """Return all uploads, the one that was used the longest ago first."""
        decompressor = ZstdDecompressor()
        for _, _, data in list(self._kept.values()):
            yield decompressor.decompress(data)

    def _until(self) -> float:
        return self._clock() + self._limits.did_lists_kept_s

    def _drop(self, list_id: str) -> None:
        _, size, _ = self._kept.pop(list_id, (0.0, 0, b""))
        self.bytes -= size
