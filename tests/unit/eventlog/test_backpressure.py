"""The writer waits for the readers that follow the log, and for nobody else."""

from __future__ import annotations

import asyncio

from jetstream.eventlog.backpressure import Followers


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_without_followers_the_writer_gives_one_turn() -> None:
    followers = Followers()
    followers.append(7, 0.0)
    waiting = asyncio.create_task(followers.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    await turns()
    assert waiting.done()


async def test_the_writer_waits_for_the_slowest() -> None:
    followers = Followers()
    fast, slow = followers.join(1), followers.join(1)
    followers.append(7, 0.0)
    waiting = asyncio.create_task(followers.wait())
    for follower, position, done in ((fast, 8, False), (slow, 7, False), (slow, 8, True)):
        follower.advance(position)
        await turns()
        assert waiting.done() is done


async def test_a_follower_that_leaves_is_not_waited_for() -> None:
    followers = Followers()
    gone = followers.join(1)
    followers.append(7, 0.0)
    waiting = asyncio.create_task(followers.wait())
    await turns()
    assert not waiting.done()
    gone.leave()
    await waiting
    gone.leave()  # twice is harmless


async def test_a_follower_is_told_what_was_appended_since_it_joined() -> None:
    followers = Followers()
    followers.append(1, 10.0)
    follower = followers.join(2)
    followers.append(2, 11.0)
    followers.append(5, None)  # received at a time that nobody knows
    followers.append(7, 12.0)
    assert list(follower.appended) == [(2, 11.0), (7, 12.0)]
