from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import builders

from jetstream.atproto.car import Blocks
from jetstream.atproto.car_writer import Block, uvarint, write_car
from jetstream.atproto.cid import Cid, cid_of

DATA = st.lists(st.binary(max_size=5_000), max_size=5)


@given(DATA)
def test_a_reader_finds_every_block(data: list[bytes]) -> None:
    blocks = [Block(cid_of(one), one) for one in data]
    found = Blocks(write_car(cid_of(b"root"), blocks))
    assert [found.get(block.cid) for block in blocks] == data


@given(DATA)
def test_its_bytes_are_those_of_an_independent_writer(data: list[bytes]) -> None:
    blocks = [Block(cid_of(one), one) for one in data]
    assert write_car(Cid(builders.ROOT), blocks) == builders.car(blocks)


@pytest.mark.parametrize(("number", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02")])
def test_varints_have_their_known_bytes(number: int, encoded: str) -> None:
    assert uvarint(number).hex() == encoded
