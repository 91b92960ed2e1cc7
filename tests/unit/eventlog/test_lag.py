"""How long a reader has known of something that it has not processed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetstream.eventlog.lag import Lag


def test_a_reader_that_has_all_is_not_behind() -> None:
    lag = Lag()
    lag.note(100, 1.0)
    assert lag.seconds(101, 50.0) == 0.0


def test_it_counts_from_when_the_oldest_was_noted() -> None:
    lag = Lag()
    for newest, now in (100, 1.0), (200, 2.0), (300, 3.0):
        lag.note(newest, now)
    assert lag.seconds(100, 4.0) == 3.0
    assert lag.seconds(101, 4.0) == 2.0
    assert lag.seconds(300, 4.0) == 1.0


def test_a_quiet_log_does_not_count() -> None:
    lag = Lag()
    lag.note(100, 1.0)
    assert lag.seconds(101, 2.0) == 0.0
    for now in range(2, 3_600):
        lag.note(100, now)
    assert lag.seconds(101, 3_600.0) == 0.0
    lag.note(200, 3_600.0)
    assert lag.seconds(101, 3_600.25) == 0.25


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=200), st.integers(2, 20))
def test_bounded_marks_never_say_less_than_what_the_oldest_shows(
    steps: list[tuple[int, bool]], marks_max: int
) -> None:
    exact, bounded, newest, position = Lag(10_000), Lag(marks_max), 0, 1
    for now, (grown, reads) in enumerate(steps):
        newest += grown
        exact.note(newest, now)
        bounded.note(newest, now)
        if reads:
            position += grown
        assert len(bounded._marks) <= marks_max + 1
        # A mark that was forgotten counts as the next one, which was noted later.
        assert bounded.seconds(position, now) <= exact.seconds(position, now)
