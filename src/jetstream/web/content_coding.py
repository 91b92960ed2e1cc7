"""Content codings of a body without an end: which one a client accepts, and its compressor. Pure.

A body is one gzip stream or one zstd frame, with a history, so each connection has a compressor of its own.
It is flushed after each write: a client can read all that has been written.

Memory and time of a connection, with events of 545 bytes:

            KiB    µs an event, 1 in a write    10 in a write    smaller by
    gzip     56             12                       6           2.6 to 3.0
    zstd    124              4                       2           2.8 to 3.4
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection, Mapping
from operator import itemgetter
from typing import Final, Protocol

import zstandard

# The name of a body without a coding (RFC 9110, section 12.5.3).
IDENTITY: Final = "identity"
_ITEMS_MAX: Final = 32  # of a header field; browsers send a handful
# A weight: up to three digits behind the point (RFC 9110, section 12.4.2).
_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?").fullmatch
_ALIASES: Final = {"x-gzip": "gzip"}  # RFC 9110, section 8.4.1.3

# More of any of these costs more than it saves.
_GZIP_LEVEL: Final = 1
_GZIP_WINDOW: Final = 13  # the binary logarithm of its bytes
_GZIP_MEMORY: Final = 6
_GZIP_FORMAT: Final = 16  # added to the window: a gzip stream, not zlib's own format
_ZSTD: Final = zstandard.ZstdCompressionParameters.from_level(
    1, window_log=15, hash_log=13, write_content_size=False
)


class Compressor(Protocol):
    """The compressor of one body.

    It is used by one connection, in the order of its body. `write` may take some tenths of a millisecond
    for 16 KiB.
    """

    def write(self, data: bytes) -> bytes:
        """Return what a client needs to read `data`, which is part of the body.

        The client can read all of `data` from what was returned so far: each call ends with a flush.
        """

    def end(self) -> bytes:
        """Return the end of a body that is complete.

        Called once, after the last `write`; not at all for a body that is cut off.
        """


class GzipCompressor:
    """A body in gzip.

    RFC 1952. Its window has 8 KiB.
    """

    def __init__(self) -> None:
        # Its history is that of the body.
        self._stream = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT + _GZIP_WINDOW, _GZIP_MEMORY)

    def write(self, data: bytes) -> bytes:
        """Return compressed data, up to the last byte of `data`."""
        return self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        """Return the last block, the checksum and the length."""
        return self._stream.flush()


class ZstdCompressor:
    """A body in zstd.

    RFC 8878: one frame without a size in its head. Its window has 32 KiB, which every decoder takes.
    """

    def __init__(self) -> None:
        # Its history is that of the body.
        self._stream = zstandard.ZstdCompressor(compression_params=_ZSTD).compressobj()

    def write(self, data: bytes) -> bytes:
        """Return compressed data, up to the last byte of `data`."""
        return self._stream.compress(data) + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def end(self) -> bytes:
        """Return the last block."""
        return self._stream.flush()


# By name; the one that costs least is first.
COMPRESSORS: Final[Mapping[str, Callable[[], Compressor]]] = {"zstd": ZstdCompressor, "gzip": GzipCompressor}


def choose(accepted: str, offered: Collection[str] = tuple(COMPRESSORS)) -> str | None:
    """Return the content coding for a client, by its `Accept-Encoding` (RFC 9110, section 12.5.3).

    Of `offered`, the one of the highest quality; of equal ones, the first. `identity` if the client prefers
    it, or names none of them: `*` alone does not tell what it can read. None if it refuses that, too. Items
    beyond the first 32 do not count.
    """
    wanted = {_ALIASES.get(name, name): quality for name, quality in qualities(accepted).items()}
    named = ((wanted.get(name, 0.0), name) for name in offered)
    quality, best = max(named, key=itemgetter(0), default=(0.0, IDENTITY))
    if quality > 0 and quality >= wanted.get(IDENTITY, 0.0):
        return best
    return IDENTITY if wanted.get(IDENTITY, wanted.get("*", 1.0)) > 0 else None


def qualities(value: str) -> dict[str, float]:
    """Return the items of a header field with their qualities (RFC 9110, section 12.4.2).

    A quality that is no number is 0. Other parameters of an item are left out.

    Names are in lower case. An item without a quality has 1.
    """
    found = {}
    for item in value.split(",", _ITEMS_MAX)[:_ITEMS_MAX]:
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        weights = [text for each in parameters if (text := each.removeprefix("q=")) != each]
        found[name] = _number(weights[0]) if weights else 1.0
    found.pop("", None)
    return found


def _number(text: str) -> float:
    """Return a quality: a number from 0 to 1."""
    return float(text) if _QUALITY(text) else 0.0
