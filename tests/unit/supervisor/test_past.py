from __future__ import annotations

from typing import Any

from jetstream.history import Step
from jetstream.supervisor.past import Past

STEP_US = 10_000_000
START_US = 1_700_000_003_450_000


def history(end_step: int, *steps: Step, ahead_us: int = 0) -> tuple[dict[str, Any], int]:
    """Return the history of a process, and the number of its newest step. Its clock may be ahead."""
    columns = {name: [getattr(step, name) for step in steps] for name in Step._fields}
    return {"step_s": 10, "end_us": START_US + end_step * STEP_US + ahead_us, **columns}, end_step


def ingest(events: float) -> Step:
    return Step(events_per_s=events, messages_per_s=0.0, subscribers=0, lag_s=0.5, loop_delay_p99_ms=1.0)


def edge(messages: float, subscribers: int, delay_ms: float) -> Step:
    return Step(
        events_per_s=99.0,
        messages_per_s=messages,
        subscribers=subscribers,
        lag_s=None,
        loop_delay_p99_ms=delay_ms,
    )


def test_steps_of_all_processes_are_added_up_where_they_are_of_the_same_time() -> None:
    past = Past()
    past.add("ingest", *history(2, ingest(10), ingest(20)))
    past.add("edge-1", *history(2, edge(1, 3, 2.0), edge(2, 4, 9.0)))
    past.add("edge-2", *history(2, edge(5, 6, 3.0)))
    shown = past.history()
    assert shown["step_s"] == 10
    assert shown["events_per_s"] == [10, 20]  # the ingest's
    assert shown["messages_per_s"] == [1, 7]
    assert shown["subscribers"] == [3, 10]
    assert shown["loop_delay_p99_ms"] == [2.0, 9.0]  # of the process that is worst off
    assert shown["lag_s"] == [0.5, 0.5]


def test_a_process_that_takes_anothers_place_has_its_past() -> None:
    past = Past()
    past.add("edge-1", *history(1, edge(1, 3, 2.0)))
    past.add("edge-1", *history(3, edge(2, 4, 2.0)))
    assert past.history()["messages_per_s"] == [1, None, 2]
    past.add("edge-1", *history(4, edge(2, 4, 2.0), edge(3, 5, 2.0)))
    assert past.history()["messages_per_s"] == [1, None, 2, 3]


def test_there_are_so_many_steps_at_most() -> None:
    past = Past(steps_max=3)
    for number in range(9):
        past.add("edge-1", *history(number, edge(number, 1, 1.0)))
    assert past.history()["messages_per_s"] == [6, 7, 8]


def test_without_a_step_there_is_no_history() -> None:
    past = Past()
    past.add("ingest", {**history(0)[0], "end_us": None}, None)
    assert past.history() == {"step_s": 0, "end_us": None, **{name: [] for name in Step._fields}}


def test_a_clock_that_was_wrong_for_a_while_changes_nothing() -> None:
    """The time of day was two hours ahead, and is put right: the history goes on."""
    past, ahead_us = Past(), 7_200_000_000
    past.add("edge-1", *history(1, edge(1, 1, 1.0), ahead_us=ahead_us))
    past.add("edge-1", *history(2, edge(1, 1, 1.0), edge(2, 1, 1.0), ahead_us=ahead_us))
    past.add("edge-1", *history(3, edge(2, 1, 1.0), edge(3, 1, 1.0)))
    past.add("edge-2", *history(4, edge(5, 1, 1.0)))
    assert past.history()["messages_per_s"] == [1, 2, 3, 5]
    assert past.history()["end_us"] == START_US + 4 * STEP_US


def test_the_newest_step_of_all_says_when_the_history_ends() -> None:
    past = Past()
    past.add("ingest", *history(7, ingest(1)))
    past.add("edge-1", *history(6, edge(1, 1, 1.0)))
    assert past.history()["end_us"] == START_US + 7 * STEP_US
    assert past.history()["events_per_s"] == [None, 1]
