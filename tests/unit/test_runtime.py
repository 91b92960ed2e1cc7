"""What a long-running command asks of its process: garbage collection, memory, signals."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jetstream.limits import RuntimeLimits
from jetstream.runtime import (
    collect_young,
    count_young,
    housekeeping,
    malloc_trim,
    next_count_s,
    open_files,
    release_memory,
    resident_bytes,
    stop_on_signals,
    unless,
    written_bytes,
)


class Node:
    """Something that can refer to itself."""

    me: Node


@pytest.mark.usefixtures("only_new_objects")
def test_young_objects_are_counted() -> None:
    gc.collect()
    before = count_young()
    young = [[number] for number in range(100)]
    assert count_young() >= before + len(young)


def test_counting_young_objects_leaves_the_tuples_of_other_threads_alone() -> None:
    """With a list of all objects in a variable, this raises SystemError in the other thread at once."""

    def build() -> int:
        return sum(len(tuple(number for number in range(30))) for _ in range(20_000))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(1) as thread:
            built = thread.submit(build)
            while not built.done():
                count_young()
    finally:
        sys.setswitchinterval(interval)
    assert built.result() == 20_000 * 30


async def test_young_garbage_is_collected_when_many_objects_are_young() -> None:
    gc.disable()  # the collector does not run by itself
    try:
        young = [[number] for number in range(100)]
        node = Node()
        node.me = node
        gone = weakref.ref(node)
        del node
        collecting = asyncio.create_task(collect_young(RuntimeLimits(young_every_s=0.001, young_max=100)))
        async with asyncio.timeout(20):
            while gone() is not None:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.005)
        collecting.cancel()
        assert len(young) == 100
    finally:
        gc.enable()


def test_young_objects_are_counted_less_often_while_they_become_few_more() -> None:
    limits = RuntimeLimits(young_every_s=0.02, young_pause_max_s=0.08, young_max=5_000)
    assert next_count_s(0.02, 500, limits) == 0.04
    assert next_count_s(0.04, -4_000, limits) == 0.08
    assert next_count_s(0.08, 500, limits) == 0.08
    assert next_count_s(0.08, 501, limits) == 0.02


@pytest.mark.parametrize(("resident", "released"), [(1_000, False), (1_001, True)])
async def test_memory_is_released_while_much_is_in_use(resident: int, released: bool) -> None:
    looked, trimmed = 0, 0

    def look() -> int:
        nonlocal looked
        looked += 1
        return resident

    def trim() -> None:
        nonlocal trimmed
        trimmed += 1

    limits = RuntimeLimits(release_every_s=0, release_above_bytes=1_000)
    releasing = asyncio.create_task(release_memory(trim, look, limits))
    async with asyncio.timeout(20):
        while looked < 3:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.001)
    releasing.cancel()
    assert bool(trimmed) is released


@pytest.mark.skipif(malloc_trim() is None, reason="the C library is not glibc")
async def test_memory_is_released_while_a_server_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = threading.Event()
    monkeypatch.setattr("jetstream.runtime.malloc_trim", lambda: trimmed.set)
    async with housekeeping(RuntimeLimits(release_every_s=0.0, release_above_bytes=0)):
        assert await asyncio.to_thread(trimmed.wait, 20)


@pytest.mark.skipif(malloc_trim() is None, reason="the C library is not glibc")
def test_memory_that_a_flood_left_is_released() -> None:
    blocks = [b"x" * 60_000 for _ in range(1500)]
    kept = blocks[::10]
    blocks.clear()  # what is between two that stay is kept by glibc
    held = resident_bytes()
    trim = malloc_trim()
    assert trim is not None
    trim()
    assert held - resident_bytes() > 60_000_000
    assert len(kept) == 150


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_stops_and_the_second_has_its_default_effect(number: signal.Signals) -> None:
    stopped = asyncio.Event()
    before = [(each, signal.getsignal(each)) for each in (signal.SIGTERM, signal.SIGINT)]
    try:
        stop_on_signals(stopped.set)
        os.kill(os.getpid(), number)
        async with asyncio.timeout(20):
            await stopped.wait()
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    finally:
        for each, handler in before:
            signal.signal(each, handler)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_open_files_and_written_bytes_are_told(tmp_path: Path) -> None:
    before = open_files()
    assert before is not None
    with (tmp_path / "a").open("w"), (tmp_path / "b").open("w"):
        assert open_files() == before + 2
    written = written_bytes()
    assert written is not None
    assert written >= 0


async def test_work_is_done_unless_an_event_comes_first() -> None:
    event, began = asyncio.Event(), asyncio.Event()

    async def work(result: int | None) -> int:
        began.set()
        return await asyncio.get_running_loop().create_future() if result is None else result

    async def fail() -> int:
        raise KeyError("it failed")

    assert await unless(event, work(7)) == 7
    with pytest.raises(KeyError):
        await unless(event, fail())
    waiting = asyncio.create_task(unless(event, work(None)))
    began.clear()
    await began.wait()
    event.set()
    assert await waiting is None
