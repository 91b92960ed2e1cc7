from __future__ import annotations

import pytest

from jetstream.atproto.cid import Cid, cid_of


def test_a_cid_is_shown_as_text() -> None:
    assert str(cid_of(b"\xa0")) == "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua"


@pytest.mark.parametrize("data", [b"", b"\x01", b"\xff" * 36, bytes(36)])
def test_bytes_that_are_no_cid_are_shown_in_hex(data: bytes) -> None:
    assert str(Cid(data)) == f"{Cid(data)}" == data.hex()


def test_of_many_bytes_in_place_of_a_cid_the_first_are_shown() -> None:
    assert str(Cid(b"\xff" * 1_000)) == "ff" * 36
