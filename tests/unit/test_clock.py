"""Clocks that are set, by little and by much, forth and back; all readings are arguments."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jetstream.clock import STEP_US, SteadyClock, boot_id, clock_reason, elapsed_us, iso, unix_us

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
YEAR = 365 * 24 * HOUR
SETTLE = 5 * MINUTE
BEGAN = 1_700_000_000 * SECOND


class Machine:
    """A machine whose wall clock can be set; `clock` is read each second, as the server does."""

    def __init__(self, settle_us: int = SETTLE) -> None:
        self.elapsed = 0
        self.offset = BEGAN
        self.clock = SteadyClock(settle_us, lambda: self.elapsed + self.offset, lambda: self.elapsed)

    def run(self, us: int, every: int = SECOND) -> None:
        end = self.elapsed + us
        while self.elapsed < end:
            self.elapsed = min(self.elapsed + every, end)
            self.clock()

    @property
    def error(self) -> int:
        """How far the time given is from that of a clock which was never set."""
        return self.clock() - (BEGAN + self.elapsed)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_it_is_the_wall_clock_as_long_as_nobody_sets_it(machine: Machine) -> None:
    machine.run(HOUR)
    assert machine.clock() == BEGAN + HOUR
    assert machine.clock.ignored_us == 0


@pytest.mark.parametrize("step", [STEP_US + 1, 2 * HOUR, YEAR, 70 * YEAR])
@pytest.mark.parametrize("lasting", [1, 2 * SECOND, SETTLE - SECOND])
def test_a_step_ahead_that_does_not_last_changes_nothing(machine: Machine, step: int, lasting: int) -> None:
    machine.run(HOUR)
    machine.offset += step
    machine.run(lasting)
    assert machine.error == 0
    assert machine.clock.ignored_us == step
    machine.offset -= step
    machine.run(10 * SETTLE)
    assert machine.error == 0
    assert machine.clock.ignored_us == 0


@pytest.mark.parametrize("step", [STEP_US + 1, 2 * HOUR, 54 * YEAR])
@pytest.mark.parametrize("before", [0, 7 * SECOND, SETTLE - SECOND, HOUR])
def test_a_step_ahead_that_lasts_is_followed_after_it_has_lasted(
    machine: Machine, step: int, before: int
) -> None:
    machine.run(before)
    machine.clock()
    machine.offset += step
    machine.run(SECOND)
    machine.run(SETTLE - SECOND)
    assert machine.error == 0
    machine.run(SECOND)
    assert machine.error == step
    assert machine.clock.ignored_us == 0


@pytest.mark.parametrize("step", [1, SECOND, STEP_US])
def test_a_small_step_ahead_is_followed_at_once(machine: Machine, step: int) -> None:
    machine.run(HOUR)
    machine.offset += step
    assert machine.error == step


@pytest.mark.parametrize("step", [1, SECOND, HOUR, YEAR])
def test_a_step_back_is_followed_at_once(machine: Machine, step: int) -> None:
    machine.run(HOUR)
    machine.offset -= step
    assert machine.error == -step
    machine.run(HOUR)
    assert machine.error == -step


def test_many_small_steps_do_not_make_up_a_large_one(machine: Machine) -> None:
    machine.run(HOUR)
    for _ in range(60):
        machine.offset += 50 * SECOND
        machine.run(SECOND)
    assert machine.error <= STEP_US


def test_drift_is_followed_for_ever_in_either_direction(machine: Machine) -> None:
    for drift in (SECOND // 1000, -SECOND // 1000):
        for _ in range(2_000):
            machine.offset += drift * 60
            machine.run(MINUTE, every=MINUTE)
            assert machine.clock() == machine.elapsed + machine.offset


def test_a_step_back_that_is_undone_soon_is_no_step_ahead(machine: Machine) -> None:
    machine.run(HOUR)
    machine.offset -= 2 * HOUR
    machine.run(2 * SECOND)
    machine.offset += 2 * HOUR
    assert machine.error == 0
    machine.offset += 2 * HOUR
    machine.run(2 * SECOND)
    assert machine.error == 0


def test_a_step_back_that_has_lasted_is_not_undone_at_once(machine: Machine) -> None:
    machine.run(HOUR)
    machine.offset -= 2 * HOUR
    machine.run(SETTLE + SECOND)
    machine.offset += 2 * HOUR
    assert machine.error == -2 * HOUR


def test_a_clock_that_comes_back_half_the_way_has_to_last_from_its_first_step(machine: Machine) -> None:
    machine.offset += 3 * HOUR
    machine.run(SETTLE // 2)
    machine.offset -= HOUR
    machine.run(SETTLE // 2 + SECOND)
    assert machine.error == 2 * HOUR


def test_a_suspended_machine_has_not_stepped(machine: Machine) -> None:
    machine.run(HOUR)
    machine.elapsed += YEAR  # both clocks go on
    assert machine.error == 0
    assert machine.clock.ignored_us == 0


def test_a_process_goes_on_with_what_the_one_before_it_trusted(machine: Machine) -> None:
    trusted = machine.offset
    machine.offset += 70 * YEAR
    again = SteadyClock(SETTLE, lambda: machine.elapsed + machine.offset, lambda: machine.elapsed)
    again.resume(trusted)
    assert again() == BEGAN
    assert again.ignored_us == 70 * YEAR
    machine.offset -= 71 * YEAR
    assert again() == BEGAN - YEAR


def test_the_machines_clocks_are_read_in_microseconds() -> None:
    assert unix_us() > BEGAN
    assert 0 < elapsed_us() < 100 * YEAR
    assert boot_id()


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no such clock here")
def test_the_time_for_which_a_machine_was_suspended_is_part_of_what_has_elapsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = {time.CLOCK_BOOTTIME: 7_000, time.CLOCK_MONOTONIC: 5_000}
    monkeypatch.setattr(time, "clock_gettime_ns", read.__getitem__)
    assert elapsed_us() == 7


def test_a_machine_that_does_not_name_its_boots() -> None:
    assert boot_id(Path("/nowhere")) == "unknown"


def test_the_reason_has_figures_and_what_to_do() -> None:
    now = BEGAN
    assert clock_reason(now + STEP_US, now, 0, 300) is None
    ahead = clock_reason(now + YEAR, now, 0, 300)
    assert ahead is not None
    assert "31,536,000 s ahead of the clock" in ahead
    assert "jetstream log rebase-time" in ahead
    stepped = clock_reason(now, now, 2 * HOUR, 300)
    assert stepped is not None
    assert "7,200 s" in stepped
    assert "300 s (--clock-settle)" in stepped


def test_a_time_beyond_the_calendar_is_a_number() -> None:
    assert iso(BEGAN) == "2023-11-14T22:13:20+00:00"
    assert iso(2**62) == str(2**62)
