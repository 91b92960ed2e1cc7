"""Taking turns: portions that fit a turn, and who is let go on when."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import pytest

from jetstream.scheduling import TIMER_S, Line, Pulse, Rest, Worker, short_switch_interval
from jetstream.steps import Steps


async def test_a_pulse_wakes_all_who_wait_and_forgets_them() -> None:
    pulse = Pulse()
    waiting = [asyncio.create_task(pulse.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    pulse.send()
    await asyncio.wait(waiting)
    assert [task.cancelled() for task in waiting] == [True, False, False]
    late = asyncio.create_task(pulse.wait())
    await asyncio.sleep(0)
    assert not late.done()
    pulse.send()
    await late


async def test_a_rest_is_taken_once_a_timer_can_and_is_what_was_owed_on_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a clock of its own, on which each sleep lasts half a timer longer than it was asked for."""
    now, slept = 0.0, list[float]()

    async def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds + TIMER_S / 2 if seconds else 0.0

    monkeypatch.setattr("jetstream.scheduling.asyncio.sleep", sleep)
    monkeypatch.setattr("jetstream.scheduling.time.perf_counter", lambda: now)
    rest = Rest()
    for _ in range(1_000):
        rest.owe(TIMER_S * 0.7)
        await rest.take()
    assert len(slept) == 1_000
    assert all(seconds == 0 or seconds >= TIMER_S for seconds in slept)
    assert now == pytest.approx(700 * TIMER_S, abs=2 * TIMER_S)


async def test_a_rest_that_was_far_too_long_is_not_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = 0.0, list[float]()

    async def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += 10

    monkeypatch.setattr("jetstream.scheduling.asyncio.sleep", sleep)
    monkeypatch.setattr("jetstream.scheduling.time.perf_counter", lambda: now)
    rest = Rest()
    for _ in range(3):
        rest.owe(2 * TIMER_S)
        await rest.take()
    assert slept == pytest.approx([2 * TIMER_S, TIMER_S, TIMER_S])


async def test_a_rest_gives_the_loop_a_turn_though_nothing_is_owed() -> None:
    task = asyncio.create_task(Rest().take())
    await asyncio.sleep(0)
    assert not task.done()
    await task


async def test_a_line_lets_so_many_go_on_in_each_turn_in_order() -> None:
    line, turn = Line(2), 0
    passed: list[tuple[int, int]] = []  # turn, who

    async def wait(who: int) -> None:
        await line.turn()
        passed.append((turn, who))

    waiting = [asyncio.create_task(wait(who)) for who in range(7)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    assert len(line) == 7
    while not all(task.done() for task in waiting):
        turn += 1
        await asyncio.sleep(0)
    assert [who for _, who in passed] == [0, 2, 3, 4, 5, 6]
    turns = [turn for turn, _ in passed]
    assert turns == [turns[0] + place // 2 for place in range(6)]
    assert len(line) == 0


async def test_a_line_that_was_empty_begins_anew() -> None:
    line = Line(1)
    for _ in range(3):
        async with asyncio.timeout(20):
            await line.turn()


async def test_a_line_whose_first_is_cancelled_goes_on() -> None:
    line = Line(1)
    first = asyncio.create_task(line.turn())
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(20):
        await line.turn()


def test_threads_are_hurried_only_inside() -> None:
    before_s = sys.getswitchinterval()
    with suppress(ZeroDivisionError), short_switch_interval():
        assert sys.getswitchinterval() < before_s
        raise ZeroDivisionError
    assert sys.getswitchinterval() == before_s


def _job(done: list[str], name: str, steps: int) -> Steps[None]:
    for n in range(steps):
        done.append(f"{name}{n}")
        yield


async def test_a_worker_does_one_job_after_another_a_step_in_each_turn_if_it_takes_that_long() -> None:
    done: list[str] = []
    worker = Worker(turn_s=1e-9)  # any step is longer
    worker.put(_job(done, "a", 2))
    worker.put(_job(done, "b", 1))
    assert len(worker) == 2
    others = 0
    while len(worker):
        await asyncio.sleep(0)
        others += 1
    assert done == ["a0", "a1", "b0"]
    assert others >= 3


async def test_a_worker_goes_on_after_a_job_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Steps[None]:
        yield
        raise ValueError("this one")

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    done: list[str] = []
    worker = Worker(rest_ratio=1.0)
    worker.put(fail())
    worker.put(_job(done, "a", 1))
    while len(worker):  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)
    assert done == ["a0"]
