from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import (
    DID,
    LIKE,
    REV,
    TIME,
    Op,
    Raw,
    account,
    cbor_map,
    cid_of,
    commit,
    commit_body,
    dag_cbor,
    delete,
    error,
    frame,
    head,
    identity,
    like,
    op_body,
    sync,
    uvarint,
)
from tests.decoding import OPS, UNSORTED_HEADER, Message, bodies, decode
from tests.fixtures import captured_frames

from jetstream.model.event import DELETE
from jetstream.upstream.drops import DROP_REASONS
from jetstream.upstream.envelope import COMMIT_BLOCKS_BYTES_MAX, FRAME_BYTES_MAX, OPS_MAX, read_envelope

# What is kept


def test_a_commit_keeps_its_fields_as_they_came() -> None:
    body = commit_body(7, OPS, since=REV, prevData=cid_of(b"the tree before"))
    envelope = read_envelope(frame("#commit", body))

    assert (envelope.type, envelope.seq, envelope.drop) == ("commit", 7, "")
    assert envelope.fields == body
    assert {type(envelope.fields[name]) for name in ("commit", "prevData", "blocks")} == {bytes}


@pytest.mark.parametrize("kind", ["identity", "account", "sync"])
def test_messages_keep_their_fields_as_they_came(kind: str) -> None:
    body = {"seq": 7, "did": DID, "time": TIME, "active": True, "handle": "a.b", "rev": REV, "blocks": b"x"}

    assert read_envelope(frame(f"#{kind}", body)) == (kind, 7, body, "")


def test_what_verification_needs_is_kept_of_a_frame_that_is_not_canonical() -> None:
    body = commit_body(7, OPS, since=REV, prevData=cid_of(b"the tree before"))
    envelope = read_envelope(UNSORTED_HEADER + dag_cbor(body))

    kept = ("seq", "repo", "rev", "since", "prevData", "commit", "blocks", "time")
    assert {name: envelope.fields[name] for name in kept} == {name: body[name] for name in kept}


def test_no_record_is_decoded() -> None:
    """The blocks are not even a CAR."""
    assert read_envelope(commit(7, OPS, blocks=b"x" * 1_000)).drop == ""


# Frames, headers, messages


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0",
        b"\xff" * 100,
        b"not CBOR at all",
        dag_cbor({"t": "#commit", "op": 1}),
    ],
)
def test_what_is_no_frame(raw: bytes) -> None:
    assert decode(raw) == Message("unknown", drops=("frame_cbor",))


@pytest.mark.parametrize("more", [b"\0", commit(7), b"\xff", dag_cbor({})])
def test_what_is_more_than_a_frame_moves_the_cursor_on(more: bytes) -> None:
    assert decode(commit(7) + more) == Message("unknown", 7, drops=("frame_cbor",))


@pytest.mark.parametrize(
    "header", [[], 1, None, "x", {}, {"op": 0}, {"op": 2, "t": "#commit"}, {"op": "1"}, {"op": []}]
)
def test_unknown_headers(header: object) -> None:
    message = decode(dag_cbor(header) + dag_cbor({"seq": 7}))

    assert (message.type, message.drops) == ("unknown", ("frame_header",))
    assert message.seq == (7 if isinstance(header, dict) else None)


@pytest.mark.parametrize("body", [[], 1, None, "x", b"x"])
def test_bodies_are_maps(body: object) -> None:
    for header in ({"t": "#commit", "op": 1}, {"op": -1}):
        assert decode(dag_cbor(header) + dag_cbor(body)) == Message("unknown", drops=("frame_header",))


@pytest.mark.parametrize(
    "t", ["#new", "commit", "", "#error", "#unknown", "com.atproto#commit", None, 1, [], {}, b"#commit"]
)
def test_unknown_types_move_the_cursor_on(t: Any) -> None:
    assert decode(dag_cbor({"op": 1, "t": t}) + dag_cbor({"seq": 7})) == Message(
        "unknown", 7, drops=("frame_type",)
    )


def test_a_type_may_be_left_out() -> None:
    assert decode(dag_cbor({"op": 1}) + dag_cbor({"seq": 7})) == Message("unknown", 7, drops=("frame_type",))


@pytest.mark.parametrize("kind", ["handle", "migrate", "tombstone"])
def test_types_without_events_are_counted_by_name(kind: str) -> None:
    assert decode(frame(f"#{kind}", {"seq": 7, "did": DID, "time": TIME})) == Message(kind, 7)


@pytest.mark.parametrize("ops", [OPS, [like(1)]])
def test_headers_may_have_their_keys_in_any_order(ops: list[Op]) -> None:
    unsorted = decode(UNSORTED_HEADER + dag_cbor(commit_body(7, ops)))

    assert unsorted == decode(commit(7, ops))
    assert len(unsorted.events) == len(ops)


def test_bodies_may_have_their_keys_in_any_order() -> None:
    body = commit_body(7, OPS)
    ops = [cbor_map(reversed(op.items())) for op in body["ops"]]

    assert decode(frame("#commit", cbor_map(reversed((body | {"ops": ops}).items())))) == decode(
        commit(7, OPS)
    )


def test_an_error_frame() -> None:
    future = bytes.fromhex("a1626f7020a1656572726f726c467574757265437572736f72")

    assert decode(future) == Message("error", name="FutureCursor")
    assert decode(error("ConsumerTooSlow", message="too slow")) == Message(
        "error", name="ConsumerTooSlow", text="too slow"
    )
    assert decode(error(1, message=[])) == Message("error")
    assert len(decode(error("x" * 1_000_000, message="y" * 1_000_000)).text) == 200


def test_an_info_frame() -> None:
    info = frame("#info", {"name": "OutdatedCursor", "message": "Requested cursor exceeded limit"})

    assert decode(info) == Message("info", name="OutdatedCursor", text="Requested cursor exceeded limit")


def test_a_frame_of_five_megabytes_is_the_largest() -> None:
    bare = len(commit(7, OPS, padding=b"x" * 1_000_000))
    largest = commit(7, OPS, padding=b"x" * (1_000_000 + FRAME_BYTES_MAX - bare))
    larger = commit(7, OPS, padding=b"x" * (1_000_000 + FRAME_BYTES_MAX - bare + 1))

    assert len(largest) == FRAME_BYTES_MAX == 5_000_000
    assert len(decode(largest).events) == 3
    assert decode(larger) == Message("commit", 7, drops=("frame_size",))


@pytest.mark.parametrize("kind", ["#identity", "#account", "#sync", "#new"])
def test_oversized_messages_of_every_type_move_the_cursor_on(kind: str) -> None:
    message = decode(
        frame(kind, {"seq": 7, "did": DID, "time": TIME, "active": True, "x": b"x" * FRAME_BYTES_MAX})
    )

    assert (message.seq, message.events, message.drops) == (7, (), ("frame_size",))


@pytest.mark.parametrize("unit", [b"\0", b"\x80", b"\xff", b"\xa0", commit(7)])
def test_oversized_noise_is_dropped_for_its_size(unit: bytes) -> None:
    raw = unit * (FRAME_BYTES_MAX // len(unit) + 1)
    expected = Message("commit", 7) if unit == commit(7) else Message("unknown")

    assert decode(raw) == expected._replace(drops=("frame_size",))


# Fields of messages


@pytest.mark.parametrize(
    "seq", [True, False, 7.0, 7.5, -1, 0, "7", None, [], 2**63, 2**64 - 1, -(2**64), b"7", Raw(b"\xf9\x47\0")]
)
@pytest.mark.parametrize("message", [commit, identity, account])
def test_a_seq_is_a_positive_integer_of_63_bits(message: Any, seq: object) -> None:
    got = decode(message(seq))

    assert (got.seq, got.events, got.drops) == (None, (), ("malformed",))


@pytest.mark.parametrize("seq", [1, 2**53, 2**63 - 1])
def test_any_other_seq_is_good(seq: int) -> None:
    assert [decode(message(seq)).seq for message in (commit, identity, account)] == [seq] * 3
    assert bodies(decode(account(seq)))[0]["seq"] == seq


def test_a_seq_may_be_left_out_at_the_cost_of_its_frame() -> None:
    body = commit_body(7, OPS)
    del body["seq"]

    assert decode(frame("#commit", body)) == Message("commit", drops=("malformed",))


@pytest.mark.parametrize(
    "did", ["", "did:plc", "did:plc:", "DID:plc:a", 'did:plc:a"', "did:plc:a\n", "x" * 3000]
)
def test_a_did_must_match_its_syntax(did: str) -> None:
    assert decode(commit(7, repo=did)) == Message("commit", 7, drops=("did",))
    assert decode(identity(7, did=did)) == Message("identity", 7, drops=("did",))
    assert decode(account(7, did=did)) == Message("account", 7, drops=("did",))


@pytest.mark.parametrize(
    "rev", ["", "222222222222", "2222222222222a", "z222222222222", "222222222222\n", "111111111111a"]
)
def test_a_rev_is_a_tid(rev: str) -> None:
    assert decode(commit(7, rev=rev)) == Message("commit", 7, drops=("rev",))


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (commit, "repo", None),
        (commit, "repo", 1),
        (commit, "rev", None),
        (commit, "rev", []),
        (commit, "ops", None),
        (commit, "ops", {}),
        (identity, "did", None),
        (identity, "time", None),
        (identity, "time", 1),
        (account, "did", {}),
        (account, "time", None),
        (account, "active", None),
        (account, "active", "true"),
        (account, "active", 1),
    ],
)
def test_malformed_messages_move_the_cursor_on(message: Any, field: str, value: object) -> None:
    got = decode(message(7, **{field: value}))

    assert (got.seq, got.events, got.drops) == (7, (), ("malformed",))


@pytest.mark.parametrize("since", ["", None, 1, REV])
def test_since_is_not_judged(since: object) -> None:
    assert len(decode(commit(7, since=since)).events) == 1


@pytest.mark.parametrize("time", [None, 1, [], {}])
def test_a_commit_needs_no_time(time: object) -> None:
    assert len(decode(commit(7, time=time)).events) == 1


def test_too_big_commits_give_what_can_be_read() -> None:
    body = commit_body(7, OPS, tooBig=True, blocks=b"")
    message = decode(frame("#commit", body))

    assert [event.kind for event in message.events] == [DELETE]
    assert message.drops == ["car", "car"]
    assert decode(commit(7, OPS, tooBig=True)) == decode(commit(7, OPS))


# Limits


def deletes(count: int) -> list[Op]:
    return [delete(f"{LIKE}/{number}") for number in range(count)]


def test_a_commit_of_a_thousand_ops_is_the_largest() -> None:
    likes = [like(number) for number in range(OPS_MAX)]

    assert OPS_MAX == 1_000
    for ops in (deletes(OPS_MAX), likes):
        assert (len(decode(commit(7, ops)).events), decode(commit(7, ops)).drops) == (1_000, [])
        larger = [*ops, *deletes(1)]
        assert decode(commit(7, larger)) == Message("commit", 7, drops=("commit_ops",))
        assert decode(UNSORTED_HEADER + dag_cbor(commit_body(7, larger))) == decode(commit(7, larger))


@pytest.mark.parametrize("count", [1_001, 1_400, 20_000, 90_000])
def test_commits_of_many_more_ops_move_the_cursor_on(count: int) -> None:
    op = dag_cbor(op_body(delete(f"{LIKE}/1")))
    message = decode(commit(7, [], ops=Raw(head(4, count) + op * count)))

    assert message[:3] == ("commit", 7, ())
    assert message.drops in {("commit_ops",), ("frame_items",)}


@pytest.mark.parametrize("unit", [b"\xa0", b"\x80", b"\xf6", b"\x61a", b"\x81\xa0", b"\xa1\x61a\xa0"])
@pytest.mark.parametrize("count", [20_000, 1_000_000])
def test_bad_ops_without_end_cost_no_decoding(
    monkeypatch: pytest.MonkeyPatch, unit: bytes, count: int
) -> None:
    """A million stalled the loop for 24 seconds."""
    monkeypatch.setattr("jetstream.upstream.envelope.decode_pair", None)
    ops = Raw(head(4, count) + unit * count)

    assert decode(commit(7, ops=ops)) == Message("commit", 7, drops=("frame_items",))


@pytest.mark.parametrize("name", ["x", "zzzzzzzz"])
@pytest.mark.parametrize("message", [commit, identity, account])
@pytest.mark.parametrize("unit", [b"\x80", b"\xa0", b"\0", b"\x40"])
def test_five_megabytes_of_items_cost_no_decoding(
    monkeypatch: pytest.MonkeyPatch, unit: bytes, message: Any, name: str
) -> None:
    """Whether they stand before the seq or after it. Decoded, they took six seconds."""
    monkeypatch.setattr("jetstream.upstream.envelope.decode_pair", None)
    raw = message(7, **{name: Raw(head(4, 4_900_000) + unit * 4_900_000)})
    got = decode(raw)

    assert (got.seq, got.events, got.drops) == (7, (), ("frame_items",))


def test_a_frame_has_as_many_items_as_a_thousand_ops_need() -> None:
    cid = cid_of(b"")
    ops = [op_body(like(number)) | {"prev": cid, "new": [1, 2]} for number in range(OPS_MAX)]
    blocks = commit_body(7, [like(number) for number in range(OPS_MAX)])["blocks"]

    assert len(decode(commit(7, ops=ops, blocks=blocks)).events) == OPS_MAX


def test_most_frames_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetstream.upstream.envelope.item_heads", None)

    for raw in captured_frames():
        assert decode(raw).drops == []


def test_the_blocks_of_a_commit_are_two_megabytes_at_most() -> None:
    ops = [like(1), delete(f"{LIKE}/2")]
    padding = COMMIT_BLOCKS_BYTES_MAX - len(commit_body(7, ops)["blocks"]) - 3 - 36
    blocks: bytes = commit_body(7, ops)["blocks"] + uvarint(padding + 36) + cid_of(b"") + b"x" * padding

    assert len(blocks) == COMMIT_BLOCKS_BYTES_MAX == 2_000_000
    assert len(decode(commit(7, ops, blocks=blocks)).events) == 2
    for larger in (blocks + b"\0", blocks * 2):
        assert decode(commit(7, ops, blocks=larger)) == Message("commit", 7, drops=("commit_size",))


def test_the_blocks_of_a_sync_are_ten_thousand_bytes_at_most() -> None:
    fields = {"seq": 7, "did": DID, "rev": REV, "time": TIME}

    assert decode(frame("#sync", fields | {"blocks": b"x" * 10_000})).drops == ()
    for size in (10_001, 1_000_000):
        assert decode(frame("#sync", fields | {"blocks": b"x" * size})) == Message(
            "sync", 7, drops=("sync_size",)
        )
    odd: list[object] = ["x" * 20_000, None, []]
    for blocks in odd:
        assert decode(frame("#sync", fields | {"blocks": blocks})) == Message("sync", 7, drops=("malformed",))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rev": None}, "malformed"),
        ({"rev": 5}, "malformed"),
        ({"rev": "now"}, "rev"),
        ({"rev": REV + "a"}, "rev"),
        ({"did": None}, "malformed"),
        ({"did": "nobody"}, "did"),
        ({"did": "nobody", "rev": "now"}, "did"),
        ({"time": None}, "malformed"),
        ({"blocks": b"x" * 10_001, "rev": None}, "sync_size"),
    ],
)
def test_a_sync_that_cannot_be_an_event_is_dropped(fields: dict[str, object], reason: str) -> None:
    assert decode(sync(7, **fields)) == Message("sync", 7, drops=(reason,))


def test_a_sync_needs_a_number() -> None:
    assert decode(sync(None)) == Message("sync", drops=("malformed",))


# Parts that are no DAG-CBOR


BAD_TEXT = Raw(b"\x63x\xed\xa0")


@pytest.mark.parametrize("field", ["repo", "rev", "ops"])
def test_a_field_that_a_commit_needs_is_missed_and_the_cursor_moves_on(field: str) -> None:
    assert decode(commit(7, OPS, **{field: BAD_TEXT})) == Message("commit", 7, drops=("malformed",))


def test_a_commit_needs_no_time_that_can_be_read() -> None:
    assert decode(commit(7, OPS, time=BAD_TEXT)) == decode(commit(7, OPS))


@pytest.mark.parametrize(("message", "name"), [(identity, "did"), (account, "did"), (account, "active")])
def test_fields_that_are_needed_must_be_read(message: Any, name: str) -> None:
    got = decode(message(7, **{name: BAD_TEXT}))

    assert (got.seq, got.events, got.drops) == (7, (), ("malformed",))


def test_a_header_that_cannot_be_read_moves_the_cursor_on() -> None:
    body = dag_cbor(commit_body(7, OPS))

    assert decode(cbor_map([("t", BAD_TEXT), ("op", 1)]) + body) == Message(
        "unknown", 7, drops=("frame_type",)
    )
    assert decode(cbor_map([("t", "#commit"), ("op", BAD_TEXT)]) + body) == Message(
        "unknown", 7, drops=("frame_header",)
    )


@pytest.mark.parametrize("damage", [b"\xff", b"\x1c", b"\x9f\xff", b"\x7a\0\x0f\xff\xff"])
def test_an_op_that_hides_where_it_ends_costs_the_frame_but_not_its_seq(damage: bytes) -> None:
    ops = [*commit_body(7, OPS)["ops"], Raw(damage)]

    assert decode(commit(7, OPS, ops=ops)) == Message("unknown", 7, drops=("frame_cbor",))


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_the_seq_survives_any_bit_flip_in_an_op(place: int, bit: int) -> None:
    raw = commit(7, OPS)
    start, stop = raw.index(b"\x63ops") + 5, raw.index(b"\x63rev")
    damaged = bytearray(raw)
    damaged[start + place % (stop - start)] ^= 1 << bit

    assert decode(bytes(damaged)).seq == 7


@given(st.binary(max_size=5_000), st.booleans())
@settings(max_examples=200)
def test_noise_never_surprises(noise: bytes, as_a_body: bool) -> None:
    message = decode(dag_cbor({"t": "#commit", "op": 1}) + noise if as_a_body else noise)

    assert message.drops
    assert set(message.drops) <= set(DROP_REASONS)
