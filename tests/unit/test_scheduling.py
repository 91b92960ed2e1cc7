"""Cooperative scheduling: what runs, waits and wakes in which turn of the event loop."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from itertools import count
from unittest.mock import patch

import pytest

from jetstream.scheduling import Notifier, TurnQueue, Worker, short_switch_interval, whole
from jetstream.steps import Steps


async def test_a_notifier_wakes_every_waiting_task_once() -> None:
    notifier = Notifier()
    waiting = [asyncio.create_task(notifier.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    notifier.notify()
    await asyncio.wait(waiting)
    assert [task.cancelled() for task in waiting] == [True, False, False]
    late = asyncio.create_task(notifier.wait())
    await asyncio.sleep(0)
    assert not late.done()
    notifier.notify()
    await late


async def test_a_turn_queue_lets_so_many_pass_in_each_turn_in_order() -> None:
    queue, turn = TurnQueue(2), 0
    passed: list[tuple[int, int]] = []  # turn, who

    async def wait(who: int) -> None:
        await queue.wait()
        passed.append((turn, who))

    waiting = [asyncio.create_task(wait(who)) for who in range(7)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    assert len(queue) == 7
    while not all(task.done() for task in waiting):
        turn += 1
        await asyncio.sleep(0)
    assert [who for _, who in passed] == [0, 2, 3, 4, 5, 6]
    turns = [turn for turn, _ in passed]
    assert turns == [turns[0] + place // 2 for place in range(6)]
    assert len(queue) == 0


async def test_a_turn_queue_that_was_empty_lets_the_next_one_pass() -> None:
    queue = TurnQueue(1)
    for _ in range(3):
        async with asyncio.timeout(20):
            await queue.wait()


async def test_a_turn_queue_whose_first_task_is_cancelled_continues() -> None:
    queue = TurnQueue(1)
    first = asyncio.create_task(queue.wait())
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(20):
        await queue.wait()


def test_the_switch_interval_is_short_only_inside() -> None:
    before_s = sys.getswitchinterval()
    with suppress(ZeroDivisionError), short_switch_interval():
        assert sys.getswitchinterval() < before_s
        raise ZeroDivisionError
    assert sys.getswitchinterval() == before_s


def _job(done: list[str], name: str, steps: int) -> Steps[None]:
    for n in range(steps):
        done.append(f"{name}{n}")
        yield


async def test_a_worker_runs_jobs_in_order_and_ends_its_turn_when_the_time_is_over() -> None:
    done: list[str] = []
    time_s = count()
    worker = Worker(turn_s=1, clock=lambda: next(time_s))  # each step takes a second
    worker.put(_job(done, "a", 2))
    worker.put(_job(done, "b", 1))
    assert len(worker) == 2
    others = 0
    while len(worker):
        await asyncio.sleep(0)
        others += 1
    assert done == ["a0", "a1", "b0"]
    assert others >= 3


async def test_a_worker_continues_after_a_job_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Steps[None]:
        yield
        raise ValueError("this one")

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    done: list[str] = []
    worker = Worker(pause_ratio=1.0)
    worker.put(fail())
    worker.put(_job(done, "a", 1))
    while len(worker):  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)
    assert done == ["a0"]


@pytest.mark.parametrize("ratio", [0, 2])
async def test_a_worker_pauses_after_each_turn_for_a_multiple_of_it(ratio: float) -> None:
    time_s = count(step=0.001)
    worker = Worker(turn_s=0.001, pause_ratio=ratio, clock=lambda: next(time_s))
    loop = asyncio.get_running_loop()
    with patch.object(loop, "call_later", wraps=loop.call_later) as scheduled:
        worker.put(_job([], "a", 2))
        while len(worker):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
    # The clock is read when a turn begins, after its step, and when it ends: it took 2 ms.
    pauses = [call.args[0] for call in scheduled.call_args_list]
    assert pauses == pytest.approx([0.002 * ratio] * (3 if ratio else 2))


async def test_a_worker_without_jobs_does_nothing_once_its_pause_is_over() -> None:
    time_s = count(step=1e-6)
    worker = Worker(pause_ratio=2.0, clock=lambda: next(time_s))
    loop = asyncio.get_running_loop()
    worker.put(_job([], "a", 1))
    while len(worker):  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)
    with patch.object(loop, "call_later", wraps=loop.call_later) as scheduled:
        for _ in range(20):
            await asyncio.sleep(0)
    assert not scheduled.called


@pytest.mark.parametrize("ends_by_itself", [True, False])
async def test_what_is_whole_is_waited_for_unless_it_takes_too_long(ends_by_itself: bool) -> None:
    working: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    ended = asyncio.Event()

    def end() -> None:
        ended.set()
        working.set_exception(OSError("the connection was closed"))

    waiting = asyncio.create_task(whole(working, end, 60.0 if ends_by_itself else 0.01))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    if ends_by_itself:
        working.set_result(1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set() != ends_by_itself


async def test_what_nothing_can_end_is_waited_for() -> None:
    working: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(whole(working, patience_s=0.0))
    await asyncio.sleep(0)
    waiting.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    working.set_exception(OSError("nobody waits for it"))
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_what_is_not_cancelled_is_awaited_as_it_is() -> None:
    working: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(whole(working))
    await asyncio.sleep(0)
    working.set_result(7)
    assert await waiting == 7
