"""What is said while the server is behind upstream."""

from __future__ import annotations

import pytest

from jetstream.catching_up import CatchingUp, spoken


def test_nothing_is_said_while_upstream_is_live() -> None:
    catching_up = CatchingUp()
    assert [catching_up.observe(float(second), second % 20) for second in range(100)] == [None] * 100


def test_how_far_behind_and_when_done_is_said_every_ten_seconds_and_at_the_end() -> None:
    catching_up, said = CatchingUp(), []
    for second in range(100):
        line = catching_up.observe(float(second), max(0.3, 7_200.0 - second * 120))
        if line is not None:
            said.append((second, line.event, *line.fields.values()))
    assert said == [
        (0, "catching up with upstream", "2h00m", "not known yet"),
        (10, "catching up with upstream", "1h40m", "50s"),
        (20, "catching up with upstream", "80m", "40s"),
        (30, "catching up with upstream", "60m", "30s"),
        (40, "catching up with upstream", "40m", "20s"),
        (50, "catching up with upstream", "20m", "10s"),
        (60, "caught up with upstream", "60s", 0.3),
    ]


def test_a_lag_that_does_not_fall_is_said_once_a_minute() -> None:
    catching_up = CatchingUp()
    lines = [(second, catching_up.observe(float(second), 500.0)) for second in range(130)]
    said = [(second, line.fields["done_in"]) for second, line in lines if line is not None]
    never = "never at this rate: upstream is too slow"
    assert said == [(0, "not known yet"), (60, never), (120, never)]


def test_what_would_take_more_than_a_month_is_never_done() -> None:
    catching_up = CatchingUp()
    lines = [catching_up.observe(float(second), 7_200.0 - second / 1_000) for second in range(0, 121, 60)]
    never = "never at this rate: upstream is too slow"
    assert [line and line.fields["done_in"] for line in lines] == ["not known yet", never, never]


def test_it_may_fall_behind_again() -> None:
    catching_up = CatchingUp()
    events = [line and line.event for line in map(catching_up.observe, range(4), [40.0, 0.0, 1.0, 90.0])]
    assert events == [
        "catching up with upstream",
        "caught up with upstream",
        None,
        "catching up with upstream",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (99, "99s"),
        (100, "2m"),
        (5_990, "100m"),
        (6_000, "1h40m"),
        (172_000, "47h46m"),
        (345_600, "4d00h"),
    ],
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert spoken(seconds) == text
