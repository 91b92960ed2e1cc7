"""A message of the v2 wire comes back as the event that it was made of, byte for byte, or is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import DID, LIKE, REV, account, commit, create, delete, identity, sync
from tests.decoding import decode
from tests.fixtures import captured_frames

from jetstream.delivery.renderers.v2 import V2, info
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, IDENTITY, KIND_NAMES, UPDATE, Event
from jetstream.upstream.drops import DROP_REASONS, Dropped
from jetstream.upstream.mirror.message import MirrorMessage, Notice, parse

AT = 1_725_516_666_000_000
CID = b"bafyreihdlrrfxc4l5few7lso3u36zf655omeuso3y3dnersr5mm3r7mbyu"
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=10)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=2)


def rendered(*events: Event) -> list[bytes]:
    return V2.render(Batch.of(events, range(AT, AT + len(events))), range(len(events)))


def written(body: bytes = b"{}", **fields: bytes) -> Event:
    event = Event(CREATE, DID.encode(), LIKE.encode(), b"1", REV.encode(), CID, body)
    return event._replace(**fields)


def notice(kind: bytes, body: bytes) -> Event:
    """Return an event without a path. `%b` in its body is its DID."""
    return Event(kind, DID.encode(), b"", b"", b"", b"", body.replace(b"%b", DID.encode()))


def dropped(message: bytes) -> str:
    with pytest.raises(Dropped) as raised:
        parse(message)
    assert raised.value.reason in DROP_REASONS
    return raised.value.reason


def test_events_of_every_kind_and_of_a_relay_come_back() -> None:
    frames = [
        *captured_frames(),
        identity(1, handle="a.test"),
        account(2, active=False, status="deleted"),
        sync(3),
        commit(
            4,
            [
                create(f"{LIKE}/a", {"text": '","rev":"x","rkey":"y","seq":1,"time":"z"}}'}),
                delete(f"{LIKE}/b"),
            ],
        ),
    ]
    events = [event for frame in frames for event in decode(frame).events]
    assert {event.kind for event in events} == {*KIND_NAMES}
    messages = rendered(*events)
    assert [parse(message) for message in messages] == [
        MirrorMessage(AT + number, event) for number, event in enumerate(events)
    ]


@given(
    st.dictionaries(st.text(max_size=5), VALUES, max_size=4),
    st.sampled_from([CREATE, UPDATE]),
    st.integers(0, 10**17),
)
def test_a_record_comes_back_whatever_it_holds(record: dict[str, Any], kind: bytes, position: int) -> None:
    event = written(orjson.dumps(record), kind=kind)
    [message] = V2.render(Batch.of([event], [position]), range(1))
    assert parse(message) == MirrorMessage(position, event)


@given(st.text(max_size=16), st.integers(0, 10**17))
def test_a_notice_comes_back_whatever_it_holds(handle: str, position: int) -> None:
    body = orjson.dumps({"did": DID, "handle": handle, "seq": 7, "time": handle})
    event = Event(IDENTITY, DID.encode(), b"", b"", b"", b"", body)
    [message] = V2.render(Batch.of([event], [position]), range(1))
    assert parse(message) == MirrorMessage(position, event)


@given(st.data())
def test_a_damaged_message_is_refused_or_means_something_valid(data: st.DataObject) -> None:
    [message] = rendered(written(b'{"text":"a"}'))
    place = data.draw(st.integers(0, len(message) - 1))
    damaged = message[:place] + bytes([data.draw(st.integers(0, 255))]) + message[place + 1 :]
    with suppress(Dropped):
        found = parse(damaged)
        assert isinstance(found, MirrorMessage)
        [again] = V2.render(Batch.of([found.event], [found.position]), range(1))
        assert json.loads(again)["payload"]["seq"] == found.position


@given(st.integers(0, 400))
def test_a_message_that_was_cut_is_refused(length: int) -> None:
    [message] = rendered(written(b'{"text":"' + b"a" * 100 + b'"}'))
    assert dropped(message[: min(length, len(message) - 1)]) == "message_form"


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (written(did=b"did:PLC:x"), "did"),
        (written(collection=b"like"), "op_collection"),
        (written(rkey=b".."), "op_rkey"),
        (written(rkey=b'"'), "message_form"),
        (written(rev=b"3"), "rev"),
        (written(cid=b"x"), "message_form"),
        (written(b"[]"), "record_type"),
        (written(b"{"), "message_form"),
        (written(b'{"a":\n1}'), "message_form"),
        (written(b'{"a":"' + b"a" * 990_000 + b'"}'), "json_size"),
        (written(b'{"a":' * 129 + b"1" + b"}" * 129), "record_depth"),
        (written(b'{"a":' * 5_000 + b"1" + b"}" * 5_000), "message_form"),
        (Event(IDENTITY, DID.encode(), b"", b"", b"", b"", b'{"did":"did:plc:other"}'), "malformed"),
        (Event(IDENTITY, b"did", b"", b"", b"", b"", b"{}"), "did"),
        (notice(b"a", b"1"), "record_type"),
        (notice(b"a", b'{"did":"%b"}'), "malformed"),
        (notice(b"a", b'{"active":1,"did":"%b"}'), "malformed"),
        (notice(b"a", b'{"active":true,"did":"%b","status":"' + b"a" * 65 + b'"}'), "field_size"),
        (notice(b"a", b'{"active":true,"did":"%b","status":null}'), "malformed"),
        (notice(b"i", b'{"did":"%b","handle":"' + b"a" * 254 + b'"}'), "field_size"),
        (notice(b"i", b'{"did":"%b","handle":"' + "é".encode() * 127 + b'"}'), "field_size"),
        (notice(b"i", b'{"did":"%b","handle":' + b"[" * 100 + b"]" * 100 + b"}"), "malformed"),
        (notice(b"i", b'{"did":"%b","seq":1e30}'), "malformed"),
        (notice(b"i", b'{"did":"%b","time":"' + b"a" * 65 + b'"}'), "field_size"),
        (notice(b"s", b'{"did":"%b","rev":"3l3f6nzhvkl2g"}'), "malformed"),
        (notice(b"s", b'{"blocks":{"$bytes":"AAAA"},"did":"%b","rev":"x"}'), "rev"),
        (notice(b"s", b'{"blocks":"AAAA","did":"%b","rev":"3l3f6nzhvkl2g"}'), "malformed"),
        (notice(b"s", b'{"blocks":{"$bytes":"' + b"A" * 13_337 + b'"},"did":"%b"}'), "malformed"),
        (
            notice(b"s", b'{"blocks":{"$bytes":"' + b"A" * 13_337 + b'"},"did":"%b","rev":"3l3f6nzhvkl2g"}'),
            "sync_size",
        ),
        (written(b'{"a":[' + b",".join([b"[]"] * 8_000) + b"]}"), "frame_items"),
        (written(b'{"a":[' + b",".join([b'""'] * 16_001) + b"]}"), "frame_items"),
        (written(cid=b"b" + b"a" * 201), "message_form"),
        (written(did=b"did:plc:" + b"a" * 2_048), "did"),
        (written(rkey=b"a" * 513), "op_rkey"),
        (written(collection=b"a." * 200 + b"a"), "op_collection"),
        (Event(b"s", DID.encode(), b"", b"", b"", b"", b"}"), "message_form"),
    ],
)
def test_what_may_not_be_passed_on_is_refused(event: Event, reason: str) -> None:
    [message] = rendered(event)
    assert dropped(message) == reason


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "message_form"),
        (b"[]", "message_form"),
        (b"\xff", "message_form"),
        (b'{"did":"did:plc:a","time_us":1,"kind":"commit"}', "frame_type"),
        (
            b'{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#new"}}',
            "frame_type",
        ),
        (
            b'{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#commit"}}',
            "frame_type",
        ),
    ],
)
def test_what_is_no_message_of_ours_is_refused(message: bytes, reason: str) -> None:
    assert dropped(message) == reason


def test_a_position_is_a_number_of_json() -> None:
    [message] = rendered(written(b"{}"))
    assert isinstance(parse(message), MirrorMessage)
    assert dropped(message.replace(b'"seq":', b'"seq":0')) == "message_form"


def test_nesting_and_size_may_be_as_large_as_records_are() -> None:
    for body in (b'{"a":' * 128 + b"1" + b"}" * 128, b'{"a":"' + b"a" * 989_992 + b'"}'):
        event = written(body)
        assert parse(rendered(event)[0]) == MirrorMessage(AT, event)


def test_commas_and_brackets_in_texts_are_no_items() -> None:
    event = written(orjson.dumps({"a": ',[{\\"' * 100_000}))
    assert parse(rendered(event)[0]) == MirrorMessage(AT, event)


def test_numbers_of_any_size_are_passed_on_as_they_are() -> None:
    event = written(b'{"a":[%d,%d,1e300]}' % (10**300, -(2**64)))
    assert parse(rendered(event)[0]) == MirrorMessage(AT, event)


@pytest.mark.parametrize("levels", [1, 300, 1_000])
def test_what_a_peer_says_of_itself_is_text_or_nothing(levels: int) -> None:
    deep = b"[" * levels + b"]" * levels
    assert parse(b'{"$type":"error","error":%b,"message":%b}' % (deep, deep)) == Notice("error", "", "")
    start = b'{"$type":"message","payload":{"$type":"a#info","name":'
    assert parse(start + b'%b,"message":{"a":%b}}}' % (deep, deep)) == Notice("info", "", "")
    assert dropped(b'{"$type":"message","payload":{"$type":%b}}' % deep) == "frame_type"
    assert dropped(b'{"$type":%b}' % deep) == "frame_type"


def test_what_a_peer_says_of_itself_is_shortened() -> None:
    text = b"m" * 1_000_000
    for start in b'{"$type":"error","error":', b'{"payload":{"$type":"#info","message":"m","name":':
        found = parse(start + b'"%b","message":"%b"}' % (text, text) + b"}" * start.count(b"payload"))
        assert isinstance(found, Notice)
        assert (len(found.name), len(found.text)) == (200, 200)


def test_infos_and_errors_are_notices() -> None:
    assert parse(info("Heartbeat", "a")) == Notice("info", "Heartbeat", "a")
    assert parse(b'{"$type":"error","error":"ConsumerTooSlow","message":"b"}') == Notice(
        "error", "ConsumerTooSlow", "b"
    )
