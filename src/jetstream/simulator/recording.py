"""Recordings of a firehose: `[u32 little-endian length][frame]…` under zstd, and the DID documents beside it.

A recording is read in pieces of about 1 MiB. `messages` gives them ready for the socket: a server's WebSocket
frames are not masked, so many can be written as one buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

import libipld
import orjson
import zstandard

from jetstream.errors import JetstreamError

_SIZE: Final = Struct("<I")
_PIECE_BYTES: Final = 1 << 20
_LEVEL: Final = 3
_BINARY_MESSAGE: Final = 0x82  # FIN, opcode 2; RFC 6455 section 5.2
FRAME_BYTES_MAX: Final = 64 << 20  # more is no frame but a file of some other kind


Add = Callable[[bytes], None]


class RecordingError(JetstreamError):
    """A file is not a recording, or ends in the middle of a frame."""


class Messages(NamedTuple):
    """Some consecutive frames as WebSocket messages: how many, and their bytes."""

    frames: int
    data: bytes


@contextmanager
def writing(path: Path) -> Iterator[Add]:
    """Open a new recording and give the function that adds a frame to it."""
    with path.open("wb") as file, zstandard.ZstdCompressor(_LEVEL).stream_writer(file) as writer:

        def add(frame: bytes) -> None:
            writer.write(_SIZE.pack(len(frame)) + frame)

        yield add


def read(path: Path) -> Iterator[bytes]:
    """Read the frames of a recording. Raises RecordingError for a file that is none."""
    for piece, bounds in _pieces(path):
        for start, end in bounds:
            yield piece[start:end]


def messages(path: Path, count_max: int = 1 << 30, after: int = 0) -> Iterator[Messages]:
    """Read a recording as WebSocket messages, up to `count_max` at a time, those with a `seq` above `after`.

    Raises RecordingError for a file that is none.
    """
    for piece, bounds in _pieces(path):
        wanted = bounds
        if after:
            wanted = [place for place in bounds if _is_after(piece[slice(*place)], after)]
            after = 0 if len(wanted) == len(bounds) else after
        for first in range(0, len(wanted), count_max):
            some = wanted[first : first + count_max]
            parts: list[bytes] = []
            for start, end in some:
                parts += (message_head(end - start), piece[start:end])
            yield Messages(len(some), b"".join(parts))


def message_head(size: int) -> bytes:
    """Write the head of a binary WebSocket message as a server sends it."""
    if size < 126:
        return bytes((_BINARY_MESSAGE, size))
    if size < 0x10000:
        return bytes((_BINARY_MESSAGE, 126)) + size.to_bytes(2, "big")
    return bytes((_BINARY_MESSAGE, 127)) + size.to_bytes(8, "big")


def documents_path(path: Path) -> Path:
    """Name the file of DID documents that lies beside a recording."""
    return path.with_name(path.name + ".dids.json")


def write_documents(path: Path, documents: Mapping[str, object]) -> None:
    """Write the DID documents beside a recording, by DID."""
    documents_path(path).write_bytes(orjson.dumps(documents, option=orjson.OPT_INDENT_2))


def read_documents(path: Path) -> dict[str, object]:
    """Read the DID documents beside a recording; none where there is no such file."""
    beside = documents_path(path)
    return dict(orjson.loads(beside.read_bytes())) if beside.exists() else {}


def number_of(frame: bytes) -> int | None:
    """Read the `seq` of a frame, None where it has none or cannot be read."""
    body = body_of(frame)
    seq = body.get("seq")
    return seq if isinstance(seq, int) else None


def dids_of(recorded: Iterable[bytes]) -> set[str]:
    """Collect the accounts that frames speak of."""
    bodies = map(body_of, recorded)
    return {did for body in bodies if isinstance(did := body.get("repo") or body.get("did"), str)}


def body_of(frame: bytes) -> dict[str, object]:
    """Decode the body of a frame; an empty one where it has none or cannot be read."""
    try:
        _, body = libipld.decode_dag_cbor_multi(frame)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _is_after(frame: bytes, seq: int) -> bool:
    number = number_of(frame)
    return number is not None and number > seq


def _pieces(path: Path) -> Iterator[tuple[bytes, list[tuple[int, int]]]]:
    """Read pieces of whole frames, with the start and end of each frame in them."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
        rest = b""
        while data := _read(reader, path):
            piece = rest + data
            bounds, used = _split(piece, path)
            rest = piece[used:]
            if bounds:
                yield piece, bounds
        if rest:
            raise RecordingError(f"{path} ends {len(rest)} bytes into a frame")


def _read(reader: zstandard.ZstdDecompressionReader, path: Path) -> bytes:
    try:
        return reader.read(_PIECE_BYTES)
    except zstandard.ZstdError as error:
        raise RecordingError(f"{path} is no recording: {error}") from error


def _split(piece: bytes, path: Path) -> tuple[list[tuple[int, int]], int]:
    """Find the whole frames in a piece, and where the rest begins."""
    bounds: list[tuple[int, int]] = []
    at, last = 0, len(piece) - 4
    while at <= last:
        (size,) = _SIZE.unpack_from(piece, at)
        if size > FRAME_BYTES_MAX:
            raise RecordingError(f"{path} is no recording: a frame of {size} bytes")
        end = at + 4 + size
        if end > len(piece):
            break
        bounds.append((at + 4, end))
        at = end
    return bounds, at
