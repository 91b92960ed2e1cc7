from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import DID, TIME, Raw, account, cbor_map, commit, dag_cbor, frame, head, identity, like
from tests.fixtures import captured_frames

from jetstream.firehose.cbor import Unreadable, decode_pair
from jetstream.firehose.skim import ITEMS_MAX, skim


def test_what_is_short_is_read_and_what_is_long_passed_over() -> None:
    raw = commit(7, [like(1)], padding=b"x" * 1_000_000, more=["y" * 100, {"z": [1.5]}])
    header, body = skim(raw)

    assert header == {"t": "#commit", "op": 1}
    assert body.items() <= decode_pair(raw)[1].items()
    assert (body["seq"], body["repo"], body["time"]) == (7, DID, TIME)
    assert not {"padding", "more", "blocks", "ops"} & set(body)


@pytest.mark.parametrize(
    "raw", [identity(7), account(2**40), frame("#sync", {"seq": 2**63 - 1, "x": Raw(b"\xf9\x3c\0")})]
)
def test_short_frames_are_read_whole(raw: bytes) -> None:
    assert skim(raw) == decode_pair(raw)


@pytest.mark.parametrize("width", [None, 2, 8])
def test_maps_may_be_spelled_in_any_way(width: int | None) -> None:
    header = cbor_map([("op", 1), ("t", "#commit")])
    body = Raw(
        head(5, 2, width) + dag_cbor("x") + head(2, 9, width) + b"x" * 9 + dag_cbor("seq") + head(0, 7, width)
    )

    assert skim(header + body) == ({"op": 1, "t": "#commit"}, {"x": b"x" * 9, "seq": 7})


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        dag_cbor({}),
        dag_cbor({}) * 3,
        dag_cbor({}) + b"\0",
        dag_cbor([]) + dag_cbor({}),
        dag_cbor({}) + b"\xbf\xff",
        dag_cbor({}) + b"\xa1\x61a\x1c",
        dag_cbor({}) + b"\xa1\x61a\x5b" + b"\xff" * 8,
        dag_cbor({}) + b"\xbb" + b"\xff" * 8,
        dag_cbor({}) + b"\xa1\x61a\x9b" + b"\xff" * 8,
        dag_cbor({}) + b"\xa1\x61a\x19\x01",
        dag_cbor({}) + b"\xa1\x61a\xc0\x60",
    ],
)
def test_what_is_no_frame(raw: bytes) -> None:
    with pytest.raises(Unreadable):
        skim(raw)


@pytest.mark.parametrize("unit", [b"\x80", b"\xa0", b"\0", b"\x81"])
def test_a_frame_of_very_many_items_is_given_up(unit: bytes) -> None:
    """Thirty-two megabytes of empty lists are two gigabytes of objects."""
    many = frame("#commit", {"a": Raw(b"\x9a\x01\xff\xff\xff" + unit * 0x1FFFFFF), "seq": 7})

    with pytest.raises(Unreadable, match="more items than are worth it"):
        skim(many)
    few = [0] * (ITEMS_MAX - 20)
    assert skim(frame("#commit", {"a": few, "seq": 7}))[1] == {"seq": 7}


def test_captured_frames() -> None:
    frames = captured_frames()

    for raw in frames:
        header, body = skim(raw)
        whole = decode_pair(raw)
        assert header == whole[0]
        assert body.items() <= whole[1].items()
        assert {"seq", "repo", "rev", "time"} <= set(body)
    assert len(frames) == 90


@given(st.binary(max_size=80), st.booleans())
def test_noise_never_surprises(noise: bytes, after_a_header: bool) -> None:
    try:
        skim(dag_cbor({}) + noise if after_a_header else noise)
    except Unreadable:
        return
