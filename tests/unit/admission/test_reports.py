"""What an operator is told of judged messages."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs
from tests.unit.admission.fakes import Clock, message

from jetstream.admission.message import Message
from jetstream.admission.reports import Reports
from jetstream.conditions import Conditions
from jetstream.limits import AdmissionLimits
from jetstream.simulator.frames import Identity
from jetstream.verify.verdict import crashed


@pytest.mark.parametrize(
    ("passes", "fate"), [(True, "passed on (--unresolved pass)"), (False, "dropped (--unresolved drop)")]
)
def test_the_reason_says_what_becomes_of_unverified_messages(passes: bool, fate: str) -> None:
    conditions, clock = Conditions(), Clock()
    reports = Reports(conditions, AdmissionLimits(), clock, pass_unverified=passes)
    reports.count({("unverified", ""): 30, ("ok", ""): 10, ("replay", ""): 1_000})
    assert conditions.reasons == {}
    clock.now += 60
    reports.count({("unverified", ""): 1})
    assert conditions.reasons == {
        "messages_unverified": f"31 of 41 messages of the last 60 s were unverified: they are {fate}."
        " Is the directory of --plc-url the right one, and does it answer?"
    }
    clock.now += 60
    reports.count({("ok", ""): 30})
    assert conditions.reasons == {}


def test_a_refusal_by_an_error_of_our_own_is_logged_with_its_traceback() -> None:
    reports = Reports(Conditions())
    _, envelope = message(7, Identity("did:web:a.test", "2026-01-01T00:00:00Z", "a.test"))
    with capture_logs() as lines:
        reports.refused(Message("a", 7, envelope, "did:web:a.test", 0.0), crashed(ValueError("odd")))
    (line,) = lines
    assert line["event"] == "refused: crash"
    assert (line["seq"], line["type"], line["detail"]) == (7, "identity", "ValueError: odd")
    assert line["exception"].endswith("ValueError: odd")
