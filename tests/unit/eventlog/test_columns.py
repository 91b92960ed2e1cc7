from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from jetstream.eventlog.columns import Columns
from jetstream.model.batch import Batch
from jetstream.model.event import Event

VALUE = st.binary(max_size=20).filter(lambda value: b"\n" not in value)
EVENTS = st.lists(st.builds(Event, *[VALUE] * 7), min_size=1, max_size=8)


def stamped(events: list[Event], start: int) -> Batch:
    return Batch.of(events, range(start, start + len(events)))


def contents(batch: Batch) -> list[tuple[int, Event]]:
    return [(time, batch.event(index)) for index, time in enumerate(batch.times)]


@given(EVENTS)
def test_columns_give_the_batch_back(events: list[Event]) -> None:
    batch = stamped(events, 5)
    assert contents(Columns.of(batch).batch()) == contents(batch)


@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_joined_runs_are_the_columns_of_all_their_events(runs: list[list[Event]]) -> None:
    batches = [stamped(events, 100 * number) for number, events in enumerate(runs)]
    joined = Columns.joined(map(Columns.of, batches)).batch()
    assert contents(joined) == [item for batch in batches for item in contents(batch)]


def test_the_checksum_covers_every_column(batch_of: Callable[[range], Batch]) -> None:
    columns = Columns.of(batch_of(range(1, 9)))
    changed = [columns._replace(**{name: getattr(columns, name) + b"x"}) for name in columns._fields]
    assert len({columns.checksum(), *(other.checksum() for other in changed)}) == 9


@given(EVENTS)
def test_the_text_bytes_are_those_of_the_batch(events: list[Event]) -> None:
    batch = stamped(events, 5)
    assert Columns.of(batch).text_bytes == batch.text_bytes()
