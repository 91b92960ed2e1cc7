from __future__ import annotations

from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from jetstream.simulator import frames, recording
from jetstream.simulator.frames import Identity
from jetstream.simulator.recording import RecordingError

FRAMES = st.lists(st.binary(max_size=300) | st.just(bytes(70_000)), max_size=20)


def numbered(seq: int) -> bytes:
    return frames.encode(Identity("did:plc:" + "a" * 24, "2026-01-01T00:00:00.000Z", None), seq)


def write(path: Path, made: list[bytes]) -> Path:
    with recording.writing(path) as add:
        for frame in made:
            add(frame)
    return path


def unframed(data: bytes) -> list[bytes]:
    """Split a server's WebSocket messages, by RFC 6455."""
    found = []
    at = 0
    while at < len(data):
        assert data[at] == 0x82
        size, at = data[at + 1], at + 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
        found.append(data[at : at + size])
        at += size
    return found


@given(made=FRAMES, count=st.integers(min_value=1, max_value=30))
def test_a_recording_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, made: list[bytes], count: int
) -> None:
    path = write(tmp_path_factory.mktemp("recording") / "frames.bin.zst", made)
    assert list(recording.read(path)) == made
    pieces = list(recording.messages(path, count))
    assert [frame for piece in pieces for frame in unframed(piece.data)] == made
    assert all(piece.frames == len(unframed(piece.data)) <= count for piece in pieces)


def test_a_frame_larger_than_a_piece_is_read_whole(tmp_path: Path) -> None:
    made = [b"before", bytes(5_000_000), b"after"]
    path = write(tmp_path / "frames.bin.zst", made)
    assert list(recording.read(path)) == made


def test_a_cursor_leaves_out_what_came_before(tmp_path: Path) -> None:
    made = [numbered(seq) for seq in range(1, 20_001)]
    path = write(tmp_path / "frames.bin.zst", made)
    for after in (0, 1, 9_999, 19_999, 20_000):
        data = b"".join(piece.data for piece in recording.messages(path, after=after))
        assert unframed(data) == made[after:]


def test_other_files_and_truncated_recordings_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"plain text, and quite a lot of it" * 9)
    with pytest.raises(RecordingError, match="is not a recording"):
        list(recording.read(other))
    with zstandard.open(other, "wb") as file:
        file.write(b"\xff" * 100)
    with pytest.raises(RecordingError, match="a frame of 4294967295 bytes"):
        list(recording.read(other))
    with zstandard.open(other, "wb") as file:
        file.write(b"\x08\x00\x00\x00half")
    with pytest.raises(RecordingError, match="ends inside a frame, after 8 bytes"):
        list(recording.read(other))


def test_documents_are_beside_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "frames.bin.zst"
    assert recording.read_documents(path) == {}
    recording.write_documents(path, {"did:plc:a": {"id": "did:plc:a"}})
    assert recording.read_documents(path) == {"did:plc:a": {"id": "did:plc:a"}}


def test_accounts_are_found_in_frames_of_every_type_and_garbage_is_ignored() -> None:
    assert recording.dids_of([numbered(1), b"", b"\xff", frames.encode_info("x", "y")]) == {
        "did:plc:" + "a" * 24
    }
