from __future__ import annotations

from typing import Any

from jetstream.supervisor.bodies import figures_of, health, kicked, listed, not_ready
from jetstream.supervisor.bodies import status as merged_status
from jetstream.supervisor.families import unpack

CHECK = {"check": "lag", "text": "t", "hint": "h"}
IDLE = {"check": "upstream_idle", "text": "t", "hint": "h"}


def names(reasons: list[dict[str, str]]) -> list[str]:
    return [each["check"] for each in reasons]


def test_a_server_is_ready_with_one_edge_that_is() -> None:
    assert not_ready([], [[CHECK], []], stopping=False) == []
    assert names(not_ready([], [[CHECK], [CHECK]], stopping=False)) == ["lag"]


def test_a_server_is_not_ready_without_an_edge_or_an_ingest_or_while_it_stops() -> None:
    assert names(not_ready([], [], stopping=False)) == ["no_edge"]
    assert names(not_ready(None, [[]], stopping=False)) == ["ingest_down"]
    assert names(not_ready([IDLE], [[]], stopping=False)) == ["upstream_idle"]
    assert names(not_ready([IDLE], [[CHECK]], stopping=True)) == ["stopping"]


def test_a_reason_is_given_once() -> None:
    assert names(not_ready([CHECK], [[CHECK]], stopping=False)) == ["lag"]


def test_an_edge_need_not_have_heard_of_the_ingest() -> None:
    gone = {"check": "writer_gone", "text": "t", "hint": "h"}
    assert not_ready([], [[gone]], stopping=False) == []
    assert names(not_ready(None, [[gone]], stopping=False)) == ["ingest_down"]


def body(status: str, subscribers: int, *reasons: str) -> dict[str, Any]:
    return {"status": status, "reasons": list(reasons), "subscribers": subscribers, "version": "1"}


def test_health_is_the_ingests_with_everybodys_reasons_and_the_subscribers_of_all_edges() -> None:
    found = health(body("ok", 0), [body("ok", 2), body("degraded", 3, "a certificate")], ["edge-2"])
    assert found == body("degraded", 5, "edge-2", "a certificate")
    assert health(body("ok", 0), [body("ok", 1)], [])["status"] == "ok"
    full = body("the log cannot be written: is the disk full?", 0, "full")
    assert health(full, [body("ok", 1)], []) == {**full, "subscribers": 1}


def page(total: int, following: int | None, *ids: int) -> dict[str, Any]:
    return {"total": total, "next": following, "subscribers": [{"id": each} for each in ids]}


def test_subscribers_of_all_edges_are_one_list_page_by_page() -> None:
    first = listed([page(3, 30, 10, 30), page(2, None, 20, 40)], 2)
    assert first == page(5, 20, 10, 20)
    # After 20:
    assert listed([page(3, 50, 30, 50), page(2, None, 40)], 2) == page(5, 40, 30, 40)
    assert listed([page(3, None, 50), page(2, None)], 2) == page(5, None, 50)
    assert listed([page(0, None)], 2) == page(0, None)


def test_an_id_is_unknown_if_no_edge_knows_it() -> None:
    first, second = {"kicked": 2, "unknown_ids": [3, 4]}, {"kicked": 1, "unknown_ids": [1, 2, 4]}
    assert kicked([first, second]) == {"kicked": 3, "unknown_ids": [4]}


def figures(**more: Any) -> dict[str, Any]:
    return {
        "reasons": [],
        "events": {"per_s": 5.0, "total": 0},
        "log": {"events": 9, "written_bytes_per_s": 10.0},
        "subscribers": {
            "total": 0,
            "by_wire": {"classic": 0, "v1": 0},
            "by_compression": {"none": 0},
            "catching_up": 0,
            "lagging": 0,
            "max": 0,  # of a process that serves nobody
        },
        "out": {"messages_per_s": 0.0, "bytes_per_s": 0.0, "messages_total": 0, "bytes_total": 0},
        "loop_delay_ms": {"p50": 0.1, "p99": 0.5},
        "delivery_ms": {"p50": None, "p99": None},
        "process": {"rss_bytes": 100, "cpu": 0.5, "open_files": None, "open_files_max": 10},
        **more,
    }


def test_the_figures_of_subscribers_are_sums_and_delays_those_of_the_worst() -> None:
    edge = figures(
        subscribers={
            "total": 3,
            "by_wire": {"classic": 1, "v1": 2},
            "by_compression": {"none": 3},
            "catching_up": 1,
            "lagging": 0,
            "max": 100,
        },
        out={"messages_per_s": 7.5, "bytes_per_s": 100.0, "messages_total": 0, "bytes_total": 0},
        loop_delay_ms={"p50": 0.05, "p99": 9.0},
        delivery_ms={"p50": 1.0, "p99": 2.0},
    )
    counted = [["x", {"wire": "v1"}, 30], ["x", {"wire": "classic"}, 12]]
    families = {each.name: each for each in unpack([["jetstream_messages_sent", "counter", "", counted]])}
    found = merged_status(figures(), [edge, edge], families, {"ready": True})
    assert found["subscribers"] == {
        "total": 6,
        "by_wire": {"classic": 2, "v1": 4},
        "by_compression": {"none": 6},
        "catching_up": 2,
        "lagging": 0,
        "max": 100,
    }
    assert found["out"]["messages_per_s"] == 15.0
    assert found["out"]["messages_total"] == 42
    assert found["loop_delay_ms"] == {"p50": 0.1, "p99": 9.0}
    assert found["delivery_ms"] == {"p50": 1.0, "p99": 2.0}
    assert found["process"] == {"rss_bytes": 300, "cpu": 1.5, "open_files": None, "open_files_max": 30}
    assert found["log"] == {"events": 9, "written_bytes_per_s": 30.0}
    assert found["ready"] is True


def test_the_figures_of_a_process_are_its_own() -> None:
    upstreams = [{"lag_s": None}, {"lag_s": 0.5}, {"lag_s": 0.2}]
    assert figures_of(figures(upstreams=upstreams, edge=None)) == {
        "cpu": 0.5,
        "rss_bytes": 100,
        "subscribers": 0,
        "events_per_s": 5.0,
        "messages_per_s": 0.0,
        "lag_s": 0.2,  # behind the upstream that is least behind
    }
    edge = {"lag_s": 0.01, "writer_silent_s": 0.3}
    assert figures_of(figures(upstreams=[], edge=edge))["lag_s"] == 0.01  # behind the log
    assert figures_of(figures(upstreams=[], edge=None))["lag_s"] is None


def test_the_figures_of_a_process_that_says_nothing_are_not_known() -> None:
    assert figures_of(None).keys() == figures_of(figures(upstreams=[], edge=None)).keys()
    assert set(figures_of(None).values()) == {None}
