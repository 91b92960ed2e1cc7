from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.builders import (
    DID,
    LIKE,
    REV,
    TIME,
    Raw,
    account,
    cbor_map,
    cid_of,
    commit,
    commit_body,
    dag_cbor,
    delete,
    frame,
    head,
    identity,
    like,
    op_body,
)
from tests.fixtures import captured_frames

from jetstream.atproto.cbor import decode_pair
from jetstream.upstream.lenient import DAMAGED, ITEMS_MAX, read_lenient

BAD_TEXT = Raw(b"\x63x\xed\xa0")
OPS = [like(1), delete(f"{LIKE}/2"), like(3)]
ALL = 16_000  # items: as many as a frame may have


def known(raw: bytes) -> dict[str, Any]:
    """Return what the decoder says of the fields that are known."""
    body = decode_pair(raw)[1]
    unknown = {"blobs", "rebase"}
    known_of_op = {"action", "path", "cid"}
    body = {key: value for key, value in body.items() if key not in unknown}
    if "ops" in body:
        body["ops"] = [{key: value for key, value in op.items() if key in known_of_op} for op in body["ops"]]
    return body


def body_of(**fields: object) -> dict[str, Any]:
    return read_lenient(frame("#commit", commit_body(7, OPS, **fields)), ALL)[1]


def raw_ops(*ops: Raw) -> Raw:
    return Raw(head(4, len(ops)) + b"".join(ops))


# What is read


@pytest.mark.parametrize("raw", [commit(7, OPS), identity(7, handle="a.b"), account(2**40, status="deleted")])
def test_a_good_frame_says_what_the_decoder_says(raw: bytes) -> None:
    assert read_lenient(raw, ALL) == (decode_pair(raw)[0], known(raw), True)


def test_captured_frames() -> None:
    for raw in captured_frames():
        assert read_lenient(raw, ALL) == (decode_pair(raw)[0], known(raw), True)


@pytest.mark.parametrize("width", [None, 2, 8])
def test_maps_may_be_spelled_in_any_way(width: int | None) -> None:
    """Keys in any order, as in `{"op", "t"}`, which public code sends; heads longer than need be."""
    header = cbor_map([("op", 1), ("t", "#commit")])
    blocks = head(2, 9, width) + b"x" * 9
    body = Raw(
        head(5, 2, width) + head(3, 6, width) + b"blocks" + blocks + dag_cbor("seq") + head(0, 7, width)
    )

    assert read_lenient(header + body) == ({"op": 1, "t": "#commit"}, {"blocks": b"x" * 9, "seq": 7}, True)


@pytest.mark.parametrize(
    "value",
    [
        BAD_TEXT,
        [1.5, {"a": BAD_TEXT}],
        Raw(head(6, 7) + b"\0"),
        Raw(b"\xf7"),
        Raw(b"\xf9\x3c\0"),
        cbor_map([("a", 1), ("a", 2)]),
        {"seq": 99},
        [[[{"seq": 99}]]],
        "seq",
        b"\x63seq\x05",
    ],
)
def test_fields_that_are_unknown_are_passed_over(value: object) -> None:
    for key in ("new", "zzzzzzz", Raw(b"\x63new"), Raw(b"\x61\xff"), Raw(b"\x05"), cid_of(b"")):
        body = cbor_map([(key, value), *commit_body(7, OPS).items(), (key, value)])
        assert read_lenient(frame("#commit", body), ALL) == read_lenient(commit(7, OPS), ALL)


@pytest.mark.parametrize(
    "value", [BAD_TEXT, [], {}, 1.0, Raw(b"\xf7"), Raw(head(6, 7) + b"\0"), Raw(head(6, 42) + b"\0")]
)
@pytest.mark.parametrize("name", ["repo", "rev", "time", "blocks"])
def test_a_field_that_cannot_be_read_costs_only_itself(name: str, value: object) -> None:
    body = body_of(**{name: value})

    assert body[name] is DAMAGED
    assert {**body, name: 1} == {**body_of(), name: 1}


def test_the_bits_of_a_float_are_no_truth() -> None:
    for bits in (20, 21, 22):
        assert body_of(time=Raw(b"\xfb" + bits.to_bytes(8, "big")))["time"] is DAMAGED
    assert [body_of(time=value)["time"] for value in (False, True, None)] == [False, True, None]


def test_of_a_repeated_field_the_first_counts() -> None:
    fields = [*commit_body(7, OPS).items(), ("seq", 8), ("repo", "did:web:other"), ("ops", [])]

    assert read_lenient(frame("#commit", cbor_map(fields)), ALL) == read_lenient(commit(7, OPS), ALL)


@pytest.mark.parametrize(
    "damage",
    [
        lambda op: cbor_map([*op.items(), ("path", "a")]),
        lambda op: cbor_map([*op.items(), ("cid", None)]),
        lambda op: dag_cbor(op | {"path": BAD_TEXT}),
        lambda op: dag_cbor(op | {"action": BAD_TEXT}),
        lambda op: dag_cbor(op | {"cid": 1.5}),
        lambda op: dag_cbor(op | {"cid": Raw(head(6, 43) + b"\x41\0")}),
        lambda op: dag_cbor(op | {"cid": Raw(head(6, 42) + b"\x41\1")}),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_op_costs_only_itself(place: int, damage: Any) -> None:
    ops = [op_body(op) for op in OPS]
    expected: list[Any] = body_of()["ops"]
    expected[place] = DAMAGED

    body = body_of(ops=[*ops[:place], Raw(damage(ops[place])), *ops[place + 1 :]])

    assert body["ops"] == expected
    assert body == {**body_of(), "ops": expected}


def test_an_op_is_a_map_and_ops_are_a_list() -> None:
    assert body_of(ops=raw_ops(Raw(b"\x80"), Raw(b"\xa0"), Raw(b"\x61a")))["ops"] == [None, {}, None]
    values: list[object] = [{}, "ops", 1, None]
    for ops in values:
        assert body_of(ops=ops)["ops"] is DAMAGED


# What is no frame


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
        dag_cbor({}) + b"\xa1\x63ops\x9b" + b"\xff" * 8,
        dag_cbor({}) + b"\xa1\x61a\x19\x01",
        dag_cbor({}) + b"\xa1\x61a\xc0",
        dag_cbor({}) + b"\xa1\x61a\xc0\x62a",
    ],
)
def test_what_is_no_frame(raw: bytes) -> None:
    assert read_lenient(raw) == ({}, {}, False)


# The seq of a frame whose rest cannot be read


@pytest.mark.parametrize("unit", [b"\x80", b"\xa0", b"\0", b"\x81", b"\x63seq", b"\xff"])
def test_the_seq_is_found_before_and_after_very_many_items(unit: bytes) -> None:
    """Thirty-two megabytes of empty lists are two gigabytes of objects."""
    count = (32 << 20) // len(unit)
    many = Raw(head(4, count) + unit * count)
    after, before = frame("#commit", {"a": many, "seq": 7}), frame("#commit", {"seq": 7, "zzzz": many})

    for raw in (after, before):
        assert read_lenient(raw) == ({"t": "#commit", "op": 1}, {"seq": 7}, False)
    few: list[object] = [0] * (ITEMS_MAX - 20)
    assert read_lenient(frame("#commit", {"a": few, "seq": 7}))[1] == {"seq": 7}


def test_the_seq_of_a_commit_with_a_million_ops() -> None:
    raw = frame("#commit", commit_body(7, OPS, ops=Raw(head(4, 1_000_000) + b"\xa0" * 1_000_000)))
    header, body, whole = read_lenient(raw)

    assert (header["t"], body["seq"], body["repo"], body["time"], whole) == ("#commit", 7, DID, TIME, False)


@pytest.mark.parametrize("damage", [b"\xff", b"\x1c", b"\x9f\xff", b"\x7f\x61a\xff", b"\x7a\0\x0f\xff\xff"])
def test_the_seq_is_found_behind_what_makes_no_sense(damage: bytes) -> None:
    ops = [op_body(op) for op in OPS]

    assert body_of(ops=[*ops, Raw(damage)])["seq"] == 7
    assert body_of(ops=[*ops, Raw(damage)], blocks=dag_cbor({"seq": 5}) * 5)["seq"] == 7
    assert read_lenient(frame("#commit", {"ops": Raw(damage), "x": 1}))[1] == {}


def test_bytes_in_a_record_are_not_taken_for_the_seq() -> None:
    """An account writes the blocks; what it writes behind the relay's `seq` has no say."""
    start = dag_cbor("seq") + head(0, 9) + dag_cbor("x")
    ops: object = Raw(b"\x81\xff")
    short = commit(7, [], ops=ops, blocks=start + head(2, 0, 4))
    rest = len(short) - short.index(start) - len(start + head(2, 0, 4))
    raw = commit(7, [], ops=ops, blocks=start + head(2, rest, 4))

    assert read_lenient(b"\xa0\xa1\x61a\xff" + raw[raw.index(start) :])[1] == {"seq": 9}
    assert read_lenient(raw, ALL)[1]["seq"] == 7
    assert body_of(ops=ops, blocks=dag_cbor("seq") * 3)["seq"] == 7


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_the_seq_survives_any_bit_flip_in_an_op(place: int, bit: int) -> None:
    raw = commit(7, OPS)
    start, stop = raw.index(b"\x63ops"), raw.index(b"\x63rev")
    damaged = bytearray(raw)
    damaged[start + 5 + place % (stop - start - 5)] ^= 1 << bit

    assert read_lenient(bytes(damaged), ALL)[1]["seq"] == 7


@given(st.binary(max_size=200))
@example(b"\x00\x00b")
def test_the_seq_survives_anything_in_an_op(noise: bytes) -> None:
    """The last item of the noise may take the key `seq`. It is missed if the rest reads as a whole map."""
    raw = frame("#commit", commit_body(7, OPS, ops=raw_ops(Raw(noise), Raw(noise))))
    _, body, complete = read_lenient(raw, ALL)
    assert body["seq"] == 7 if not complete else body.get("seq", 7) == 7


@given(st.binary(max_size=80), st.booleans())
def test_noise_never_surprises(noise: bytes, after_a_header: bool) -> None:
    read_lenient(dag_cbor({}) + noise if after_a_header else noise)


def test_the_rev_is_read() -> None:
    assert body_of()["rev"] == REV
