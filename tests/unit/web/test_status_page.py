"""`/status.json`: what it shows, whatever is known."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import jsonschema_rs
import orjson
import pytest
from tests.unit.test_figures import STATUS, Server
from tests.unit.web.test_pages import ASKED

from jetstream.status import EdgeStatus, PdsStatus, ReaderStatus
from jetstream.web import openapi, status_page
from jetstream.web.pages import REASONS_MAX

RETENTION = status_page.Server(1_000_000, 86_400.0, None)
DOCUMENT = openapi.document()
SCHEMA = {"$ref": "#/components/schemas/Status", "components": DOCUMENT["components"]}


def shown(server: Server) -> Any:
    page = status_page.page(RETENTION, lambda: server.status, server.figures.statistics, server.metrics)
    answer = page(ASKED)
    assert answer.status == 200
    body = orjson.loads(answer.body)
    jsonschema_rs.validate(SCHEMA, body)
    return body


def test_what_is_not_known_yet_is_null() -> None:
    body = shown(Server())
    assert body["events"] == {
        "per_s": None,
        "total": 0,
        "by_kind": dict.fromkeys(("commit", "identity", "account", "sync")),
        "by_collection": [],
    }
    assert body["delivery_ms"] == {"p50": None, "p99": None}
    assert body["upstreams"][0]["frames_per_s"] is None
    assert body["history"]["events_per_s"] == []


def test_an_edge_shows_where_it_stands_with_its_log() -> None:
    server = Server()
    assert (shown(server)["role"], shown(server)["edge"]) == ("all", None)
    edge = EdgeStatus(lag_s=0.25, writer_silent_s=None, writer_alive=False, unread_s=0.0, readable=True)
    server.status = replace(server.status, role="edge", edge=edge, upstreams=())
    body = shown(server)
    assert (body["role"], body["edge"]) == ("edge", {"lag_s": 0.25, "writer_silent_s": None})


def test_the_figures_of_a_running_server() -> None:
    server = Server()
    server.metrics.upstream("relay", (), ["did", "rev"]).count_frames({}, {"did": 3}, 0)
    server.metrics.disconnects["slow"].inc(2)
    server.metrics.refusals["full"].inc()
    server.metrics.subscribers["classic"].inc(2)
    server.metrics.compressions["zstd"].inc()
    server.status = replace(server.status, readers=ReaderStatus(1, 1), subscribers_max=9)
    server.run(40, per_s=4)
    server.metrics.loop_delay.observe(0.002)
    server.run(1, per_s=4)
    body = shown(server)
    assert body["events"]["per_s"] == body["events"]["by_kind"]["commit"] == 4.0
    assert body["events"]["by_kind"]["sync"] == 0.0
    assert body["events"]["by_collection"] == [{"collection": "x.y.z", "per_s": 4.0}]
    assert body["events"]["total"] == 164
    assert body["out"] == {
        "messages_per_s": 3.0,
        "bytes_per_s": 500.0,
        "messages_total": 123,
        "bytes_total": 20_500,
    }
    assert (body["drops"], body["disconnects"], body["refused"]) == ({"did": 3}, {"slow": 2}, {"full": 1})
    assert body["subscribers"] == {
        "total": 2,
        "by_wire": {"classic": 2},
        "by_compression": {"none": 0, "zstd": 1, "gzip": 0},
        "catching_up": 1,
        "lagging": 1,
        "max": 9,
    }
    assert body["upstreams"][0] == {
        "name": "relay.example:443",
        "url": "wss://relay.example",
        "state": "connected",
        "seq": 7,
        "lag_s": 0.25,
        "last_frame_age_s": 1.0,
        "frames_per_s": 50.0,
    }
    assert body["loop_delay_ms"]["p50"] == pytest.approx(1.75)
    assert body["process"]["cpu"] == 0.5
    assert body["process"]["rss_bytes"] > 1_000_000
    assert 0 < body["process"]["open_files"] < body["process"]["open_files_max"]
    assert body["history"]["events_per_s"] == [4.0] * 4
    assert body["history"]["lag_s"] == [0.25] * 4


def test_the_log_and_what_a_day_takes() -> None:
    server = Server()
    log = replace(STATUS.log, oldest_us=0, newest_us=43_200_000_000, bytes_on_disk=1_000, disk_free_bytes=5)
    server.status = replace(STATUS, log=log)
    body = shown(server)["log"]
    assert (body["span_s"], body["bytes_per_day"], body["disk_free_bytes"]) == (43_200.0, 2_000, 5)
    assert (body["retention_s"], body["retention_bytes"], body["writable"]) == (86_400.0, None, True)
    server.status = replace(STATUS, log=replace(log, oldest_us=None, newest_us=None))
    assert shown(server)["log"]["bytes_per_day"] is None
    server.status = STATUS  # of three seconds
    assert shown(server)["log"]["bytes_per_day"] is None


def test_conditions_have_hints_and_their_number_is_bounded() -> None:
    server = Server()
    reasons = {f"frames_not_taken {number}": "why" for number in range(1_000)}
    server.status = replace(STATUS, reasons={"clock": "an hour ahead"} | reasons)
    body = shown(server)
    assert body["health"] == "degraded"
    assert body["reasons"][0]["condition"] == "clock"
    assert body["reasons"][0]["text"] == "an hour ahead"
    assert "clock" in body["reasons"][0]["hint"]
    assert len(body["reasons"]) == REASONS_MAX


def test_readiness_and_pdses() -> None:
    server = Server()
    pds = PdsStatus(Counter({"connected": 300}), ())
    server.status = replace(STATUS, upstreams=(), pds=pds, ready_idle_s=60.0)
    body = shown(server)
    assert (body["ready"], body["pds"]["connected"]) == (False, 300)
    assert [each["check"] for each in body["not_ready"]] == ["upstream_idle"]


def test_a_response_is_kept_for_a_moment() -> None:
    server, now = Server(), 0.0
    page = status_page.page(
        RETENTION, lambda: server.status, server.figures.statistics, server.metrics, clock=lambda: now
    )
    first = page(ASKED)
    now = 0.4
    assert page(ASKED) is first
    now = 0.5
    assert page(ASKED) is not first
