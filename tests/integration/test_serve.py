"""The whole path on real frames: relay in, JSON out, on both wires."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fixtures import captured_frames, json_lines
from tests.relay import Relay, numbered
from tests.serving import Start
from tests.subscriber import subscribe

KINDS = {"commit": "com", "identity": "id", "account": "acc"}


def without_time(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "time_us"}


def as_classic(event: dict[str, Any]) -> dict[str, Any]:
    kind = event["kind"]
    body = {**event[kind]}
    if kind == "commit":
        body["type"] = body.pop("operation")[0]
        body.pop("cid", None)
    return {"did": event["did"], "type": KINDS[kind], kind: body}


@pytest.mark.parametrize(
    ("path", "wire"),
    [("/subscribe", "classic"), ("/v1/subscribe", "classic"), ("/subscribe", "v1"), ("/v1/subscribe", "v1")],
)
async def test_real_frames_become_the_events_that_production_served(
    path: str, wire: str, relay: Relay, start: Start
) -> None:
    relay.publish(numbered(captured_frames()))
    expected = [without_time(event) for event in json_lines("firehose/events.v1.jsonl")]
    service = await start(wire=wire, upstream_cursor=0)
    async with subscribe(service.port, path, cursor=1) as subscriber:
        events = await subscriber.events(len(expected))
    if path == "/subscribe" and wire == "classic":
        expected = [as_classic(event) for event in expected]
    assert len(expected) == 92
    assert [without_time(event) for event in events] == expected
    times = [event["time_us"] for event in events]
    assert times == sorted(set(times))
