"""The packaged dictionary: what it is, and how well real events are compressed with it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
import zstandard
from tests.decoding import decode
from tests.fixtures import captured_frames, fixture
from tests.unit.delivery.framing.test_zstd import decompressed, payloads

from jetstream.delivery.framing.zstd import ZstdFraming
from jetstream.delivery.renderers import RENDERERS
from jetstream.dictionary.file import ID
from jetstream.dictionary.own import OWN, OwnDictionary
from jetstream.model.batch import Batch

# Clients keep a dictionary by its ID for ever. With other bytes it must have another ID.
KNOWN = {20261127: "08ad7e356d6aedcfa4e37400ad8fe51bd1660525ff3418d1a977f409c479d3c9"}
V2_DICTIONARY = 20260811  # the ID of the dictionary of the public Jetstream for the v2 wire


def ratio(messages: list[bytes], dictionary: bytes) -> float:
    """Return how many times smaller messages become; check that clients can read them."""
    packed = payloads(ZstdFraming(dictionary).frames(messages))
    assert [decompressed(each, dictionary) for each in packed] == messages
    return sum(map(len, messages)) / sum(map(len, packed))


def captured(wire: str) -> list[bytes]:
    """Return the events of a production relay."""
    events = [event for frame in captured_frames() for event in decode(frame).events]
    batch = Batch.of(events, range(1_783_175_888_000_000, 1_783_175_888_000_000 + len(events)))
    return [message for message in RENDERERS[wire].render(batch, range(len(events))) if message]


def test_it_is_a_dictionary_of_at_most_64_kib_with_an_id_of_its_own() -> None:
    assert 16 << 10 <= len(OWN.data) <= 64 << 10
    assert zstandard.ZstdCompressionDict(OWN.data).dict_id() == OWN.dictionary_id
    # RFC 8878, section 5: the lowest and the highest are reserved.
    assert 32_768 <= OWN.dictionary_id < 1 << 31
    assert OWN.dictionary_id not in {ID, V2_DICTIONARY}


def test_the_same_id_always_means_the_same_bytes() -> None:
    assert sha256(OWN.data).hexdigest() == KNOWN[OWN.dictionary_id]


def test_captured_events_are_more_than_two_and_a_half_times_smaller() -> None:
    messages = fixture("firehose/events.v1.jsonl").read_bytes().splitlines()
    assert ratio(messages, OWN.data) >= 2.5


@pytest.mark.parametrize(("wire", "least"), [("classic", 2.5), ("v1", 2.5), ("v2", 2.85)])
def test_captured_events_are_smaller_in_every_wire(wire: str, least: float) -> None:
    assert ratio(captured(wire), OWN.data) >= least


def test_it_is_read_when_it_is_needed_and_once(tmp_path: Path) -> None:
    path = tmp_path / "own.zdict"
    own = OwnDictionary(path)
    with pytest.raises(FileNotFoundError):
        _ = own.dictionary_id
    path.write_bytes(OWN.data)
    framing = own.framing
    path.unlink()
    assert own.framing is framing
    assert (own.data, own.dictionary_id) == (OWN.data, OWN.dictionary_id)
