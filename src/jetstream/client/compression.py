"""Compressed messages: each is one zstd frame against a dictionary of the server. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import zstandard

DICTIONARY_BYTES_MAX: Final = 1 << 20
_MAGIC: Final = bytes.fromhex("37a430ec")  # RFC 8878, section 5: a dictionary begins with it, then its ID


@dataclass(frozen=True, slots=True)
class Dictionary:
    """A zstd dictionary."""

    id: int
    decompress: Callable[[bytes], bytes]  # raises ValueError

    @classmethod
    def parse(cls, data: bytes, message_bytes_max: int) -> Dictionary:
        """Check a dictionary. No message may be longer than `message_bytes_max`. Raises ValueError."""
        if len(data) > DICTIONARY_BYTES_MAX:
            raise ValueError(f"is longer than {DICTIONARY_BYTES_MAX} bytes")
        if not data.startswith(_MAGIC):
            raise ValueError("is not a zstd dictionary")
        try:
            dictionary = zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_FULLDICT)
            decompressor = zstandard.ZstdDecompressor(dict_data=dictionary)
        except zstandard.ZstdError as error:
            raise ValueError(f"is not a zstd dictionary: {error}") from error
        if not dictionary.dict_id():
            raise ValueError("is not a zstd dictionary: it has no ID")
        return cls(dictionary.dict_id(), _decompression(decompressor, message_bytes_max))


def _decompression(decompressor: zstandard.ZstdDecompressor, most: int) -> Callable[[bytes], bytes]:
    def decompress(message: bytes) -> bytes:
        try:
            # zstandard reserves what a frame says of itself, whatever that is.
            if zstandard.frame_content_size(message) > most:
                raise ValueError(f"a message is longer than {most} bytes")
            return decompressor.decompress(message, max_output_size=most)
        except zstandard.ZstdError as error:
            raise ValueError(f"a message cannot be decompressed: {error}") from error

    return decompress
