"""Which sources are connected, a short time ago or for good. What is made of it: `test_accounts.py`."""

from __future__ import annotations

from jetstream.admission.availability import Availability

GRACE_S, WITHIN_S = 30.0, 2.0


def test_a_short_outage_leaves_a_source_steady() -> None:
    sources = Availability("ab", 0.0, GRACE_S)
    assert sources.update("ab", 1.0)
    assert sources.update("b", 100.0)
    assert not sources.update("b", 100.0 + GRACE_S - 1)
    assert (sources.first("ab"), sources.is_connected("a")) == ("a", False)
    assert sources.update("b", 100.0 + GRACE_S)
    assert sources.first("ab") == "b"


def test_a_source_that_was_added_is_steady_only_after_a_while() -> None:
    sources = Availability("a", 0.0, GRACE_S)
    sources.update("a", 0.0)
    sources.set_names("ba", 50.0)
    sources.update("ab", 50.0)
    assert sources.first("ba") == "a"
    sources.update("ab", 50.0 + GRACE_S)
    assert sources.first("ba") == "b"


def test_a_source_that_is_gone_counts_for_a_while() -> None:
    sources = Availability("ab", 0.0, GRACE_S)
    assert sources.has_others("a", 1.0, WITHIN_S)
    assert not sources.has_others("a", WITHIN_S, WITHIN_S)
    sources.update("ab", 10.0)
    assert sources.has_others("a", 1_000.0, WITHIN_S)
    sources.update("a", 1_000.0)
    assert sources.has_others("a", 1_001.0, WITHIN_S)
    assert not sources.has_others("a", 1_000.0 + WITHIN_S, WITHIN_S)
    assert sources.has_others("b", 1_000.0 + WITHIN_S, WITHIN_S)


def test_a_source_that_was_added_counts_at_once_and_one_that_was_removed_no_more() -> None:
    sources = Availability("a", 0.0, GRACE_S)
    sources.update("a", 0.0)
    sources.set_names("ab", 50.0)
    assert sources.has_others("a", 51.0, WITHIN_S)
    sources.update("ab", 51.0)
    sources.set_names("a", 60.0)
    assert not sources.has_others("a", 60.0, WITHIN_S)
