"""Messages of other servers, as they were recorded, and as they must not be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.builders import DID, LIKE, REV
from tests.decoding import decode
from tests.fixtures import captured_frames, fixture, json_lines

from jetstream.delivery.renderers import RENDERERS
from jetstream.model.batch import Batch
from jetstream.model.event import Event
from jetstream.upstream.drops import DROP_REASONS, Dropped
from jetstream.upstream.mirror.foreign import is_error, parse_foreign
from jetstream.upstream.mirror.message import MirrorMessage, Notice

CID = "bafyreihdlrrfxc4l5few7lso3u36zf655omeuso3y3dnersr5mm3r7mbyu"
DID_ONLY = f'{{"did":"{DID}"}}'.encode()
COMMIT = {"operation": "create", "collection": LIKE, "rkey": "1", "rev": REV, "cid": CID, "record": {}}


def v1(**fields: Any) -> bytes:
    return json.dumps({"did": DID, "time_us": 7, **fields}).encode()


def of_commit(**fields: Any) -> bytes:
    return v1(kind="commit", commit=COMMIT | fields)


def of_sync(**fields: Any) -> bytes:
    return v1(kind="sync", sync={"did": DID, "rev": REV, "blocks": {"$bytes": "AAAA"}} | fields)


def nested(levels: int) -> dict[str, Any]:
    """Return a map that nests so deep."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def event_of(message: bytes) -> Event:
    found = parse_foreign(message)
    assert isinstance(found, MirrorMessage)
    return found.event


def test_what_production_served_means_the_events_of_its_frames() -> None:
    events = [event for frame in captured_frames() for event in decode(frame).events]
    lines = fixture("firehose/events.v1.jsonl").read_bytes().splitlines()
    assert [event_of(line) for line in lines] == events


@pytest.mark.parametrize("name", ["v2_frames.jsonl", "v2_frames_pysim.jsonl", "v2_sync_frames.jsonl"])
def test_what_a_v2_server_sent_comes_back_with_its_number(name: str) -> None:
    for payload in (line["payload"] for line in json_lines(f"wire-v2/{name}")):
        found = parse_foreign(json.dumps({"$type": "message", "payload": payload}).encode())
        assert isinstance(found, MirrorMessage)
        [again] = RENDERERS["v2"].render(Batch.of([found.event], [1]), range(1))
        ours = json.loads(again)["payload"]
        assert found.position == payload["seq"]
        assert ours | {"seq": 0, "time": ""} == payload | {"seq": 0, "time": ""}


def test_records_are_written_as_we_write_them() -> None:
    event = event_of(of_commit(record={"b": 1.0, "a": "\u2028<", "é": [2**63]}))
    assert event.body == '{"a":"\u2028<","b":1,"é":[9223372036854775808]}'.encode()


def test_fields_that_are_not_known_or_not_of_their_type_are_left_out() -> None:
    given = {"did": DID, "active": True, "seq": "1", "status": None, "time": "t", "more": 1}
    assert (
        event_of(v1(kind="account", account=given)).body
        == f'{{"active":true,"did":"{DID}","time":"t"}}'.encode()
    )


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "message_form"),
        (b"1", "message_form"),
        (v1(kind="commit", commit=COMMIT, time_us="7"), "message_form"),
        (v1(kind="commit", commit=COMMIT, time_us=True), "message_form"),
        (v1(kind="commit", commit=COMMIT, time_us=10**18), "message_form"),
        (v1(kind="commit", commit=[]), "frame_type"),
        (v1(kind="other"), "frame_type"),
        (v1(), "frame_type"),
        (v1(kind="commit", commit=COMMIT, did="x"), "did"),
        (of_commit(operation="read"), "op_action"),
        (of_commit(collection="x"), "op_collection"),
        (of_commit(rkey="?"), "op_rkey"),
        (of_commit(rev=7), "rev"),
        (of_commit(cid=""), "malformed"),
        (of_commit(cid='"'), "malformed"),
        (of_commit(cid=f"b{'a' * 201}"), "malformed"),
        (of_commit(cid=CID.upper()), "malformed"),
        (of_commit(record=None), "record_type"),
        (of_commit(record={"a": 1.5}), "record_float"),
        (of_commit(record={"a": "a" * 990_000}), "json_size"),
        (v1(kind="identity"), "malformed"),
        (v1(kind="identity", identity={"did": "did:plc:other"}), "malformed"),
        (v1(kind="account", account={"did": DID}), "malformed"),
        (v1(kind="account", account={"did": DID, "active": 1}), "malformed"),
        (v1(kind="sync", sync={"did": DID, "rev": REV}), "malformed"),
        (of_sync(rev="x"), "rev"),
        (of_sync(rev=None), "rev"),
        (of_sync(blocks="AAAA"), "malformed"),
        (of_sync(blocks={}), "malformed"),
        (of_sync(blocks={"$bytes": "AAAA", "more": 1}), "malformed"),
        (of_sync(blocks={"$bytes": {"a": 1}}), "malformed"),
        (of_sync(blocks={"$bytes": "A" * 13_337}), "sync_size"),
        (of_commit(record={"a": [[]] * 8_000}), "frame_items"),
        (of_commit(record={"a": [1e20] * 4_000}), "record_items"),
        (v1(kind="other", more=[0] * 16_001), "frame_items"),
        (of_commit(record={"a": [1e300] * 3_300}), "json_size"),
    ],
)
def test_what_may_not_be_passed_on_is_refused(message: bytes, reason: str) -> None:
    with pytest.raises(Dropped) as raised:
        parse_foreign(message)
    assert raised.value.reason == reason
    assert reason in DROP_REASONS


def test_a_record_that_nests_too_deep_is_refused() -> None:
    assert event_of(of_commit(record=nested(128))).body.count(b"{") == 128
    with pytest.raises(Dropped, match="record_depth"):
        parse_foreign(of_commit(record=nested(129)))


@pytest.mark.parametrize("levels", [1, 2, 200, 300, 900])
def test_nesting_where_a_text_belongs_is_refused_or_left_out(levels: int) -> None:
    deep = nested(levels)
    with pytest.raises(Dropped, match="malformed"):
        parse_foreign(of_sync(blocks=deep))
    assert event_of(v1(kind="identity", identity={"did": DID, "handle": deep})).body == DID_ONLY
    for name in "did", "kind", "time_us", "payload":
        with pytest.raises(Dropped):
            parse_foreign(v1(**{"kind": "commit", "commit": COMMIT, name: deep}))
    for name in "operation", "collection", "rkey", "rev", "cid":
        with pytest.raises(Dropped):
            parse_foreign(of_commit(**{name: deep}))
    payload = {"$type": "network.bsky.jetstream.subscribeEvents#info", "name": deep, "message": deep}
    assert parse_foreign(json.dumps({"payload": payload}).encode()) == Notice("info", "", "")
    with pytest.raises(Dropped):
        parse_foreign(json.dumps({"payload": payload | {"$type": deep}}).encode())


@pytest.mark.parametrize(
    "number",
    [
        *(2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**20, 10**300),
        *(-(2**63), -(2**63) - 1, -(2**63) - 1_024, -(2**63) - 1_025, -(2**64), -(10**20)),
    ],
)
def test_integers_of_any_size_are_passed_on_exactly(number: int) -> None:
    """Our own server sends them: a record may have integers from -2^64 on, and whole floats are integers."""
    record = {"b": [number, {"c": number}], "a": "é"}
    expected = f'{{"a":"é","b":[{number},{{"c":{number}}}]}}'
    assert event_of(of_commit(record=record)).body == expected.encode()
    v2 = {"$type": "network.bsky.jetstream.subscribeEvents#commit", "did": DID, "seq": 7}
    message = json.dumps({"$type": "message", "payload": v2 | COMMIT | {"record": record}})
    assert event_of(message.encode()).body == expected.encode()


def test_floats_are_integers_whatever_their_size() -> None:
    assert event_of(of_commit(record={"a": [1e20, -1e300, 2.0**64]})).body == (
        b'{"a":[100000000000000000000,%d,18446744073709551616]}' % int(-1e300)
    )


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 1e400])
def test_integers_that_are_too_large_elsewhere_are_no_numbers(number: float) -> None:
    with pytest.raises(Dropped):
        parse_foreign(v1(kind="identity", identity={"did": DID}, time_us=number))
    with pytest.raises(Dropped):
        parse_foreign(of_commit(record={"a": 1.5, "b": number}))


def test_texts_that_are_too_long_are_left_out_and_counted() -> None:
    found = parse_foreign(v1(kind="identity", identity={"did": DID, "handle": "a" * 254, "time": "é" * 33}))
    assert isinstance(found, MirrorMessage)
    assert (found.event.body, found.drops) == (DID_ONLY, ("field_size", "field_size"))
    given = {"active": False, "did": DID, "status": "é" * 32, "time": "t" * 64}
    assert json.loads(event_of(v1(kind="account", account=given)).body) == given
    found = parse_foreign(v1(kind="account", account=given | {"status": "s" * 900_000}))
    assert isinstance(found, MirrorMessage)
    assert (json.loads(found.event.body).get("status"), found.drops) == (None, ("field_size",))


def test_blocks_of_a_sync_may_be_as_long_as_those_of_a_relay() -> None:
    assert len(event_of(of_sync(blocks={"$bytes": "A" * 13_334})).body) > 13_334


def test_commas_and_brackets_in_texts_are_no_items() -> None:
    text = ',[{\\"' * 20_000
    assert json.loads(event_of(of_commit(record={"a": text})).body) == {"a": text}


def test_infos_are_notices_and_errors_are_told() -> None:
    payload = {"$type": "network.bsky.jetstream.subscribeEvents#info", "name": "a", "message": "b"}
    message = json.dumps({"$type": "message", "payload": payload}).encode()
    assert parse_foreign(message) == Notice("info", "a", "b")
    assert not is_error(message)
    assert is_error(b'{"$type":"error","error":"ConsumerTooSlow"}')
