from __future__ import annotations

import json

import pytest
import zstandard

from jetstream.client.compression import DICTIONARY_BYTES_MAX, Dictionary

SAMPLES: list[bytes | bytearray | memoryview[int]] = [
    json.dumps({"did": f"did:plc:{n:024}", "time_us": n * 977, "kind": "commit"}).encode()
    for n in range(2000)
]


@pytest.fixture(scope="module")
def data() -> bytes:
    return zstandard.train_dictionary(4096, SAMPLES).as_bytes()


def compressor(data: bytes, *, sized: bool = True) -> zstandard.ZstdCompressor:
    dictionary = zstandard.ZstdCompressionDict(data)
    return zstandard.ZstdCompressor(1, dict_data=dictionary, write_content_size=sized)


def test_a_message_is_decompressed(data: bytes) -> None:
    dictionary = Dictionary.parse(data, 1000)
    assert dictionary.id == int.from_bytes(data[4:8], "little")
    for sample in SAMPLES[:10]:
        assert dictionary.decompress(compressor(data).compress(sample)) == sample


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not a zstd dictionary"),
        (b"<html>", "is not a zstd dictionary"),
        (bytes.fromhex("37a430ec00000000") + bytes(500), "is not a zstd dictionary"),
        (bytes.fromhex("37a430ec01000000") + bytes(5), "is not a zstd dictionary"),
        (bytes(DICTIONARY_BYTES_MAX + 1), "is longer than 1048576 bytes"),
    ],
)
def test_what_is_no_dictionary_is_an_error(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Dictionary.parse(data, 1000)


def test_a_message_of_another_dictionary_or_none_is_an_error(data: bytes) -> None:
    decompress = Dictionary.parse(data, 1000).decompress
    other = zstandard.train_dictionary(2048, SAMPLES[1000:], dict_id=7).as_bytes()
    for message in (b"", b"{}", bytes(SAMPLES[0]), compressor(other).compress(SAMPLES[0])):
        with pytest.raises(ValueError, match="a message cannot be decompressed"):
            decompress(message)


@pytest.mark.parametrize("sized", [True, False])
def test_a_bomb_is_not_expanded(sized: bool, data: bytes) -> None:
    decompress = Dictionary.parse(data, 1000).decompress
    bomb = compressor(data, sized=sized).compress(bytes(10 << 20))
    with pytest.raises(ValueError, match=r"a message"):
        decompress(bomb)
