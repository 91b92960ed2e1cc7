from __future__ import annotations

import asyncio
import queue
from contextlib import suppress

import pytest

from jetstream.client.message import Mark, Message
from jetstream.client.sync import Channel


def event(size: int) -> Message:
    return Message.parse(b'{"time_us":1,"x":"%b"}' % (b"x" * size))


async def test_items_come_in_order_and_then_the_end() -> None:
    channel = Channel(1000)
    items: list[Message | Mark] = [event(1), Mark(5, live=True), event(2)]
    for item in items:
        await channel.put(item)
    error = ValueError()
    channel.end(error)
    assert [channel.get(None) for _ in items] == items
    ended = channel.get(None)
    assert isinstance(ended, tuple)
    assert ended.error is error
    with pytest.raises(queue.Empty):
        channel.get(0.001)


async def test_what_waits_is_bounded_in_bytes() -> None:
    channel = Channel(1000)
    for _ in range(3):
        await channel.put(event(300))
    putting = asyncio.create_task(channel.put(event(300)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not putting.done()
    channel.get(None)
    await putting


async def test_marks_count_too() -> None:
    channel = Channel(1000)
    putting = asyncio.create_task(put_marks(channel, 50))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not putting.done()
    for _ in range(50):
        assert isinstance(await asyncio.to_thread(channel.get, 5.0), Mark)
    await putting


async def put_marks(channel: Channel, count: int) -> None:
    for _ in range(count):
        await channel.put(Mark(1, live=False))


async def test_one_message_may_be_larger_than_the_bound() -> None:
    channel = Channel(10)
    putting = asyncio.create_task(channel.put(event(300)))
    await asyncio.sleep(0)
    taken = await asyncio.to_thread(channel.get, 5.0)
    assert isinstance(taken, Message)
    await putting


async def test_a_thread_takes_all_that_is_put() -> None:
    channel = Channel(100)

    def take_all() -> int:
        count = 0
        with suppress(queue.Empty):
            while isinstance(channel.get(5.0), Message):
                count += 1
        return count

    taking = asyncio.create_task(asyncio.to_thread(take_all))
    for _ in range(5000):
        await channel.put(event(20))
    channel.end(None)
    assert await taking == 5000
