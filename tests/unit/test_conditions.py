"""What an operator must know: said once when it begins, and once when it ends."""

from __future__ import annotations

from structlog.testing import capture_logs

from jetstream.conditions import CONDITIONS, Conditions


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
        ("info", f"recovered: {CONDITIONS['clock']}", "clock"),
    ]
    assert lines[0]["reason"] == "an hour ahead"
