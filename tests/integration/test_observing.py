"""What an operator sees: `/metrics`, on either port, and `/health` in each state."""

from __future__ import annotations

import re
from pathlib import Path

from tests.builders import account, commit, create, delete, identity, like
from tests.relay import Relay, numbered, refuse, stay_silent
from tests.serving import LOOPBACK, Start, figures, get, health, published, quick, source, until
from tests.subscriber import subscribe

from jetstream.conditions import CONDITIONS
from jetstream.metrics import BAD_REQUEST_REASONS, CLOSE_REASONS, REFUSAL_REASONS
from jetstream.upstream.drops import DROP_REASONS
from jetstream.upstream.envelope import MESSAGE_TYPES

METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


async def test_every_family_is_served_and_documented(relay: Relay, start: Start) -> None:
    relay.publish(numbered([identity(1)]))
    service = await start(upstream_cursor=0, verify="full", verify_workers=1, plc_url=("http://127.0.0.1:9",))
    await published(service, 1)
    families = (await figures(service.port)).families
    # A counter's moment of creation goes without saying.
    shown = {name for name in families if re.fullmatch(r"jetstream_\w+(?<!_created)", name)}
    described = set(re.findall(r"`(jetstream_[a-z_]+)`", METRICS_PAGE.read_text()))
    assert len(shown) > 20
    # The others are in test_tls.py and test_roles.py.
    assert shown | {"jetstream_certificate_expires_seconds", "jetstream_edge_lag_seconds"} == described


async def test_counters_count_what_happened(relay: Relay, start: Start) -> None:
    good = [like(1), delete("app.bsky.feed.like/2"), create("nonsense/3", {"$type": "x.y.z"})]
    relay.publish(numbered([commit(5, good), identity(6), account(7), commit(9, [like(4)])]))
    service = await start(upstream_cursor=4)
    await published(service, 9)
    async with subscribe(service.port, cursor=1) as subscriber:
        events = await subscriber.events(5)
        seen = await figures(service.port)
    assert seen['jetstream_events_total{kind="create"}'] == 2
    assert seen['jetstream_events_total{kind="delete"}'] == 1
    assert seen['jetstream_events_total{kind="identity"}'] == 1
    assert seen['jetstream_events_total{kind="account"}'] == 1
    assert seen['jetstream_upstream_frames_total{type="commit"}'] == 2
    assert seen['jetstream_dropped_total{reason="op_collection"}'] == 1
    assert seen["jetstream_upstream_gaps_total"] == 1
    assert seen["jetstream_upstream_seq"] == 9
    assert seen["jetstream_log_events"] == 5
    assert seen["jetstream_log_bytes"] > 0
    assert seen["jetstream_log_oldest_us"] == events[0]["time_us"]
    assert seen["jetstream_log_newest_us"] == events[-1]["time_us"]
    assert seen['jetstream_upstream_state{state="connected"}'] == 1
    assert seen['jetstream_subscribers{wire="classic"}'] == 1
    assert seen['jetstream_messages_sent_total{wire="classic"}'] == 5
    assert seen['jetstream_bytes_sent_total{wire="classic"}'] > 500


async def test_label_values_come_from_fixed_lists_and_settings(relay: Relay, start: Start) -> None:
    service = await start()
    _, text = await get(service.port, "/metrics")
    labels = re.findall(r"^jetstream_\w+?\{(.*)\}", text, re.MULTILINE)
    found = {pair for each in labels for pair in re.findall(r'(\w+)="([^"]*)"', each)}
    assert {value for label, value in found if label == "upstream"} == {f"127.0.0.1:{relay.port}"}
    assert {value for label, value in found if label == "type"} == set(MESSAGE_TYPES)
    reasons = {*DROP_REASONS, *CLOSE_REASONS, *BAD_REQUEST_REASONS, *REFUSAL_REASONS}
    assert {value for label, value in found if label == "reason"} == reasons
    assert {value for label, value in found if label == "condition"} == set(CONDITIONS)
    assert {label for label, _ in found} == {
        "kind",
        "upstream",
        "type",
        "reason",
        "state",
        "condition",
        "wire",
        "coding",
        "collection",
        "compression",
        "doing",
        "how",
        "python",
        "role",
        "version",
        "le",
    }


async def test_metrics_may_have_an_address_of_their_own(relay: Relay, start: Start) -> None:
    service = await start(metrics_listen=LOOPBACK)
    assert service.endpoints.metrics_port is not None
    assert (await figures(service.endpoints.metrics_port))["jetstream_log_writable"] == 1
    assert (await get(service.port, "/metrics"))[0] == 404
    assert (await get(service.endpoints.metrics_port, "/subscribe"))[0] == 404


async def test_a_condition_is_a_reason_and_a_gauge(relay: Relay, start: Start) -> None:
    service = await start()
    service.conditions.begin("clock", "the clock is wrong")
    status, body = await health(service.port)
    assert (status, body["status"], body["reasons"]) == (200, "degraded", ["the clock is wrong"])
    assert (await figures(service.port))['jetstream_condition{condition="clock"}'] == 1
    service.conditions.end("clock")
    assert (await health(service.port))[1]["status"] == "ok"
    assert (await figures(service.port))['jetstream_condition{condition="clock"}'] == 0


async def test_health_while_connected(relay: Relay, start: Start) -> None:
    relay.publish(numbered([commit(1, [like(1)])]))
    service = await start(upstream_cursor=0)
    await published(service, 1)
    status, body = await health(service.port)
    assert status == 200
    assert body["status"] == "ok"
    upstream = body["upstream"]
    assert upstream == {
        "name": f"127.0.0.1:{relay.port}",
        "url": relay.url,
        "state": "connected",
        "seq": 1,
        "lag_s": upstream["lag_s"],
    }
    assert (body["upstreams"], body["pds"], upstream["lag_s"] > 0) == ([upstream], None, True)
    assert body["log"]["events"] == 1
    assert body["log"]["oldest_us"] == body["log"]["newest_us"] == service.log.tip
    assert body["last_event_age_s"] >= 0


async def test_health_counts_subscribers_that_have_not_sent_a_hello(relay: Relay, start: Start) -> None:
    service = await start()
    async with subscribe(service.port), subscribe(service.port, requireHello="true"):
        assert (await health(service.port))[1]["subscribers"] == 2


async def test_an_idle_upstream_is_healthy(relay: Relay, start: Start) -> None:
    relay.script.append(stay_silent)
    service = await start(limits=quick(idle_after_s=0.0))
    await until(lambda: source(service).state == "idle")
    status, body = await health(service.port)
    assert (status, body["upstream"]["state"], body["last_event_age_s"]) == (200, "idle", None)


async def test_health_while_reconnecting(relay: Relay, start: Start) -> None:
    relay.script.extend(refuse(503, **{"Retry-After": "600"}) for _ in range(3))
    service = await start()
    await relay.wait_asked(1)
    status, body = await health(service.port)
    assert (status, body["upstream"]["state"]) == (200, "reconnecting")
