"""Reading compressed messages: each is one zstd frame against a dictionary."""

from __future__ import annotations

from collections.abc import Callable

import zstandard


def decompressor(dictionary: bytes) -> Callable[[bytes], bytes]:
    """Return a function that decompresses a message, and raises ValueError for bytes that are none.

    Raises ValueError for a dictionary that cannot be used.
    """
    try:
        decompress = zstandard.ZstdDecompressor(zstandard.ZstdCompressionDict(dictionary)).decompress
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error

    def decompressed(message: bytes) -> bytes:
        try:
            return decompress(message)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error

    return decompressed
