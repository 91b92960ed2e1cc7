from __future__ import annotations

from collections.abc import Sequence

import pytest
import zstandard
from tests.fixtures import fixture
from tests.unit.delivery.encodings import frames_of
from websockets.frames import Opcode

from jetstream.delivery.framing.zstd import ZstdFraming

MESSAGES = [f'{{"did":"did:plc:{n:024}","time_us":{n},"kind":"commit"}}'.encode() for n in range(2_000)]
DICTIONARY = zstandard.train_dictionary(4096, [*MESSAGES], dict_id=40_000).as_bytes()


@pytest.fixture
def framing() -> ZstdFraming:
    return ZstdFraming(DICTIONARY)


def payloads(frames: Sequence[bytes]) -> list[bytes]:
    """Return the payloads of binary messages."""
    found = frames_of(b"".join(frames))
    assert all(frame.opcode is Opcode.BINARY and frame.fin for frame in found)
    return [bytes(frame.data) for frame in found]


def decompressed(payload: bytes, dictionary: bytes = DICTIONARY) -> bytes:
    """Decompress as clients do: at once, by the size in the header."""
    return zstandard.ZstdDecompressor(zstandard.ZstdCompressionDict(dictionary)).decompress(payload)


@pytest.mark.parametrize("size", [0, 1, 100, 5_000, 70_000, 1_000_000])
def test_each_message_is_one_zstd_frame(size: int, framing: ZstdFraming) -> None:
    messages = [b'{"text":"' + bytes(range(32, 127)) * (size // 95) + b'"}', *MESSAGES[:3]]

    assert [decompressed(each) for each in payloads(framing.frames(messages))] == messages


def test_the_header_has_the_id_and_the_size_and_there_is_no_checksum(framing: ZstdFraming) -> None:
    for message, payload in zip(MESSAGES, payloads(framing.frames(MESSAGES)), strict=True):
        header = zstandard.get_frame_parameters(payload)
        assert (header.dict_id, header.content_size) == (40_000, len(message))
        assert not header.has_checksum
    assert framing.dictionary_id == 40_000


def test_a_message_is_the_same_bytes_each_time(framing: ZstdFraming) -> None:
    assert framing.frames(MESSAGES[:9]) == framing.frames(MESSAGES[:9])
    assert framing.frames(MESSAGES[3:4]) == ZstdFraming(DICTIONARY).frames(MESSAGES)[3:4]


def test_there_is_no_frame_for_an_event_that_was_declined(framing: ZstdFraming) -> None:
    first, second, third = framing.frames([b"", b"{}", b""])
    assert (first, third) == (b"", b"")
    assert decompressed(*payloads([second])) == b"{}"


def test_connections_are_kept_alive_and_ended_as_plain_ones(framing: ZstdFraming) -> None:
    (ping,) = frames_of(framing.keep_alive)
    (close,) = frames_of(framing.end(1008, "slow"))
    assert (ping.opcode, close.opcode, bytes(close.data)) == (Opcode.PING, Opcode.CLOSE, b"\x03\xf0slow")


@pytest.mark.parametrize(
    "data", [b"", b"x", b"x" * 5_000, DICTIONARY[:8], DICTIONARY[:100], DICTIONARY[1:], b"{}" * 4096]
)
def test_what_is_no_dictionary_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="is not a zstd dictionary"):
        ZstdFraming(data)


def test_captured_events_are_more_than_two_times_smaller_with_the_public_dictionary() -> None:
    dictionary = fixture("firehose/legacy_subscribe.zdict").read_bytes()
    messages = fixture("firehose/events.v1.jsonl").read_bytes().splitlines()
    packed = payloads(ZstdFraming(dictionary).frames(messages))

    assert [decompressed(each, dictionary) for each in packed] == messages
    assert sum(map(len, messages)) >= 2.15 * sum(map(len, packed))
