"""What an operator must know: said once when it begins, and once when it ends."""

from __future__ import annotations

from structlog.testing import capture_logs

from jetstream.conditions import CONDITIONS, HINTS, Conditions


def test_a_condition_is_logged_when_it_begins_and_when_it_ends() -> None:
    conditions = Conditions()
    with capture_logs() as lines:
        conditions.end("clock")
        conditions.begin("clock", "an hour ahead")
        conditions.begin("clock", "two hours ahead")
        assert conditions.reasons == {"clock": "two hours ahead"}
        conditions.end("clock")
        conditions.end("clock")
    assert conditions.reasons == {}
    assert [(line["log_level"], line["event"], line["condition"]) for line in lines] == [
        ("warning", f"degraded: {CONDITIONS['clock']}", "clock"),
        ("info", f"recovered from: {CONDITIONS['clock']}", "clock"),
    ]
    assert lines[0]["reason"] == "an hour ahead"


def test_the_condition_of_an_upstream_is_apart_from_that_of_another() -> None:
    conditions = Conditions()
    a, b = conditions.of("a:443"), conditions.of("b")
    with capture_logs() as lines:
        a.begin("frames_not_taken", "why")
        b.end("frames_not_taken")
        assert conditions.reasons == {"frames_not_taken a:443": "why"}
        b.begin("frames_not_taken", "why, too")
        a.end("frames_not_taken")
        assert conditions.reasons == {"frames_not_taken b": "why, too"}
        conditions.set("clock", "an hour ahead")
        assert conditions.names == {"frames_not_taken", "clock"}
    assert [line.get("upstream") for line in lines if "recovered" in line["event"]] == ["a:443"]


def test_the_conditions_of_an_upstream_that_is_removed_are_forgotten_silently() -> None:
    conditions = Conditions()
    conditions.begin("clock", "an hour ahead")
    for name in "a", "ab":
        conditions.of(name).begin("frames_not_taken", "why")
        conditions.of(name).begin("not_a_firehose", "why")
    with capture_logs() as lines:
        conditions.end_all("a")
    assert sorted(conditions.reasons) == ["clock", "frames_not_taken ab", "not_a_firehose ab"]
    assert lines == []


def test_every_condition_has_a_hint() -> None:
    assert HINTS.keys() == CONDITIONS.keys()


def test_a_condition_that_begins_and_ends_again_and_again_is_two_lines_a_minute() -> None:
    conditions = Conditions()
    with capture_logs() as lines:
        for _ in range(50):
            conditions.begin("frames_not_taken", "why", "a")
            conditions.end("frames_not_taken", "a")
    assert [line["event"].partition(":")[0] for line in lines] == ["degraded", "recovered from"]
