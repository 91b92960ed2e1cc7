"""When the state of a deleted account is forgotten, and which sources are judged without it."""

from __future__ import annotations

import orjson
import pytest
from tests.builders import DID
from tests.signed import START_US, rev

from jetstream.admission.deletions import Deletions


def test_the_state_is_forgotten_when_all_sources_have_said_so() -> None:
    deletions = Deletions(10)
    assert not deletions.note(DID, "b", ("a", "b"), told=False)
    assert not deletions.is_over(DID, "b")  # readers were not told
    assert deletions.note(DID, "a", ("a", "b"), told=True)
    assert len(deletions) == 0


def test_only_a_source_that_has_said_so_is_judged_without_it() -> None:
    deletions = Deletions(10)
    assert not deletions.note(DID, "a", ("a", "b"), told=True)
    assert DID in deletions
    assert deletions.is_over(DID, "a")
    assert not deletions.is_over(DID, "b")
    deletions.begins_again(DID)
    assert DID not in deletions
    assert not deletions.is_over(DID, "a")


def test_one_source_needs_no_other() -> None:
    assert Deletions(10).note(DID, "a", ("a",), told=True)
    assert Deletions(10).note(DID, "pds", (), told=True)


MINUTE_US = 60_000_000


def test_what_is_up_to_the_newest_rev_is_from_before_unless_it_begins_a_repository() -> None:
    deletions = Deletions(10)
    deletions.remember(DID, rev(20 * MINUTE_US), START_US + 20 * MINUTE_US)
    for minute, begins, before in [
        (20, False, True),
        (16, True, False),
        (14, True, True),  # before the deletion by any clock
        (21, False, False),
        (21, True, False),
    ]:
        assert deletions.is_from_before(DID, rev(minute * MINUTE_US), begins=begins) is before
    assert not deletions.is_from_before("did:plc:other", rev(1), begins=False)


@pytest.mark.parametrize(
    ("time", "minute"),
    [
        ("2026-01-01T00:03:00Z", 3),
        ("2026-01-01T00:05:40Z", 5 + 2 / 3),  # the clock of the one that stored it was behind
        ("2099-01-01T00:00:00Z", 6),  # it was not later than a minute after it was stored
        ("whenever", 5),
        (None, 5),
    ],
)
def test_a_deletion_of_an_earlier_process_counts_from_its_time(time: str | None, minute: float) -> None:
    deletions = Deletions(10)
    body = orjson.dumps({"active": False, "status": "deleted"} | ({} if time is None else {"time": time}))
    deletions.restore(DID, body, START_US + 5 * MINUTE_US)
    for begins in (True, False):
        assert deletions.is_from_before(DID, rev(round(minute * MINUTE_US) - 1), begins=begins)
        assert not deletions.is_from_before(DID, rev(round(minute * MINUTE_US) + 1), begins=begins)


def test_revs_are_remembered_of_so_many_accounts() -> None:
    deletions = Deletions(2)
    for did in "abca":
        deletions.remember(did, rev(5), START_US)
    assert [did for did in "abc" if deletions.is_from_before(did, rev(5), begins=False)] == ["a", "c"]


def test_the_oldest_is_forgotten() -> None:
    deletions = Deletions(2)
    for did in "abc":
        deletions.note(did, "a", ("a", "b"), told=True)
    assert [did for did in "abc" if deletions.is_over(did, "a")] == ["b", "c"]
