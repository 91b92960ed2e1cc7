"""Equal identity messages pass once."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.admission.identities import Identities

SECOND = 1_000_000
NOW = 1_800_000_000 * SECOND
TIME = "2026-11-27T00:00:00Z"


def body(did: str = "did:plc:a", seq: int = 1, **fields: str) -> bytes:
    return orjson.dumps({"did": did, "handle": "a.test", "seq": seq, "time": TIME} | fields)


@pytest.fixture
def identities() -> Identities:
    return Identities(600 * SECOND, 3)


def test_an_equal_one_of_another_source_is_a_repeat(identities: Identities) -> None:
    assert identities.passes(body(seq=1), NOW)
    assert not identities.passes(body(seq=900), NOW + SECOND)


@pytest.mark.parametrize(
    "other", [body("did:plc:b"), body(handle="b.test"), body(time="2026-11-27T00:00:01Z")]
)
def test_any_other_passes(other: bytes, identities: Identities) -> None:
    assert identities.passes(body(), NOW)
    assert identities.passes(other, NOW)
    assert not identities.passes(other, NOW)


def test_without_a_handle_it_is_another_one(identities: Identities) -> None:
    without = orjson.dumps({"did": "did:plc:a", "seq": 1, "time": TIME})
    assert identities.passes(body(), NOW)
    assert identities.passes(without, NOW)
    assert not identities.passes(without, NOW)


def test_one_without_a_time_always_passes(identities: Identities) -> None:
    without = orjson.dumps({"did": "did:plc:a", "handle": "a.test", "seq": 1})
    assert identities.passes(without, NOW)
    assert identities.passes(without, NOW)
    assert len(identities) == 0


def test_the_window_begins_with_the_first(identities: Identities) -> None:
    assert identities.passes(body(), NOW)
    assert not identities.passes(body(), NOW + 599 * SECOND)
    assert identities.passes(body(), NOW + 600 * SECOND)
    assert len(identities) == 1


def test_the_oldest_is_forgotten_when_there_are_too_many(identities: Identities) -> None:
    for number in range(4):
        assert identities.passes(body(f"did:plc:{number}"), NOW + number)
    assert len(identities) == 3
    assert identities.passes(body("did:plc:0"), NOW + 4)
    assert not identities.passes(body("did:plc:3"), NOW + 4)


def test_a_server_that_starts_knows_what_it_had_passed_on(identities: Identities) -> None:
    identities.remember(body(), NOW)
    assert not identities.passes(body(seq=2), NOW + SECOND)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(-400, 400))),
    st.integers(1, 4),
)
def test_the_limit_holds_and_no_first_one_is_dropped(steps: list[tuple[int, int]], entries_max: int) -> None:
    identities = Identities(600 * SECOND, entries_max)
    now, passed = NOW, set()
    for number, seconds in steps:
        now += seconds * SECOND
        if identities.passes(body(f"did:plc:{number}"), now):
            passed.add(number)
        assert number in passed
        assert len(identities) <= entries_max
