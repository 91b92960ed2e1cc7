"""`/ready` and `/status.json` of a running server."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
from structlog.testing import capture_logs
from tests.builders import commit, like
from tests.event_streams import event_stream
from tests.relay import Relay, numbered, refuse, stay_silent
from tests.serving import Start, figures, get, published, source, until
from tests.subscriber import subscribe

from jetstream.dictionary.own import OWN
from jetstream.limits import Limits, RuntimeLimits
from jetstream.web import openapi

QUICK = Limits(runtime=RuntimeLimits(watch_every_s=0.02, report_every_s=0.1))


async def ready(port: int) -> tuple[int, list[str]]:
    """Return the status of `/ready`, and which checks fail."""
    status, text = await get(port, "/ready")
    body = json.loads(text)
    assert body["ready"] == (status == 200)
    return status, [each["check"] for each in body["not_ready"]]


async def status_of(port: int) -> Any:
    status, text = await get(port, "/status.json")
    assert status == 200
    body = json.loads(text)
    schemas = {"components": openapi.document()["components"]}
    jsonschema_rs.validate({"$ref": "#/components/schemas/Status", **schemas}, body)
    return body


async def test_a_server_is_ready_once_upstream_sends_frames(relay: Relay, start: Start) -> None:
    service = await start(upstream_cursor=0, ready_lag=None)
    assert await ready(service.port) == (503, ["upstream_idle"])
    assert (await figures(service.port))["jetstream_ready"] == 0
    relay.publish(numbered([commit(1, [like(1)])]))
    await published(service, 1)
    assert await ready(service.port) == (200, [])
    assert (await get(service.port, "/health"))[0] == 200


async def test_a_server_that_receives_what_is_old_is_not_ready(relay: Relay, start: Start) -> None:
    relay.publish(numbered([commit(1, [like(1)])]))  # its time is in the past
    service = await start(upstream_cursor=0)
    await published(service, 1)
    assert await ready(service.port) == (503, ["lag"])


async def test_a_quiet_upstream_can_be_enough(relay: Relay, start: Start) -> None:
    relay.script.append(stay_silent)
    service = await start(ready_idle=None)
    await until(lambda: source(service).is_connected)
    assert await ready(service.port) == (200, [])


async def test_without_a_connection_a_server_is_not_ready(relay: Relay, start: Start) -> None:
    relay.script.extend(refuse(503, **{"Retry-After": "600"}) for _ in range(3))
    service = await start(ready_idle=None)
    await relay.wait_asked(1)
    assert await ready(service.port) == (503, ["upstream_idle"])


async def test_the_status_has_the_figures(relay: Relay, start: Start) -> None:
    relay.publish(numbered([commit(seq, [like(seq)]) for seq in range(1, 6)]))
    service = await start(upstream_cursor=0, limits=QUICK)
    await published(service, 5)
    async with subscribe(service.port, cursor=1) as subscriber:
        await subscriber.events(5)
        await until(lambda: service.figures.statistics.over(10))
        body = await status_of(service.port)
        seen = await figures(service.port)
    assert seen['jetstream_events_by_collection_total{collection="app.bsky.feed.like"}'] == 5
    assert seen["jetstream_commit_seconds_count"] >= 1
    assert seen["jetstream_upstream_last_frame_age_seconds"] >= 0
    assert body["events"]["total"] == 5
    assert body["out"]["messages_total"] == 5
    assert body["subscribers"]["total"] == 1
    assert body["subscribers"]["by_compression"] == {"none": 1, "zstd": 0, "gzip": 0}
    assert body["upstreams"][0]["state"] == "connected"
    assert body["upstreams"][0]["last_frame_age_s"] >= 0
    assert body["log"]["disk_free_bytes"] > 0
    assert body["started_us"] <= body["now_us"]


async def test_subscribers_are_counted_by_compression(relay: Relay, start: Start) -> None:
    service = await start()

    async def counted() -> list[float]:
        found = await figures(service.port)
        names = ("none", "zstd", "gzip")
        return [found[f'jetstream_subscribers_by_compression{{compression="{name}"}}'] for name in names]

    async with (
        subscribe(service.port, requireHello="true"),
        subscribe(service.port, zstdDictionary=OWN.dictionary_id),
        event_stream(service.port),
        event_stream(service.port, coding="gzip"),
        event_stream(service.port, coding="zstd"),
    ):
        assert await counted() == [2, 2, 1]
    await until(lambda: not len(service.subscribe))
    assert await counted() == [0, 0, 0]


async def test_the_log_tells_the_figures_now_and_then(relay: Relay, start: Start) -> None:
    relay.publish(numbered([commit(1, [like(1)])]))
    with capture_logs() as lines:
        service = await start(upstream_cursor=0, limits=QUICK)
        await published(service, 1)
        await until(lambda: any(line["event"] == "figures" for line in lines))
        await until(lambda: any(line["event"] == "catching up with upstream" for line in lines))
    told = next(line for line in lines if line["event"] == "figures")
    assert told["upstreams"] == "1 of 1 connected"
    assert told["log_level"] == "info"


async def test_a_full_server_says_so_until_there_is_room(start: Start) -> None:
    service = await start(max_subscribers=1, limits=QUICK)
    conditions = service.conditions.reasons
    async with event_stream(service.port):
        await until(lambda: "full" in conditions)
        (reason,) = json.loads((await get(service.port, "/health"))[1])["reasons"]
        assert reason == "1 subscribers are connected, and that is the limit"
    await until(lambda: "full" not in conditions)


async def test_a_server_that_is_to_have_no_subscribers_is_not_full(start: Start) -> None:
    service = await start(max_subscribers=0, limits=QUICK)
    service._check_full()
    assert service.conditions.reasons == {}
