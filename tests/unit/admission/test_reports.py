"""What an operator is told of judged messages."""

from __future__ import annotations

import pytest
from tests.unit.admission.fakes import Clock

from jetstream.admission.reports import Reports
from jetstream.conditions import Conditions
from jetstream.limits import AdmissionLimits


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
