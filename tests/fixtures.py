"""The protocol's test vectors and captured frames. They are beside the project and not part of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.builders import from_json

ROOT = Path(__file__).resolve().parents[2] / "shared" / "fixtures"


def fixture(name: str) -> Path:
    """Return the path of a file, or skip the test if there is none."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not in {ROOT}: the vectors are kept beside the project")
    return path


def json_of(name: str) -> Any:
    """Return the contents of a JSON file."""
    return json.loads(fixture(name).read_bytes())


def json_lines(name: str) -> list[dict[str, Any]]:
    """Return the objects of a file with one on each line."""
    lines = [json.loads(line) for line in fixture(name).read_bytes().splitlines()]
    assert lines
    return lines


def vector_lines(name: str) -> list[str]:
    """Return the lines of a text file, with their spaces; `#` begins a comment."""
    lines = fixture(name).read_bytes().decode().split("\n")
    vectors = [line for line in lines if line and not line.startswith("#")]
    assert vectors
    return vectors


def captured_frames() -> list[bytes]:
    """Return ninety consecutive frames of a production relay."""
    packed = fixture("firehose/frames.bin.zst").read_bytes()
    with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
        frames = list(_frames(reader.read()))
    assert len(frames) == 90
    return frames


def _frames(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        (size,) = struct.unpack_from("<I", data, position)
        position += 4 + size
        yield data[position - size : position]


def from_scenario(name: str) -> tuple[list[tuple[str, Any]], str]:
    """Return the messages of a relay scenario, each with its type, and the key of their account."""
    scenario = json_of(f"relay-scenarios/{name}.json")
    frames = [message["frame"] for message in scenario["messages"]]
    messages = [(frame["header"]["t"], from_json(frame["body"])) for frame in frames]
    return messages, scenario["accounts"][0]["identity"]["keys"]["atproto"]["publicKeyMultibase"]
