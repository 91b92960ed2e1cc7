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
from jetstream.upstream.mirror.message import Message, Notice

CID = "bafyreihdlrrfxc4l5few7lso3u36zf655omeuso3y3dnersr5mm3r7mbyu"
COMMIT = {"operation": "create", "collection": LIKE, "rkey": "1", "rev": REV, "cid": CID, "record": {}}


def v1(**fields: Any) -> bytes:
    return json.dumps({"did": DID, "time_us": 7, **fields}).encode()


def of_commit(**fields: Any) -> bytes:
    return v1(kind="commit", commit=COMMIT | fields)


def event_of(message: bytes) -> Event:
    found = parse_foreign(message)
    assert isinstance(found, Message)
    return found.event


def test_what_production_served_means_the_events_of_its_frames() -> None:
    events = [event for frame in captured_frames() for event in decode(frame).events]
    lines = fixture("firehose/events.v1.jsonl").read_bytes().splitlines()
    assert [event_of(line) for line in lines] == events


@pytest.mark.parametrize("name", ["v2_frames.jsonl", "v2_frames_pysim.jsonl", "v2_sync_frames.jsonl"])
def test_what_a_v2_server_sent_comes_back_with_its_number(name: str) -> None:
    for payload in (line["payload"] for line in json_lines(f"wire-v2/{name}")):
        found = parse_foreign(json.dumps({"$type": "message", "payload": payload}).encode())
        assert isinstance(found, Message)
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
        (of_commit(record=None), "record_type"),
        (of_commit(record={"a": 1.5}), "record_float"),
        (of_commit(record={"a": "a" * 990_000}), "json_size"),
        (v1(kind="identity"), "malformed"),
        (v1(kind="identity", identity={"did": "did:plc:other"}), "malformed"),
        (v1(kind="account", account={"did": DID}), "malformed"),
        (v1(kind="sync", sync={"did": DID, "rev": REV}), "malformed"),
    ],
)
def test_what_may_not_be_passed_on_is_refused(message: bytes, reason: str) -> None:
    with pytest.raises(Dropped) as raised:
        parse_foreign(message)
    assert raised.value.reason == reason
    assert reason in DROP_REASONS


def test_a_record_that_nests_too_deep_is_refused() -> None:
    record: dict[str, Any] = {}
    for _ in range(128):
        record = {"a": record}
    with pytest.raises(Dropped, match="record_depth"):
        parse_foreign(of_commit(record=record))


def test_infos_are_notices_and_errors_are_told() -> None:
    payload = {"$type": "network.bsky.jetstream.subscribeEvents#info", "name": "a", "message": "b"}
    message = json.dumps({"$type": "message", "payload": payload}).encode()
    assert parse_foreign(message) == Notice("info", "a", "b")
    assert not is_error(message)
    assert is_error(b'{"$type":"error","error":"ConsumerTooSlow"}')
