from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import Op, account, commit, from_json, identity, sync
from tests.decoding import decode
from tests.fixtures import captured_frames, fixture, json_lines

from jetstream.delivery.renderers.v2 import V2, dates, info
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, DELETE, UPDATE, Event

GOLDEN = ["v2_frames.jsonl", "v2_frames_pysim.jsonl", "v2_sync_frames.jsonl"]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rendered(event: Event, time_us: int) -> bytes:
    return V2.render(Batch.of([event], [time_us]), range(1))[0]


def micros(date: str) -> int:
    return (datetime.fromisoformat(date) - EPOCH) // timedelta(microseconds=1)


def upstream(payload: dict[str, Any]) -> bytes:
    """Make the frame that a message of the v2 wire must have come of."""
    match payload:
        case {"identity": fields}:
            return identity(**fields)
        case {"account": fields}:
            return account(**fields)
        case {"sync": fields}:
            return sync(**from_json(fields))
    path = f"{payload['collection']}/{payload['rkey']}"
    op = Op(payload["operation"], path, from_json(payload.get("record")))
    return commit(7, [op], repo=payload["did"], rev=payload["rev"])


def test_each_kind_byte_for_byte() -> None:
    did, time_us = b"did:plc:abc", 1796054400000123
    path = (b"app.bsky.feed.like", b"3k", b"3mbd3542mi6yx")
    start, end = (
        '{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#',
        ('"seq":1796054400000123,"time":"2026-11-30T16:00:00.000123Z"}}'),
    )
    commit_end = f'"rev":"3mbd3542mi6yx","rkey":"3k",{end}'
    expected = {
        Event(CREATE, did, *path, b"bafy", b'{"a":1}'): (
            'commit","cid":"bafy","collection":"app.bsky.feed.like","did":"did:plc:abc",'
            f'"operation":"create","record":{{"a":1}},{commit_end}'
        ),
        Event(UPDATE, did, *path, b"bafy", b"{}"): (
            'commit","cid":"bafy","collection":"app.bsky.feed.like","did":"did:plc:abc",'
            f'"operation":"update","record":{{}},{commit_end}'
        ),
        Event(DELETE, did, *path, b"", b""): (
            f'commit","collection":"app.bsky.feed.like","did":"did:plc:abc","operation":"delete",{commit_end}'
        ),
        Event(b"i", did, b"", b"", b"", b"", b'{"i":1}'): (
            f'identity","did":"did:plc:abc","identity":{{"i":1}},{end}'
        ),
        Event(b"a", did, b"", b"", b"", b"", b'{"a":1}'): (
            f'account","account":{{"a":1}},"did":"did:plc:abc",{end}'
        ),
        Event(b"s", did, b"", b"", b"", b"", b'{"s":1}'): (
            'sync","did":"did:plc:abc","seq":1796054400000123,"sync":{"s":1},'
            '"time":"2026-11-30T16:00:00.000123Z"}}'
        ),
    }

    assert [rendered(event, time_us).decode() for event in expected] == [start + r for r in expected.values()]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_frames_come_back_with_their_keys_in_order(name: str) -> None:
    """Apart from the number, which is the time of the event here, and escapes in records."""
    for line in fixture(f"wire-v2/{name}").read_text().splitlines():
        golden = json.loads(line)
        payload = golden["payload"]
        time_us = micros(payload["time"])
        [event] = decode(upstream(payload)).events
        payload["seq"] = time_us
        ours = rendered(event, time_us)
        assert json.dumps(json.loads(ours)) == json.dumps(golden)
        if "record" not in payload:
            assert ours == json.dumps(golden, separators=(",", ":")).encode()


def test_every_event_of_the_captured_frames() -> None:
    events = [event for frame in captured_frames() for event in decode(frame).events]
    times = range(1725516666000000, 1725516666000000 + 40_000 * len(events), 40_000)
    messages = V2.render(Batch.of(events, times), range(len(events)))
    payloads = [json.loads(message)["payload"] for message in messages]

    for payload, time_us, v1 in zip(payloads, times, json_lines("firehose/events.v1.jsonl"), strict=True):
        assert payload["seq"] == micros(payload["time"]) == time_us
        assert {name: payload.get(name) for name in v1["commit"]} == v1["commit"]
        assert payload["did"] == v1["did"]


@given(st.lists(st.integers(0, 253_402_300_799_999_999), unique=True).map(sorted))
def test_dates_have_six_digits_and_mean_the_same(times: list[int]) -> None:
    made = [date.decode() for date in dates(times)]

    assert [micros(date) for date in made] == times
    assert {len(date) for date in made} <= {len("2026-11-30T16:00:00.000123Z")}


@pytest.mark.parametrize("gap_us", [1, 999_999, 1_000_000, 1_000_001, 86_400_000_000])
def test_dates_on_both_sides_of_a_second(gap_us: int) -> None:
    times = [1_999_999 + n * gap_us for n in range(5)]

    assert [micros(date.decode()) for date in dates(times)] == times


def test_a_position_beyond_all_dates_is_rendered_all_the_same() -> None:
    assert json.loads(b'"%b"' % dates([2**63 - 1])[0]).startswith("9999-12-31T23:59:59.")


def test_an_info_is_no_event() -> None:
    assert info("OutdatedCursor", 'a "word"') == (
        b'{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#info",'
        b'"message":"a \\"word\\"","name":"OutdatedCursor"}}'
    )


@pytest.mark.parametrize("live", [True, False])
def test_a_heartbeat_is_an_info_with_its_position_in_its_message(live: bool) -> None:
    text = f"every event up to seq 1796054400000123 has been considered; live: {str(live).lower()}"

    assert V2.heartbeat(1796054400000124, live) == info("Heartbeat", text)
    assert V2.heartbeat_s < 60
