from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.identity.accounts import key_of

from jetstream.identity.held import KEY_BYTES, Held, pack, pack_key, unpack, unpack_key


def test_a_key_has_34_bytes() -> None:
    for number in range(6):
        packed = pack_key(key_of(number))
        assert len(packed) == KEY_BYTES == 34
        assert unpack_key(packed) == key_of(number)
    assert len(pack_key(None)) == 34
    assert unpack_key(pack_key(None)) is None


@given(st.integers(-(1 << 70), 1 << 70))
def test_times_outside_the_range_are_the_nearest_within(at_s: int) -> None:
    for key in (None, key_of(1)):
        assert unpack(pack(pack_key(key), at_s)) == Held(key, min(max(at_s, 0), (1 << 32) - 1), None)


@pytest.mark.parametrize("pds", [None, "", "pds.example.com", "localhost:2583"])
def test_the_host_of_a_pds_is_kept(pds: str | None) -> None:
    assert unpack(pack(pack_key(key_of(1)), 7, pds)) == Held(key_of(1), 7, pds)


@given(st.binary(max_size=40))
def test_other_bytes_are_no_key(packed: bytes) -> None:
    key = unpack_key(packed)
    assert key is None or (len(packed) == 34 and packed[:1] in {b"k", b"p"})
