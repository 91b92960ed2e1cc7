"""The packaged dictionary can be made again, byte for byte."""

from __future__ import annotations

import pytest
import zstandard
from scripts.train_dictionary import LIBZSTD, spelled, trained

from jetstream.dictionary.own import OWN


def test_a_small_one_has_the_same_bytes_each_time() -> None:
    one, other = (trained(40_000, events=300, size=4096) for _ in range(2))
    assert one == other
    assert len(one) <= 4096
    assert zstandard.ZstdCompressionDict(one).dict_id() == 40_000


def test_every_wire_is_in_it() -> None:
    messages = b"\n".join(spelled(200))
    for part in (b'"type":"com"', b'"kind":"commit"', b"network.bsky.jetstream.subscribeEvents#commit"):
        assert part in messages


@pytest.mark.skipif(
    zstandard.ZSTD_VERSION != LIBZSTD, reason=f"it was made with libzstd {'.'.join(map(str, LIBZSTD))}"
)
def test_the_packaged_one_is_what_is_made_today() -> None:
    """Else a change of the simulator or of a renderer calls for a new one: `make dictionary`, a new ID."""
    assert trained(OWN.dictionary_id) == OWN.data
