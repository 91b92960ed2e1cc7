from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import event

from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, KIND_NAMES, UPDATE

EVENTS = [
    event(kind, rkey=str(number)) for number, kind in enumerate([CREATE, DELETE, IDENTITY, UPDATE, ACCOUNT])
]
TIMES = [10, 11, 15, 16, 40]


def test_a_batch_gives_back_the_events_it_was_made_of() -> None:
    batch = Batch.of(EVENTS, TIMES)

    assert len(batch) == 5
    assert [batch.event(index) for index in range(5)] == EVENTS
    assert (batch.times, batch.first, batch.last) == (TIMES, 10, 40)


def test_a_batch_may_be_empty() -> None:
    batch = Batch.of([], [])

    assert (len(batch), batch.times, batch.bodies, batch.index(5)) == (0, [], [], 0)
    for end in ("first", "last"):
        with pytest.raises(IndexError):
            getattr(batch, end)


@pytest.mark.parametrize(
    ("position", "index"), [(0, 0), (10, 0), (11, 1), (12, 2), (15, 2), (40, 4), (41, 5), (2**64, 5)]
)
def test_a_position_leads_to_the_first_event_at_or_after_it(position: int, index: int) -> None:
    assert Batch.of(EVENTS, TIMES).index(position) == index


@given(st.integers(0, 5))
def test_a_batch_grown_in_steps_is_the_batch_made_at_once(cut: int) -> None:
    batch = Batch.of(EVENTS[:cut], TIMES[:cut])
    batch.extend(Batch.of(EVENTS[cut:], TIMES[cut:]))

    assert [batch.event(index) for index in range(5)] == EVENTS
    assert batch.times == TIMES


def test_a_batch_does_not_share_its_columns() -> None:
    later = Batch.of(EVENTS[2:], TIMES[2:])
    batch = Batch.of(EVENTS[:2], TIMES[:2])
    batch.extend(later)
    later.times.append(99)

    assert batch.times == TIMES


def test_every_kind_has_a_name() -> None:
    records = {b"c": "create", b"u": "update", b"d": "delete"}
    assert records | {b"i": "identity", b"a": "account", b"s": "sync"} == KIND_NAMES
