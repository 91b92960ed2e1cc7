"""Recordings of a firehose: `[u32 little-endian length][frame]…`, compressed with zstd, and DID documents.

A recording is read in pieces of about 1 MiB. `messages` returns them ready for the socket: a server does not
mask its WebSocket frames, so many of them can be written at once. A JSON file beside the recording
has the DID document, or the audit log, of each account.
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
FRAME_BYTES_MAX: Final = 64 << 20  # a longer "frame" means that the file is not a recording

Add = Callable[[bytes], None]


class RecordingError(JetstreamError):
    """A file is not a recording, or ends inside a frame."""


class Messages(NamedTuple):
    """Consecutive frames as WebSocket messages."""

    frames: int  # how many
    data: bytes


@contextmanager
def writing(path: Path) -> Iterator[Add]:
    """Open a new recording, and yield the function that adds a frame to it."""
    with path.open("wb") as file, zstandard.ZstdCompressor(_LEVEL).stream_writer(file) as writer:

        def add(frame: bytes) -> None:
            writer.write(_SIZE.pack(len(frame)) + frame)

        yield add


def read(path: Path) -> Iterator[bytes]:
    """Yield the frames of a recording. Raises RecordingError."""
    for piece, bounds in _pieces(path):
        for start, end in bounds:
            yield piece[start:end]


def messages(path: Path, count_max: int = 1 << 30, after: int = 0) -> Iterator[Messages]:
    """Yield a recording as WebSocket messages, up to `count_max` at a time.

    Only frames with a `seq` above `after` are included. Raises RecordingError.
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
    """Return the head of a server's binary WebSocket message of `size` bytes."""
    if size < 126:
        return bytes((_BINARY_MESSAGE, size))
    if size < 0x10000:
        return bytes((_BINARY_MESSAGE, 126)) + size.to_bytes(2, "big")
    return bytes((_BINARY_MESSAGE, 127)) + size.to_bytes(8, "big")


def documents_path(path: Path) -> Path:
    """Return the path of the DID documents and audit logs of a recording."""
    return path.with_name(path.name + ".dids.json")


def write_documents(path: Path, documents: Mapping[str, object]) -> None:
    """Write the DID documents and audit logs of a recording, by DID."""
    documents_path(path).write_bytes(orjson.dumps(documents, option=orjson.OPT_INDENT_2))


def read_documents(path: Path) -> dict[str, object]:
    """Read the DID documents and audit logs of a recording; none if there is no such file."""
    beside = documents_path(path)
    return dict(orjson.loads(beside.read_bytes())) if beside.exists() else {}


def seq_of(frame: bytes) -> int | None:
    """Return the `seq` of a frame, None if it has none or cannot be read."""
    body = body_of(frame)
    seq = body.get("seq")
    return seq if isinstance(seq, int) else None


def dids_of(recorded: Iterable[bytes]) -> set[str]:
    """Return the DIDs of the accounts of frames."""
    bodies = map(body_of, recorded)
    return {did for body in bodies if isinstance(did := body.get("repo") or body.get("did"), str)}


def body_of(frame: bytes) -> dict[str, object]:
    """Return the body of a frame; empty if it has none or cannot be read."""
    try:
        _, body = libipld.decode_dag_cbor_multi(frame)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _is_after(frame: bytes, seq: int) -> bool:
    number = seq_of(frame)
    return number is not None and number > seq


def _pieces(path: Path) -> Iterator[tuple[bytes, list[tuple[int, int]]]]:
    """Yield pieces of complete frames, with the start and end of each frame in them."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
        rest = b""
        while data := _read(reader, path):
            piece = rest + data
            bounds, used = _split(piece, path)
            rest = piece[used:]
            if bounds:
                yield piece, bounds
        if rest:
            raise RecordingError(f"{path} ends inside a frame, after {len(rest)} bytes of it")


def _read(reader: zstandard.ZstdDecompressionReader, path: Path) -> bytes:
    try:
        return reader.read(_PIECE_BYTES)
    except zstandard.ZstdError as error:
        raise RecordingError(f"{path} is not a recording: {error}") from error


def _split(piece: bytes, path: Path) -> tuple[list[tuple[int, int]], int]:
    """Return where the complete frames of a piece are, and where the rest begins."""
    bounds: list[tuple[int, int]] = []
    at, last = 0, len(piece) - 4
    while at <= last:
        (size,) = _SIZE.unpack_from(piece, at)
        if size > FRAME_BYTES_MAX:
            raise RecordingError(f"{path} is not a recording: a frame of {size} bytes")
        end = at + 4 + size
        if end > len(piece):
            break
        bounds.append((at + 4, end))
        at = end
    return bounds, at
