"""Messages compressed with zstd against a shared dictionary, each in a binary WebSocket message.

Each event is one zstd frame (RFC 8878): clients decompress one message at a time. Its header has the ID of
the dictionary, which Go's decoder needs, and the size of the content, which simple decoders need. There is no
checksum.

Level 1 takes 1.6 µs an event and makes it 2.2 times smaller. Lower levels compress much less, and higher ones
take more time for 2 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, cast

import zstandard

from jetstream.delivery.framing.websocket import BINARY, WebSocketFraming

_LEVEL: Final = 1
# From so many messages on, one call for all is 10 % faster than one for each. It also gives the GIL away once
# and not for each, so that other threads take it less often.
_MANY: Final = 64


class ZstdFraming(WebSocketFraming):
    """One binary message per event: its JSON as a zstd frame. `dictionary` is a whole zstd dictionary.

    Used by the event loop's thread only: the compressor has a state. Raises ValueError for a dictionary that
    cannot be used.
    """

    costly = True

    def __init__(self, dictionary: bytes) -> None:
        super().__init__(BINARY)
        try:
            data = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)
            data.precompute_compress(_LEVEL)  # else each call for many messages would do it
            compressor = zstandard.ZstdCompressor(
                _LEVEL, dict_data=data, write_checksum=False, write_content_size=True, write_dict_id=True
            )
            compressor.compress(b"{}")  # the library reads the dictionary when it is first used
        except zstandard.ZstdError as error:
            raise ValueError(f"is not a zstd dictionary: {error}") from error
        # In the header of the dictionary and of each frame: a positive number of 32 bits.
        self.dictionary_id = data.dict_id()
        if not self.dictionary_id:
            raise ValueError("is not a zstd dictionary: it has no ID")
        self._compress = compressor.compress
        # It returns views of one buffer, which can be joined to `bytes` as `bytes` can.
        self._compress_all = cast("Callable[[list[bytes]], list[bytes]]", compressor.multi_compress_to_buffer)

    def frames(self, messages: list[bytes], times: Iterable[int] | None = None) -> list[bytes]:
        """Return each message compressed and with its head; the frame of a declined event is empty."""
        if len(messages) >= _MANY and all(messages):
            return super().frames(self._compress_all(messages), times)
        compress = self._compress
        return super().frames([compress(message) if message else b"" for message in messages], times)
